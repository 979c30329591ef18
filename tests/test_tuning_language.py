"""Windows of texts, LAMBADA, multiple choice and ChatGLM's rows as the model is given them, against the kit."""

import json

import pytest

import glm
from evaluation.config import LanguageModelTaskConfig
from evaluation.scorer import Scorer
from tasks.glm.scored import Text
from tests.golden_data import family_folder
from tests.golden_family import checkpoint
from tests.golden_finetune import KIT, lines, refused, run, tokenizer_flags

TINY = KIT / "checkpoints/glm-tiny"
FILES = {"lambda": "lambada_test.jsonl", "wikitext": "wikitext.test.tokens", "language_model": "wikibook.test.txt"}
CASES = lines("expected/evaluation/language_model.jsonl")


def flags_of(case):
    flag, name = (("--test-data", "multichoice.jsonl") if case["task"] == "multichoice" else
                  ("--valid-data", FILES[case["task"]]))
    return ["--task", case["task"], flag, KIT / "data/evaluation" / name, "--seq-length", case["seq_length"],
            "--overlapping-eval", case.get("overlapping_eval", 32),
            *(["--unidirectional"] if case["unidirectional"] else []),
            *tokenizer_flags("bpe" if case["tokenizer"] == "task" else "bpe_plain")]


def name_of(case):
    return f"{case['task']}-{case['tokenizer']}-{case['unidirectional']}"


@pytest.mark.parametrize("case", [case for case in CASES if "first" in case], ids=name_of)
def test_windows(case, capsys):
    found = run("inspect", *flags_of(case), capsys=capsys)
    assert [window["index"] for window in found] == list(range(case["windows"] + len(case["failed"])))
    assert [str(window["index"]) for window in found if "error" in window] == list(case["failed"])
    window, golden = found[1], case["first"]
    size = len(window["input_ids"])
    assert window["sep"] == golden["attention_mask"]
    for mine, theirs in ((window["input_ids"], golden["text"]), (window["target"], golden["target"]),
                         (window["loss_mask"], golden["loss_mask"]), *zip(window["position_ids"], golden["position_id"],
                                                                          strict=True)):
        assert mine == theirs[:size] and len(set(theirs[size:])) <= 1, "what is left out is padding"


def test_every_token_but_the_first_is_scored_once(capsys):
    (case,) = [case for case in CASES if case["task"] == "wikitext" and case["tokenizer"] == "task"
               and case["unidirectional"]]
    found = run("inspect", *flags_of(case), capsys=capsys)
    counts = [sum(window["loss_mask"]) for window in found]
    assert counts == [94, *[40] * 20, 24] and sum(counts) == case["tokens"] - 1


@pytest.mark.parametrize("case", CASES if TINY.is_dir() else [], ids=name_of)
def test_scores(case, capsys):
    (found,) = run("evaluate", *flags_of(case), "--load", TINY, capsys=capsys)
    if case["task"] == "multichoice":
        for row in found["rows"]:
            assert row["scores"] == pytest.approx(case["scores"][row["guid"]], abs=1e-3)
        assert {row["guid"]: row["prediction"] for row in found["rows"]} == case["predictions"]
        return
    values = [row["value"] for row in found["rows"] if "value" in row]
    assert values == pytest.approx(case["per_window"], abs=1e-3)
    figures = {name: case[name] for name in ("accuracy", "loss", "ppl", "adjusted_ppl", "tokens", "words")
               if name in case}
    assert found["metrics"] == pytest.approx(figures, rel=1e-4)


def test_scores_are_those_of_the_evaluator(tmp_path, capsys):
    """The task of tasks/glm on the same model, through the evaluator's own batches."""
    load, words = checkpoint("glm", "hf_gpt2"), family_folder("gpt2", tmp_path)
    model, tokenizer = glm.load(load, tokenizer_path=words)
    flags = ["--load", load, "--tokenizer-type", "GPT2BPETokenizer", "--tokenizer-path", words, "--task-mask"]
    file = KIT / "data/evaluation/wikibook.test.txt"
    (found,) = run("evaluate", "--task", "language_model", "--valid-data", file, "--seq-length", "64",
                   "--overlapping-eval", "24", "--losses", "cross_entropy", "--eval-batch-size", "5", *flags,
                   capsys=capsys)
    task = Text(LanguageModelTaskConfig(
        metrics=["PPL", "PPL_token"], generation_length=24, options={"lines": True}, name="task", path="data",
        form=model.config.prompt_form, max_seq_length=64, use_task_mask=True), tokenizer)
    examples = task.examples(file)
    requests = [task.request(example) for example in examples]
    items = task.items(examples, requests, Scorer(model).answer(requests))
    values = [row["value"] for row in found["rows"]]
    assert values == pytest.approx([item["loss"] for item in items], rel=1e-5)
    counts = [item["places"] for item in items]
    assert found["metrics"]["loss"] == pytest.approx(sum(values) / sum(counts), rel=1e-6)
    assert len(found["losses"]["cross_entropy"]) == -(-len(values) // 5)
    assert "cross_entropy" in refused("evaluate", "--task", "language_model", "--valid-data", file, "--losses", "hinge",
                                      *flags, capsys=capsys)
    (found,) = run("evaluate", "--task", "multichoice", "--test-data", KIT / "data/evaluation/multichoice.jsonl",
                   "--seq-length", "64", *flags, capsys=capsys)
    rows = found["rows"]
    assert found["metrics"]["accuracy"] == 100 * sum(row["prediction"] == row["label"] for row in rows) / len(rows)
    assert all(row["scores"][row["prediction"]] == max(row["scores"]) for row in rows)


def test_multiple_choice(tmp_path, capsys):
    rows = [{"inputs_pretokenized": "It is [MASK] today.", "choices_pretokenized": [" cold", " warm and dry"],
             "label": 1},
            {"inputs_pretokenized": "So", "choices_pretokenized": [" yes"], "label": 0}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task", "multichoice", "--test-data", file, "--seq-length", "64", *tokenizer_flags("bpe")]
    first, second = run("inspect", *flags, capsys=capsys)
    assert [first["guid"], first["label"], second["label"], len(first["choices"])] == ["0", 1, 0, 2]
    choice, size = first["choices"][0], first["choices"][0]["sep"]
    place = choice["input_ids"].index(1103)
    assert choice["input_ids"][0] == 1102 and choice["input_ids"][size - 1:size + 1] == [1099, 1100]
    assert choice["position_ids"][0] == [*range(size), *[place] * (len(choice["input_ids"]) - size)]
    assert choice["loss_mask"][size:] == [1] * (len(choice["input_ids"]) - size)
    assert second["choices"][0]["input_ids"][-3:-1] == [1103, 1099] or 1103 in second["choices"][0]["input_ids"]
    (opened, _) = run("inspect", *flags, "--unidirectional", capsys=capsys)
    ids = opened["choices"][0]["input_ids"]
    assert ids[:3] == [1102, 1106, 1100] and opened["choices"][0]["sep"] == 2
    assert set(opened["choices"][0]["position_ids"][0][2:]) == {1}
    assert sum(opened["choices"][0]["loss_mask"]) == choice["loss_mask"].count(1)


def test_a_mask_that_does_not_fit(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"inputs_pretokenized": "[MASK] " + "word " * 50, "choices_pretokenized": [" yes"],
                                "label": 0}) + "\n")
    (found,) = run("inspect", "--task", "multichoice", "--test-data", file, "--seq-length", "32",
                   *tokenizer_flags("bpe"), capsys=capsys)
    assert found["guid"] == "0" and "mask" in found["error"]


@pytest.mark.parametrize(("task", "text", "words"), [
    ("lambda", "", "no rows"), ("lambda", '{"text": " "}\n', ":1: text"), ("wikitext", " \n", "holds no text"),
    ("multichoice", '{"inputs_pretokenized": "a", "choices_pretokenized": [], "label": 0}\n', ":1: choices"),
    ("multichoice", '{"inputs_pretokenized": "a", "choices_pretokenized": ["b"], "label": 1}\n', ":1: label"),
    ("multichoice", "{\n", ":1: "),
])
def test_mistakes_in_files(task, text, words, tmp_path, capsys):
    file, out = tmp_path / "file", tmp_path / "out"
    file.write_text(text)
    flag = "--test-data" if task == "multichoice" else "--valid-data"
    assert words in refused("inspect", "--task", task, flag, file, *tokenizer_flags("bpe"), "--output", out,
                            capsys=capsys)
    assert not out.exists()


def test_mistakes_in_flags(capsys):
    for more, words in ((["--task", "lambda"], "--valid-data"), (["--task", "multichoice"], "--test-data"),
                        (["--task", "lambada"], "did you mean lambda?"), (["--task", "chat"], "--tokenized"),
                        (["--task", "wikitext", "--valid-data", KIT / "data/evaluation/wikitext.test.tokens",
                          "--seq-length", "16"], "--overlapping-eval 32")):
        assert words in refused("inspect", *more, *tokenizer_flags("bpe"), capsys=capsys)


@pytest.fixture
def chat(tmp_path):
    """A folder whose config.json is a ChatGLM-6B's, and rows of ids."""
    if not (KIT / "expected/chatglm/cases.json").exists():
        pytest.skip("only the whole kit has these rows")
    golden = json.loads((KIT / "expected/chatglm/cases.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(golden["architecture"] | {"model_type": "chatglm"}))
    rows = [{name: sample[name] for name in ("input_ids", "labels")} for sample in golden["samples"]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path, rows, golden["position_ids"]


def test_chat_rows(chat, capsys):
    folder, rows, positions = chat
    found = run("inspect", "--task", "chat", "--tokenized", folder / "rows.jsonl", "--load", folder, capsys=capsys)
    assert found == [row | {"position_ids": place} for row, place in zip(rows, positions, strict=True)]


def test_mistakes_in_chat_rows(chat, capsys):
    folder, _, _ = chat
    flags = ["--task", "chat", "--tokenized", folder / "rows.jsonl", "--load", folder]
    for text, words in (("", "no rows"), ('{"input_ids": [1]}\n', ":1: labels"),
                        ('{"input_ids": [1], "labels": [1, 2]}\n', ":1: 1 input_ids"),
                        ('{"input_ids": [1.5], "labels": [1]}\n', ":1: input_ids")):
        (folder / "rows.jsonl").write_text(text)
        assert words in refused("inspect", *flags, capsys=capsys)
    (folder / "rows.jsonl").write_text('{"input_ids": [7, 8], "labels": [-100, 8]}\n')
    (found,) = run("inspect", *flags, capsys=capsys)
    assert "bos" in found["error"]
    (folder / "config.json").write_text("[]")
    assert "config.json" in refused("inspect", *flags, capsys=capsys)
