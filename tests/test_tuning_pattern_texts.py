"""--block-lm-ratio: steps that fill blanks in the task's own texts, answers included."""

from dataclasses import replace

import pytest

from tests.golden_finetune import KIT, refused, tokenizer_flags
from tests.tiny_training import log_of, tiny_glm, training_flags
from tuning.__main__ import main
from tuning.data.pattern_texts import filled, open_pattern_texts
from tuning.data.sample import Kind
from tuning.options import ClozeOptions, DataOptions, Settings, TokenizerOptions
from tuning.tasks import samples_of
from tuning.tokenizers import open_for

DATA = KIT / "data" / "superglue"


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("glm"))


def settings_of(task, folder, ratio=1.0, **cloze):
    words = dict(zip(("kind", "path"), tokenizer_flags("bpe")[1::2], strict=False))
    return Settings(TokenizerOptions(words["kind"], words["path"]),
                    DataOptions(task, DATA / folder, "dev", seq_length=64),
                    ClozeOptions(True, block_lm_ratio=ratio, **cloze))


@pytest.mark.parametrize(("task", "folder", "more"), [
    ("copa", "COPA", {}), ("rte", "RTE", {}), ("rte", "RTE", {"multi_token": True}),
    ("copa", "COPA", {"segment_length": 2})])
def test_the_right_answer_stands_in_the_blank(task, folder, more):
    settings = settings_of(task, folder, **more)
    tokenizer, rows = open_for(settings, None), samples_of(settings, None)
    mixed = open_pattern_texts(settings, tokenizer, rows)
    assert mixed.texts and mixed.share == 0.5
    for number, text in mixed.texts.items():
        sample = rows[number]
        owners = list(sample.segment_id or range(len(sample.rows)))
        if sample.kind is Kind.VERBALIZER:
            first, answer = 0, [sample.verbalizer_ids[sample.label]]
        else:
            first = owners.index(sample.label)
            pieces = [row for owner, row in zip(owners, sample.rows, strict=True) if owner == sample.label]
            answer = [row.target[place] for row in pieces for place in range(len(row.target)) if row.loss_mask[place]]
            assert answer.pop() == tokenizer.command("eop")
        context = list(sample.rows[first].input_ids[:sample.rows[first].sep])
        place = context.index(tokenizer.command("[MASK]"))
        assert list(text.ids) == context[:place] + answer + context[place + 1:]
        assert text.loss_mask == (1,) * len(text.ids)


def test_what_has_no_answer_is_left_out():
    settings = settings_of("rte", "RTE")
    tokenizer, rows = open_for(settings, None), samples_of(settings, None)
    commands = open_pattern_texts(settings, tokenizer, rows).commands
    assert filled(replace(rows[0], label=None), commands) is None


def test_which_steps_is_a_function_of_the_seed():
    settings = settings_of("rte", "RTE", ratio=3.0)
    mixed = open_pattern_texts(settings, open_for(settings, None), samples_of(settings, None))
    orders = [mixed.order(step, 4) for step in range(400)]
    drawn = [order for order in orders if order is not None]
    assert 0.65 < len(drawn) / 400 < 0.85 and orders == [mixed.order(step, 4) for step in range(400)]
    assert all(len(order.indices) == 4 and set(order.indices) <= set(mixed.texts) for order in drawn)


def test_a_training(glm, tmp_path, capsys):
    """Steps of both kinds, the same again; validation and epochs are those of the task."""
    flags = training_flags(glm, "--block-lm-ratio", 1, "--bert-prob", 1, steps=8)
    for name in ("run", "again"):
        assert main(["train", *flags, "--save", str(tmp_path / name)]) == 0
    log = log_of(tmp_path / "run")
    kinds = ["rows" in line for line in log]
    assert any(kinds) and not all(kinds) and [line["step"] for line in log] == list(range(8))
    assert log_of(tmp_path / "again") == log
    assert all(line["targets"] > 2 for line in log if "rows" not in line and line["loss"] is not None)
    capsys.readouterr()
    batches = tmp_path / "batches.jsonl"
    batches.write_text('{"rows": [0]}\n', encoding="utf-8")
    for more, message in ((["--batches", batches, "--train-iters", 1], "leave one of them out"),
                          (["--continuous-prompt", "--num-prompt-tokens", 3], "without --continuous-prompt"),
                          (["--short-seq-prob", 0.5, "--seq-length", 33], "--short-seq-prob wants --seq-length 34")):
        assert message in refused("train", *flags, *more, "--save", tmp_path / "other", capsys=capsys)
