"""Tables of learned positions: a longer one keeps the checkpoint's rows, and what does not fit is refused."""

import pytest
import torch

from tests.golden_finetune import refused, run, tokenizer_flags
from tests.tiny_training import log_of, tiny_glm, training_flags, weights_of
from tuning.__main__ import main
from tuning.model import load
from tuning.options import CheckpointOptions

TABLES = ["transformer.position_embeddings.weight", "transformer.block_position_embeddings.weight"]
LONGER = ["--max-sequence-length", "150"]


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("glm"))


def test_a_longer_table_keeps_its_rows(glm):
    before = weights_of(glm)
    found = [load(CheckpointOptions(glm, shape={"max_sequence_length": 150})) for _ in range(2)]
    tables = [[tuned.named()[name] for name in TABLES] for tuned in found]
    for name, one, other in zip(TABLES, *tables, strict=True):
        assert one.shape == (151, 32) and torch.equal(one, other)
        assert torch.equal(one[:129], before[name]) and 0.01 < float(one[129:].std()) < 0.03
    assert found[0].learned_places == 128
    assert load(CheckpointOptions(glm, shape={"max_sequence_length": 128})).learned_places is None


def test_a_training_on_longer_rows(glm, tmp_path, capsys):
    """Ends in a checkpoint that says itself how long it is."""
    flags = training_flags(glm, *LONGER, "--save", tmp_path / "run", steps=1)
    assert main(["train", *flags]) == 0
    assert "the checkpoint learned 128 places, and 150 were asked for" in capsys.readouterr().err
    assert all(weights_of(tmp_path / "run")[name].shape == (151, 32) for name in TABLES)
    assert "the checkpoint learned 128" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    flags = training_flags(tmp_path / "run")
    run("evaluate", *flags[:flags.index("--batch-size")], capsys=capsys)


def test_rows_behind_the_table_are_refused_before_the_first_step(tmp_path, capsys):
    """Not in the hour in which the longest row comes up."""
    folder = tmp_path / "titles"
    folder.mkdir()
    for name in ("source", "target"):
        (folder / f"train.{name}").write_text("a bell\n" * 3, encoding="utf-8")
    load = tiny_glm(tmp_path / "glm")
    flags = ["--task", "customization", "--data-dir", str(folder), *tokenizer_flags("bpe"), "--load", str(load),
             "--train-iters", "1", "--save", str(tmp_path / "run"), "--tgt-seq-length", "8"]
    told = refused("train", *flags, "--src-seq-length", "140", capsys=capsys)
    assert "the row train-0 needs the position 139, but the model has 129, from 0" in told
    assert "--max-sequence-length 140" in told and not (tmp_path / "run" / "log.jsonl").exists()
    assert main(["train", *flags, "--src-seq-length", "140", "--max-sequence-length", "140"]) == 0
    assert len(log_of(tmp_path / "run")) == 1


@pytest.mark.parametrize(("more", "message"), [
    ([*LONGER, "--lora-rank", "2"], "an adapter does not hold new positions"),
    (["--max-sequence-length", "64"], "transformer.position_embeddings.weight has")])
def test_what_cannot_be_is_one_line(more, message, glm, tmp_path, capsys):
    assert message in refused("train", *training_flags(glm, "--save", tmp_path / "run", *more), capsys=capsys)


def test_documents_longer_than_the_table_are_refused(glm, tmp_path, capsys):
    (tmp_path / "documents.jsonl").write_text('{"text": "A bell is cast in a pit."}\n')
    told = refused("train", "--task", "pretrain", "--train-data", tmp_path / "documents.jsonl", "--load", glm,
                   *tokenizer_flags("bpe"), "--save", tmp_path / "run", "--train-iters", "1", capsys=capsys)
    assert "--seq-length 512 needs the position 511, but the model has 129" in told
