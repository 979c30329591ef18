"""python -m tuning predict, and what evaluate tells on the way."""

import json
from pathlib import Path

import pytest
import torch

from tests.golden_data import family_folder
from tests.golden_family import checkpoint
from tests.golden_finetune import refused, run
from tuning.__main__ import main

SMALL = str(Path(__file__).resolve().parent.parent / "checkpoints" / "glm-small")
TASK = """\
text_a: "{text}"
labels: ["no", "yes"]
verbalizers: {"no": "No", "yes": "Yes"}
patterns:
- a: ["~{text_a}", _]
"""
ROWS = [{"text": "It rained for a week, and the river", "label": "no", "idx": 7},
        {"text": "She sang all day long. " * 8, "label": "yes", "idx": 3}]
CLOZE = ["--cloze-eval", "--seq-length", "24"]
TEXTS = ["--task", "customization", "--task-mask", "--select-topk", "--tgt-seq-length", "6"]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.yaml").write_text(TASK, encoding="utf-8")
    rows = "".join(json.dumps(row) + "\n" for row in ROWS)
    for split in ("val", "test"):
        (tmp_path / f"{split}.jsonl").write_text(rows, encoding="utf-8")
        (tmp_path / f"{split}.source").write_text("".join(row["text"] + "\n" for row in ROWS), encoding="utf-8")
        (tmp_path / f"{split}.target").write_text("was high.\n歌声很好。\n", encoding="utf-8")
    return tmp_path


def test_labels_are_those_of_evaluate_in_the_order_of_idx(folder, capsys):
    flags = ["--task", folder / "mine.yaml", *CLOZE, "--load", SMALL]
    (found,) = run("evaluate", *flags, capsys=capsys)
    lines = run("predict", *flags, capsys=capsys)  # of the test split, whose rows are the same here
    names = [("no", "yes")[row["prediction"]] for row in found["rows"]]
    assert lines == [{"idx": 3, "label": names[1]}, {"idx": 7, "label": names[0]}]


def test_texts_and_references_lie_beside_each_other(folder, capsys):
    flags = ["--data-dir", folder, *TEXTS, "--load", SMALL]
    (found,) = run("evaluate", *flags, "--split", "test", capsys=capsys)
    assert run("predict", *flags, "--output", folder / "test.hyps", capsys=capsys) == []
    written = (folder / "test.hyps").read_text(encoding="utf-8").splitlines()
    assert written == [" ".join(row["prediction"].split()) for row in found["rows"]]
    assert (folder / "test.refs").read_text(encoding="utf-8").splitlines()[1] == "歌声很好。"
    assert all({"rouge-1", "rouge-2", "rouge-l"} <= set(row) for row in found["rows"])


def test_evaluate_tells_what_rows_lost_and_what_rouge_does_not_see(folder, capsys):
    assert main(["evaluate", "--task", str(folder / "mine.yaml"), *CLOZE, "--load", SMALL]) == 0
    told = capsys.readouterr().err
    assert "1 of 2 rows lost the end of their first text: they are too long\n" in told
    assert "tokens were cut in all" in told
    words = [*TEXTS, "--no-decode", "--load", SMALL, "--src-seq-length", "24"]
    assert main(["evaluate", "--data-dir", str(folder), *words]) == 0
    told = capsys.readouterr().err
    assert "1 of 2 rows lost their beginning (source)" in told and "1 of 2 rows have Chinese references" in told


@pytest.mark.parametrize(("more", "message"), [
    (["--load", "nowhere"], "no checkpoint folder nowhere"), (["--losses", "squared"], "there is no loss squared"),
    (["--continuous-prompt", "--num-prompt-tokens", "3", "--prompt-encoder", "of five.pt"],
     "of five.pt has 5 tokens, but the samples have 3 places")])
def test_a_mistake_is_one_line_where_rows_would_be_told_of(more, message, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "mine.yaml").write_text(TASK.replace("- a: [", "- a: [P, "), encoding="utf-8")
    torch.save({"prompt_spell.spell_embeddings.weight": torch.zeros(5, 384)}, "of five.pt")
    words = ["--task", folder / "mine.yaml", *CLOZE, "--load", SMALL, *more]
    assert message in refused("evaluate", *words, "--output", "scores.json", capsys=capsys)
    assert not (folder / "scores.json").exists()


@pytest.mark.parametrize(("more", "message"), [
    (["--task", "lambda"], "evaluate gives their figures"), (["--task", "chat"], "--test-file FILE"),
    (["--task", "gigaword"], "--output FILE"), (["--task", "xyz"], "no such task")])
def test_tasks_without_predictions_are_refused(more, message, folder, capsys):
    assert message in refused("predict", *more, "--data-dir", folder, "--load", SMALL, capsys=capsys)


def test_replies_of_a_chat_model_are_drawn_by_seed_and_row(tmp_path, capsys):
    words = family_folder("chatglm", tmp_path)
    rows = [{"content": text, "summary": f"{text}!"} for text in ("你好", "an old house", "再见")]
    (tmp_path / "dev.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    flags = ["predict", "--task", "chat", "--test-file", tmp_path / "dev.json", "--prompt-column", "content",
             "--response-column", "summary", "--max-source-length", "16", "--max-target-length", "5", "--load",
             checkpoint("chatglm", "hf_chatglm_untied"), "--tokenizer-path", words]
    found = run(*flags, capsys=capsys)
    assert [row["labels"] for row in found] == ["你好!", "an old house!", "再见!"]
    assert all(set(row) == {"labels", "predict"} for row in found)
    assert run(*flags, "--eval-batch-size", "1", capsys=capsys) == found
    assert run(*flags, "--seed", "7", capsys=capsys) != found
