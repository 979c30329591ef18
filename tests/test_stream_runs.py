"""Streamed layers in the programs: generation and evaluation write what they write without a limit."""

import os

import pytest
import torch

from commands.evaluate import main as evaluate
from commands.generate import main as generate
from glm import loading
from glm.stream import Stream, read_offloaded
from runtime import parallel
from tests.golden_data import quantized_parts, write_checkpoint
from tests.parallel_helper import run_ranks
from tests.tiny_tasks import MODEL, write_tasks

ANY_PRECISION = [word for word in MODEL if word != "--fp32"]


@pytest.fixture
def folder(tmp_path):
    write_tasks(tmp_path, rows=2)
    (tmp_path / "prompts.txt").write_text("The old house [gMASK]\nShe went to [MASK] and came back.", encoding="utf-8")
    return tmp_path


def run(folder, name, *flags):
    """The prompts' answers and the tasks' results, as bytes."""
    written, scored = folder / f"{name}-written", folder / f"{name}-scored"
    assert generate([*ANY_PRECISION, *flags, "--sampling-strategy", "BeamSearchStrategy", "--num-beams", "2",
                     "--out-seq-length", "24", "--input-source", str(folder / "prompts.txt"),
                     "--output-path", str(written)]) == 0
    assert evaluate([*ANY_PRECISION, *flags, "--data-path", str(folder / "data"), "--output", str(scored),
                     str(folder / "tasks")]) == 0
    return (written / "results.jsonl").read_bytes(), (scored / "results.json").read_bytes()


@pytest.mark.parametrize("precision, flag, limit", [
    ("--fp16", "--offload-memory-limit", "0.0034"), ("--fp32", "--bminf_memory_limit", "0.0067")])
def test_files_are_the_same(folder, monkeypatch, precision, flag, limit):
    brought, begin = [], Stream._begin
    monkeypatch.setattr(Stream, "_begin", lambda self, slot: brought.append(slot) or begin(self, slot))
    streamed = run(folder, "streamed", precision, flag, limit)
    count = len(brought)
    assert count > 20
    assert run(folder, "resident", precision) == streamed and len(brought) == count


def on_each_rank(folder, checkpoint):
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    flags = ["--fp32", "--load", checkpoint, "--model-parallel-size", str(world)]
    return [run(folder, name, *flags, *limit) for name, limit in (
        ("resident", ()), ("streamed", ("--offload-memory-limit", "0.0033")))]


def test_two_ranks_with_packed_weights(folder):
    checkpoint = write_checkpoint(folder / "packed", quantized_parts(4))
    (folder / "meeting").mkdir()
    resident, streamed = run_ranks(on_each_rank, 2, folder / "meeting", folder, str(checkpoint))[0]
    assert resident == streamed


def test_the_least_limit_is_one_line(tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("[gMASK]")
    assert generate([*MODEL, "--offload-memory-limit", "0.001", "--input-source", str(tmp_path / "prompts.txt"),
                     "--output-path", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "error: --offload-memory-limit 0.001: this model needs at least" in error and error.count("\n") == 1


@pytest.mark.parametrize("word", ["0", "-1", "nan", "inf", "much"])
def test_a_limit_is_a_number_above_nothing(word, capsys):
    with pytest.raises(SystemExit) as caught:
        generate([*MODEL, "--offload-memory-limit", word])
    assert caught.value.code == 2
    assert f"{word!r} is not a number of GB above 0, for example 12 or 0.5" in capsys.readouterr().err


def test_a_limit_that_is_found_out(tmp_path, monkeypatch):
    """--bminf alone: a share of what is free; here all fits."""
    monkeypatch.setattr("runtime.resources.free_host_memory", lambda: 8e9)
    found = []
    monkeypatch.setattr("glm.loading.read_offloaded", lambda *given: found.append(given) or read_offloaded(*given))
    (tmp_path / "prompts.txt").write_text("The [gMASK]")
    assert generate([*MODEL, "--bminf", "--out-seq-length", "12", "--input-source", str(tmp_path / "prompts.txt"),
                     "--output-path", str(tmp_path / "out")]) == 0
    assert 4e9 in found[0]


def _limit_of_a_rank():
    """Rank 1's device has less free memory."""
    parallel.start(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "free_memory", lambda device: (8e9, 2e9)[parallel.rank()])
        patch.setattr(loading, "local_ranks", lambda: 1)
        return loading._offload_limit(loading.ModelOptions("model", bminf=True, device=torch.device("cpu")))


def test_ranks_find_out_the_same_limit(tmp_path):
    """What one streams all stream: those that keep their layers would wait for it when they record a step."""
    assert run_ranks(_limit_of_a_rank, 2, tmp_path) == [1e9, 1e9]
