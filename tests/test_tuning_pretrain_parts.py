"""Pretraining holds documents out: their parts, the losses of validation and test, and batches without a blank."""

import json

import numpy as np
import pytest

from tests.golden_finetune import refused, tokenizer_flags
from tests.test_evaluation_report import Page
from tests.tiny_training import log_of, tiny_glm
from tuning import loop
from tuning.__main__ import main
from tuning.data.documents import Documents, divided
from tuning.options import shares_of

TEXT = "A bell is cast in a pit. First a core of clay is built. Then the false bell is shaped over it. " * 2


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("glm"))


def flags_of(folder, glm, *more, texts=(TEXT,) * 12):
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": f"{number} {text}"}) + "\n" for number, text in enumerate(texts)))
    return ["train", "--task", "pretrain", "--train-data", str(path), "--seq-length", "48", *tokenizer_flags("bpe"),
            "--load", str(glm), "--batch-size", "2", "--lr", "1e-2", "--warmup", "0", *map(str, more)]


def documents(lengths):
    ids = tuple(np.full(length, number, dtype=np.int32) for number, length in enumerate(lengths))
    return Documents(ids, tuple(range(len(ids))), tuple(np.cumsum(lengths).tolist()), np.zeros(1, dtype=bool), 0, 1)


def test_documents_are_divided_by_a_fixed_order():
    order = np.arange(1000)
    np.random.RandomState(1234).shuffle(order)
    parts = divided(documents([1] * 1000), shares_of("949,50,1"))
    assert [len(part) for part in parts] == [949, 50, 1]
    assert [int(ids[0]) for part in parts for ids in part.ids] == order.tolist()
    assert [prompt for part in parts for prompt in part.prompts] == order.tolist()
    assert all(part.bounds == tuple(range(1, len(part) + 1)) for part in parts)


def test_parts_of_a_small_corpus_have_a_document_each_that_no_other_has():
    parts = divided(documents([3, 3, 3]), shares_of("949,50,1"))
    assert [part if part is None else len(part) for part in parts] == [2, 1, None]
    assert [part if part is None else len(part) for part in divided(documents([3, 3]), shares_of("1,0,1"))] == [
        1, None, 1]
    assert divided(documents([3, 3, 0]), shares_of("1,1,1")).count(None) == 1  # a part without text


def test_losses_of_validation_and_test(glm, tmp_path):
    saved = tmp_path / "run"
    flags = flags_of(tmp_path, glm, "--split", "8,2,2", "--eval-interval", 2, "--eval-iters", 3)
    assert main([*flags, "--train-iters", "5", "--save", str(saved)]) == 0
    log = log_of(saved)
    assert [line["step"] for line in log if "validation" in line] == [1, 3, 4]
    assert [line["step"] for line in log if "test" in line] == [4]
    last = log[-1]["validation"]
    assert last["ppl"] == pytest.approx(np.exp(last["loss"])) and last["loss"] < log[1]["validation"]["loss"]
    rows = json.loads((saved / "validation" / "step-4.json").read_text(encoding="utf-8"))["rows"]
    assert min(row["loss"] for row in rows) <= last["loss"] <= max(row["loss"] for row in rows)
    text = Page((saved / "report.html").read_text(encoding="utf-8")).text
    assert "loss of the test documents" in text and "loss by step" in text and "kept" not in text
    assert not (saved / "best").exists()


def test_validation_leaves_the_training_as_it_is(glm, tmp_path):
    flags = flags_of(tmp_path, glm, "--split", "8,2,2", "--eval-iters", 2, "--train-iters", 3)
    for every in (1, 0):
        assert main([*flags, "--eval-interval", str(every), "--save", str(tmp_path / str(every))]) == 0
    assert [line["loss"] for line in log_of(tmp_path / "1")] == [line["loss"] for line in log_of(tmp_path / "0")]
    assert not any("validation" in line for line in log_of(tmp_path / "0"))


def test_a_file_of_documents_to_validate_with(glm, tmp_path, capsys):
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": TEXT}) + "\n")
    flags = flags_of(tmp_path, glm, "--valid-data", tmp_path / "held.jsonl", "--eval-iters", 1, "--train-iters", 1)
    assert main([*flags, "--save", str(tmp_path / "run")]) == 0
    assert "loss" in log_of(tmp_path / "run")[0]["validation"]
    (tmp_path / "held.jsonl").write_text(json.dumps({"text": TEXT[9:]}) + "\n")
    capsys.readouterr()
    assert "--valid-data: not what the run" in refused(*flags, "--save", tmp_path / "run", capsys=capsys)


def test_a_step_without_a_blank_passes_and_is_counted(glm, tmp_path, capsys, monkeypatch):
    """So that a run of days does not end; one that never finds a blank does."""
    monkeypatch.setattr(loop, "MOST_EMPTY", 20)
    flags = flags_of(tmp_path, glm, "--bert-prob", 0.8, "--bert-mask-ratio", 0.9, "--train-iters", 20)
    assert main([*flags, "--save", str(tmp_path / "run")]) == 0
    log = log_of(tmp_path / "run")
    empty = [line["step"] for line in log if line.get("empty")]
    assert 0 < len(empty) < 20 and all(log[step]["loss"] is None for step in empty)
    note = f"{len(empty)} of 20 steps passed without learning, the first of them step {empty[0]}"
    assert note in capsys.readouterr().err
    assert note in Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8")).text
    capsys.readouterr()
    never = [*flags, "--bert-prob", "1", "--bert-mask-ratio", "0.95", "--train-iters", "30"]
    assert "step 20: its samples have no target" in refused(*never, "--save", tmp_path / "never", capsys=capsys)


@pytest.mark.parametrize(("more", "message"), [
    (["--split", "half"], "'half' is none of train, dev, test"), (["--split", "0,1"], "as 949,50,1"),
    (["--split", "1,2,3,4"], "as 949,50,1"), (["--split", "9,1", "--task", "copa"], "--task copa has the splits")])
def test_mistakes(more, message, glm, tmp_path, capsys):
    assert message in refused(*flags_of(tmp_path, glm, "--train-iters", 1, "--save", tmp_path / "run", *more),
                              capsys=capsys)
