"use strict";
const $ = (id) => document.getElementById(id);
const MASKS = ["[MASK]", "[sMASK]", "[gMASK]"]; // the first kind that a text has is the one that is filled
let language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
let model = null;
let running = null; // the AbortController of what is being generated
const history = []; // of the conversation

function speak() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = WORDS[language][element.dataset.word];
  }
  $("language").textContent = WORDS[language].other;
  $("language").lang = WORDS[language].otherLanguage;
}

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

// The sentence of an error body; of what is no error body, what happened.
async function sentence(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

async function* events(path, body, signal) {
  let response;
  try {
    response = await fetch(path, { method: "POST", headers: headers(), body: JSON.stringify(body), signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(WORDS[language].unreachable);
  }
  if (!response.ok) throw new Error(await sentence(response));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (!part.startsWith("data: ") || part === "data: [DONE]") continue;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

function number(id) {
  return $(id).value === "" ? undefined : Number($(id).value);
}

function options() {
  return { temperature: number("temperature"), top_p: number("top_p"), max_tokens: number("max_tokens"),
    seed: number("seed") };
}

// Runs work(signal) with the buttons of a section set for it; an error is shown as its sentence.
async function run(section, work) {
  if (running) return;
  const [error, stop, main] = [".error", ".stop", ".main"].map((name) => section.querySelector(name));
  running = new AbortController();
  error.hidden = true;
  stop.disabled = false;
  main.disabled = true;
  try {
    await work(running.signal);
  } catch (fault) {
    if (fault.name !== "AbortError") {
      error.textContent = fault.message;
      error.hidden = false;
    }
  } finally {
    running = null;
    stop.disabled = true;
    main.disabled = false;
  }
}

// Puts pieces of text into an element, those with isBlank marked. As text nodes: an answer is never HTML.
function show(element, pieces) {
  element.replaceChildren(...pieces.filter(([text]) => text).map(([text, isBlank]) => {
    if (!isBlank) return document.createTextNode(text);
    const mark = document.createElement("mark");
    mark.textContent = text;
    return mark;
  }));
}

// A text and its blanks, whose places count Unicode code points.
function pieces(text, blanks) {
  const characters = Array.from(text);
  const found = [];
  let end = 0;
  for (const blank of blanks) {
    found.push([characters.slice(end, blank.start).join(""), false],
      [characters.slice(blank.start, blank.end).join(""), true]);
    end = blank.end;
  }
  return [...found, [characters.slice(end).join(""), false]];
}

// A text whose blanks are being filled: those that are not begun are still masks.
function unfinished(text, deltas) {
  const kind = MASKS.find((mask) => text.includes(mask));
  const typed = kind ? text.split(kind) : [text, ""];
  const found = [[typed[0], false]];
  typed.slice(1).forEach((behind, index) => {
    const isBegun = deltas[index] !== undefined;
    const space = isBegun && /[A-Za-z,;]$/.test(typed[index]) && /^[A-Za-z]/.test(deltas[index]) ? " " : "";
    found.push([space, false], [isBegun ? deltas[index] : kind || "", isBegun], [behind, false]);
  });
  return found;
}

async function fill(signal) {
  const text = $("text").value;
  const beams = number("num_beams") || 1;
  const deltas = [];
  $("alternatives").hidden = true;
  show($("filled"), unfinished(text, deltas));
  const body = { text, stream: true, ...options(), ...(beams > 1 && { num_beams: beams }) };
  for await (const event of events("/v1/fill", body, signal)) {
    if (event.object === "fill.chunk") {
      deltas[event.blank] = (deltas[event.blank] || "") + event.delta;
      show($("filled"), unfinished(text, deltas));
    } else {
      const result = event.results[0];
      show($("filled"), pieces(result.text, result.blanks));
      choose(result.alternatives);
    }
  }
}

function choose(alternatives) {
  $("alternatives").hidden = alternatives.length < 2;
  $("alternatives").querySelector("ol").replaceChildren(...alternatives.map((one) => {
    const [item, button, score] = ["li", "button", "small"].map((name) => document.createElement(name));
    button.type = "button";
    show(button, pieces(one.text, one.blanks));
    score.textContent = ` ${one.score.toFixed(2)}`;
    button.append(score);
    button.addEventListener("click", () => show($("filled"), pieces(one.text, one.blanks)));
    item.append(button);
    return item;
  }));
}

function said(role, text) {
  const element = document.createElement("div");
  element.className = `said ${role}`;
  element.textContent = text;
  $("talk").append(element);
  element.scrollIntoView({ block: "nearest" });
  return element;
}

async function talk(signal) {
  const content = $("message").value.trim();
  if (!content) return;
  const messages = [...history, { role: "user", content }];
  said("user", content);
  $("message").value = "";
  const answer = said("assistant", "");
  try {
    for await (const event of events("/v1/chat/completions", { messages, stream: true, ...options() }, signal)) {
      for (const choice of event.choices) answer.textContent += choice.delta.content || "";
    }
  } finally {
    if (answer.textContent) history.push(messages.at(-1), { role: "assistant", content: answer.textContent });
    else answer.remove();
  }
}

function open(name) {
  for (const section of ["fill", "chat"]) {
    $(section).hidden = section !== name;
    $(`tab-${section}`).setAttribute("aria-selected", section === name);
  }
  $("beams-label").hidden = name === "chat";
}

async function learn() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await sentence(response));
    model = (await response.json()).data[0];
    $("model").textContent = model.id;
    $("tabs").hidden = !model.chat_format;
    document.querySelector("#fill .error").hidden = true;
  } catch (fault) {
    const error = document.querySelector("#fill .error");
    error.textContent = fault instanceof TypeError ? WORDS[language].unreachable : fault.message;
    error.hidden = false;
  }
}

$("masks").addEventListener("click", (event) => {
  const mask = event.target.dataset.mask;
  if (mask) {
    $("text").setRangeText(mask, $("text").selectionStart, $("text").selectionEnd, "end");
    $("text").focus();
  }
});
$("fill-form").addEventListener("submit", (event) => { event.preventDefault(); run($("fill"), fill); });
$("chat-form").addEventListener("submit", (event) => { event.preventDefault(); run($("chat"), talk); });
for (const id of ["text", "message"]) {
  $(id).addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form.requestSubmit();
  });
}
for (const stop of document.querySelectorAll(".stop")) stop.addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", () => { history.length = 0; $("talk").replaceChildren(); });
$("tab-fill").addEventListener("click", () => open("fill"));
$("tab-chat").addEventListener("click", () => open("chat"));
$("key").addEventListener("change", learn);
$("language").addEventListener("click", () => { language = language === "en" ? "zh" : "en"; speak(); });
speak();
learn();
