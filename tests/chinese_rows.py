"""Tiny raw data sets of every Chinese task, in the formats of the public files, in sentences of our own."""

import json

PAIRS = [{"sentence1": "怎样开户", "sentence2": "开户的办法是什么", "label": "1"},
         {"sentence1": "怎样开户", "sentence2": "怎样销户 ", "label": "0"}]
HALF = [{"id": 0, "text_a": "桌上有三个梨。", "text_b": "桌上有水果。", "text_c": "", "label": "蕴含"},
        {"id": 1, "text_a": "桌上有三个梨。", "text_b": "桌上只有梨。", "text_c": "", "label": "中立"}]
OTHER_HALF = [{"id": 0, "text_a": "桌上有三个梨。", "text_b": "桌上是空的。", "text_c": "", "label": "矛盾"}]
OCNLI = [{"level": "easy", "sentence1": "他骑车上班.", "sentence2": "他会骑车", "label": label, "genre": "news"}
         for label in ("entailment", "neutral", "contradiction", "-")]
CLUEWSC = [{"id": 0, "text_a": "小李把伞借给小王，因为#他#没带伞。", "text_b": "小王", "text_c": "", "label": "是"}]
CLUEWSC_OTHER = [{**CLUEWSC[0], "text_b": "小李", "label": "否"}]
DIALOGUE = [[["女：饿了吗?", "男：刚吃过。"],
             [{"question": "男的是什么意思?", "choice": ["很饿", "不饿", "想睡"], "answer": "不饿"},
              {"question": "谁先说话?", "choice": ["女的", "男的"], "answer": "女的"}], "1-1"]]
MIXED = [[["河边长着一棵老树。"], [{"question": "树在哪里?", "choice": ["山上", "河边"], "answer": "河边"}], "m1"]]
QUESTION = {"id": "q1", "question": "石桥建于何时？",
            "answers": [{"text": "1905年", "answer_start": 4}, {"text": "1905年"}, {"text": "1905"}]}
SQUAD = {"version": "v1", "data": [
    {"title": "桥", "id": "1", "paragraphs": [{"id": "1-1", "context": "石桥建于1905年。", "qas": [QUESTION]}]}]}
CSL = [{"id": 0, "abst": "本文研究水稻的产量.", "keyword": ["水稻", "产量"], "label": "1"},
       {"id": 1, "abst": "本文研究水稻的产量.", "keyword": ["水稻", "钢铁"], "label": "0"}]
REVIEWS = [{"id": 0, "sentence": "很好用！", "label": "Positive"},
           {"id": 1, "sentence": "用了一天就坏了", "label": "Negative"}]
CHID = [{"id": 0, "candidates": ["一帆风顺", "画蛇添足", "半途而废"], "content": "祝你#idiom#,早日归来", "answer": 0}]
FEWCLUE_WSC = [{"idx": 0, "label": "true", "text": "小李把伞借给小王，因为他没带伞。",
                "target": {"span1_text": "小王", "span1_index": 6, "span2_text": "他", "span2_index": 11}},
               {"idx": 1, "label": "false", "text": "他说，小王没带伞。",
                "target": {"span1_text": "小王", "span1_index": 3, "span2_text": "他", "span2_index": 0}}]


def write(path, rows, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [json.dumps(row, ensure_ascii=False) for row in rows] if lines else [json.dumps(rows, ensure_ascii=False)]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")


def fewclue_files(folder, rows):
    return {f"{folder}/dev_few_all.json": (rows[:1], True), f"{folder}/test_public.json": (rows, True)}


RAW = {
    "clue-afqmc/dev.json": (PAIRS, True),
    "clue-cmnli/dev.json": (HALF, False), "clue-cmnli/test.json": (OTHER_HALF, False),
    "clue-ocnli/dev.json": (OCNLI, True),
    "clue-cluewsc/dev.json": (CLUEWSC, False), "clue-cluewsc/test.json": (CLUEWSC_OTHER, False),
    "clue-c3/c3-d-dev.json": (DIALOGUE, False), "clue-c3/c3-m-dev.json": (MIXED, False),
    "clue-cmrc2018/cmrc2018_dev.json": (SQUAD, False), "clue-drcd/DRCD_dev.json": (SQUAD, False),
    "clue-csl/dev.json": (CSL, True),
    **fewclue_files("fewclue-bustm", PAIRS), **fewclue_files("fewclue-ocnli", OCNLI[:3]),
    **fewclue_files("fewclue-csl", CSL), **fewclue_files("fewclue-eprstmt", REVIEWS),
    **fewclue_files("fewclue-chid", CHID), **fewclue_files("fewclue-cluewsc", FEWCLUE_WSC),
}


def raw_folder(folder):
    """The folder, with all of it written."""
    for name, (rows, lines) in RAW.items():
        write(folder / name, rows, lines)
    return folder
