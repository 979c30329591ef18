"""What a user is told about raw files of the Chinese tasks that are missing or not as expected."""

import pytest

from runtime.errors import UserError
from tests.chinese_rows import CHID, CLUEWSC, CSL, FEWCLUE_WSC, HALF, OCNLI, PAIRS, RAW, REVIEWS, write
from tools.preparing import chinese, fewclue
from tools.preparing.raw import MissingRawFile
from tools.preparing.recipes import FOLDER, load_recipe


def test_a_missing_file_is_named(tmp_path):
    for path in FOLDER.glob("*CLUE_*.yaml"):
        with pytest.raises(MissingRawFile, match=r"clue-\w+/[\w.-]+: no such file"):
            load_recipe(path).read(tmp_path)


def test_half_of_cmnli_is_not_cmnli(tmp_path):
    write(tmp_path / "clue-cmnli" / "dev.json", HALF, lines=False)
    with pytest.raises(MissingRawFile, match="clue-cmnli/test.json: no such file"):
        chinese.cmnli(tmp_path)


def changed(rows, **fields):
    return [{**rows[0], **fields}]


MISTAKES = {
    "label": (chinese.afqmc, "clue-afqmc/dev.json", changed(PAIRS, label="2"),
              "clue-afqmc/dev.json: row 1: label: '2' is not one of 0, 1"),
    "no field": (chinese.afqmc, "clue-afqmc/dev.json", [{"sentence1": "好", "label": "0"}],
                 "dev.json: row 1: no field 'sentence2'; it has sentence1, label"),
    "not a text": (chinese.afqmc, "clue-afqmc/dev.json", changed(PAIRS, sentence2=None),
                   "dev.json: row 1: sentence2: expected a text, found None"),
    "not a list": (fewclue.csl, "fewclue-csl/dev_few_all.json", changed(CSL, keyword="水稻"),
                   "dev_few_all.json: row 1: keyword: expected a list of texts, found '水稻'"),
    "ocnli label": (chinese.ocnli, "clue-ocnli/dev.json", changed(OCNLI, label="蕴含"),
                    "row 1: label: '蕴含' is not one of entailment, neutral, contradiction"),
    "cmnli lines": (chinese.cmnli, "clue-cmnli/dev.json", {"rows": []},
                    "dev.json: expected a list of objects, found dict"),
    "cmnli row": (chinese.cmnli, "clue-cmnli/dev.json", ["桌上有梨"],
                  "row 1: expected an object with text_a, text_b, label, found str"),
    "pronoun": (chinese.cluewsc, "clue-cluewsc/dev.json", changed(CLUEWSC, text_a="他没带伞。"),
                "row 1: text_a: expected one pronoun as in #他#, found 0 #"),
    "documents": (chinese.c3, "clue-c3/c3-d-dev.json", {"rows": []}, "expected a list of documents, found dict"),
    "document": (chinese.c3, "clue-c3/c3-d-dev.json", [["女：饿了吗?"]],
                 r"document 1: expected \[lines of the text, questions, id\]"),
    "answer": (chinese.c3, "clue-c3/c3-d-dev.json",
               [[["天晴了。"], [{"question": "天气?", "choice": ["晴", "雨"], "answer": "雪"}], "1"]],
               "document 1: answer '雪' is 0 times among the choices 晴, 雨; expected once"),
    "answer twice": (chinese.c3, "clue-c3/c3-d-dev.json",
                     [[["天晴了。"], [{"question": "天气?", "choice": ["晴", "晴"], "answer": "晴"}], "1"]],
                     "document 1: answer '晴' is 2 times among the choices 晴, 晴; expected once"),
    "no data": (chinese.cmrc2018, "clue-cmrc2018/cmrc2018_dev.json", {"rows": []}, "no field 'data'; it has rows"),
    "no answers": (chinese.drcd, "clue-drcd/DRCD_dev.json",
                   {"data": [{"paragraphs": [{"context": "天晴了。", "qas": [
                       {"id": "q7", "question": "天气？", "answers": []}]}]}]},
                   "DRCD_dev.json: question q7: no answer, or an answer without text"),
    "review": (fewclue.eprstmt, "fewclue-eprstmt/dev_few_all.json", changed(REVIEWS, label="positive"),
               "row 1: label: 'positive' is not one of Negative, Positive"),
    "blank": (fewclue.chid, "fewclue-chid/dev_few_all.json", changed(CHID, content="祝你一帆风顺"),
              "row 1: content: expected one #idiom#, found 0"),
    "idiom": (fewclue.chid, "fewclue-chid/dev_few_all.json", changed(CHID, answer=3),
              "row 1: answer: 3 is not one of 0, 1, 2"),
    "span": (fewclue.cluewsc, "fewclue-cluewsc/dev_few_all.json", changed(FEWCLUE_WSC, text="他没带伞"),
             "row 1: target: span1_text '小王' does not stand at span1_index 6"),
}


@pytest.mark.parametrize("reader, name, rows, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_in_raw_files(reader, name, rows, message, tmp_path):
    write(tmp_path / name, rows, lines=RAW[name][1])
    with pytest.raises(UserError, match=message):
        reader(tmp_path)
