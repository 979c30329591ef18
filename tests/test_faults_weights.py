"""Somebody writes into a checkpoint's file, cuts it short, replaces or deletes it while a model runs from it."""

import json
import os
import shutil
import time

import pytest

import commands.generate as generation
import glm
from glm.checkpoint import shard_name
from runtime.mapped import check_unchanged
from tests.faults import ended, errors_of, generation_arguments, prompts_of, size_of, started, wait_for
from tests.golden_data import ITERATION, SHAPE, TOKENIZER, whole_state, write_checkpoint
from tests.test_faults_killed import scored  # noqa: F401 (a fixture)
from tests.tiny_tasks import arguments


def mapped_checkpoint(folder):
    """The golden checkpoint in the precision that it is run in, so that its weights stay in the file; the shard."""
    state = {name: tensor.float() for name, tensor in whole_state().items()}
    return write_checkpoint(folder, [state]) / ITERATION / shard_name(0)


def in_the_middle(folder, program, argv, grows, change):
    """What a run says, and its exit code, when `change(shard)` is done while it computes with a copy of the weights."""
    shard = mapped_checkpoint(folder / "checkpoint")
    process = started(program, [*argv, "--load", str(folder / "checkpoint")], folder / "log")
    wait_for(lambda: size_of(grows) > 0, process)
    change(shard)
    return ended(process), errors_of(folder / "log")


def write_into(shard):
    time.sleep(0.05)  # file systems count the time of a change in ticks
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(b"\0" * 4096)


def cut_short(shard):
    os.truncate(shard, 4096)


@pytest.mark.parametrize("program, memory", [
    ("commands.generate", []), ("commands.evaluate", []),
    ("commands.generate", ["--offload-memory-limit", "0.0066"]),  # 3 of 4 layers are streamed from the file
])
@pytest.mark.parametrize("change", [write_into, cut_short])
def test_a_shard_that_changes_after_it_was_loaded(tmp_path, scored, program, memory, change):  # noqa: F811
    (tmp_path / "prompts.txt").write_text(prompts_of(400))
    if program == "commands.generate":
        argv, grows = generation_arguments(tmp_path), tmp_path / "out" / "results.jsonl"
    else:
        argv = [*arguments(scored, output=tmp_path / "out"), "--micro-batch-size", "1"]
        grows = tmp_path / "out" / "journal.jsonl"
    code, message = in_the_middle(tmp_path, program, [*argv, *memory], grows, change)
    assert code == 2 and message.startswith(f"error: {tmp_path / 'checkpoint'}") and message.count("\n") == 1, message
    assert "was written to while it was in use" in message or "was cut short" in message
    assert "what was answered before is kept: put the right file back and start again" in message
    kept = [json.loads(line) for line in grows.read_text().splitlines()]
    assert kept
    if program == "commands.generate":
        assert [row["text"] for row in kept[:10]] == texts_of(tmp_path, [row["id"] for row in kept[:10]])
    else:
        right = [json.loads(line)["answer"] for line in (scored / "out" / "journal.jsonl").read_text().splitlines()]
        assert all(any(is_close(row["answer"], answer) for answer in right) for row in kept)


def texts_of(folder, names):
    """What an undisturbed run answers to these prompts."""
    lines = dict(line.split("\t") for line in prompts_of(400).splitlines())
    (folder / "prompts.txt").write_text("".join(f"{name}\t{lines[name]}\n" for name in names))
    assert generation.main(generation_arguments(folder, output="right")) == 0
    return [json.loads(line)["text"] for line in (folder / "right" / "results.jsonl").read_text().splitlines()]


def is_close(one, other):
    """The same answer, of another batch."""
    if one.keys() != other.keys() or "beams" in one:
        return one.get("beams") == other.get("beams")
    return len(one["log_probs"]) == len(other["log_probs"]) and one["log_probs"] == pytest.approx(other["log_probs"],
                                                                                                  abs=1e-4)


def test_a_file_that_is_replaced_or_deleted_does_no_harm(tmp_path):
    shard = mapped_checkpoint(tmp_path / "checkpoint")
    model, _ = glm.load(tmp_path / "checkpoint", tokenizer_path=TOKENIZER, **SHAPE)
    assert model.mapped_files
    shutil.copy(shard, tmp_path / "new")
    os.replace(tmp_path / "new", shard)
    check_unchanged(model)
    shard.unlink()
    check_unchanged(model)
    mapped_checkpoint(tmp_path / "other")
    half, _ = glm.load(tmp_path / "other", dtype="bfloat16", tokenizer_path=TOKENIZER, **SHAPE)
    assert not half.mapped_files  # its weights were converted into memory
