"use strict";
// What the page says, in both languages.
const WORDS = {
  en: {
    key: "API key", fillTab: "Fill blanks", chatTab: "Chat", words: "[MASK] a few words", sentence: "[sMASK] a sentence",
    passage: "[gMASK] a passage", run: "Write", stop: "Stop", alternatives: "Alternatives", message: "Message",
    send: "Send", clear: "New conversation", options: "Options", temperature: "Temperature", topP: "Top-p",
    length: "Most tokens", seed: "Seed", beams: "Beams", other: "中文", otherLanguage: "zh",
    prompt: "Text. A mask stands where the model shall write; without one it goes on at the end.",
    unreachable: "The server cannot be reached.",
  },
  zh: {
    key: "API 密钥", fillTab: "填空", chatTab: "对话", words: "[MASK] 几个词", sentence: "[sMASK] 一句话",
    passage: "[gMASK] 一段文字", run: "生成", stop: "停止", alternatives: "其他结果", message: "消息",
    send: "发送", clear: "新对话", options: "选项", temperature: "温度", topP: "Top-p",
    length: "最多词元数", seed: "随机种子", beams: "束数", other: "English", otherLanguage: "en",
    prompt: "文本。在掩码处由模型填写；没有掩码时，模型从末尾续写。",
    unreachable: "无法连接服务器。",
  },
};
