"""Generation and evaluation with INT8 and INT4 weights: quantised while loading, on disk, and on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from commands import convert as convert_tp
from commands.evaluate import main as evaluate
from commands.generate import main as generate
from glm.checkpoint import find_shards
from glm.shard import read_shard
from glm.spec import is_packed
from kernels.packing import dequantize
from quantization.functional import quantize
from tests.golden_data import GOLDEN, quantized_parts, whole_state, write_checkpoint
from tests.parallel_helper import run_ranks
from tests.tiny_tasks import MODEL, results, samples, write_tasks

ROOT = Path(__file__).resolve().parent.parent
HAS_MODEL = (ROOT / "checkpoints" / "glm-small" / "latest").exists()
CASES = [json.loads(line) for line in (GOLDEN / "generation.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def folder(tmp_path):
    """Two prompts, and tasks of all three types."""
    (tmp_path / "prompts.txt").write_text("\n".join(case["prompt"] for case in CASES[:2]), encoding="utf-8")
    return write_tasks(tmp_path, rows=2)


def run(folder: Path, name: str, *flags: str) -> tuple[list[dict], dict]:
    """Answers to the prompts, and samples of the tasks; the files stay in folder, name-written and name-scored."""
    written, scored = folder / f"{name}-written", folder / f"{name}-scored"
    assert generate([*MODEL, *flags, "--top-k", "1", "--out-seq-length", "32", "--input-source",
                     str(folder / "prompts.txt"), "--output-path", str(written)]) == 0
    assert evaluate([*MODEL, *flags, "--data-path", str(folder / "data"), "--output", str(scored),
                     str(folder / "tasks")]) == 0
    lines = (written / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], samples(folder, scored.name)


def with_weights(state, change):
    """A state dict whose linears' weights `change` has replaced: weight -> {suffix of its name: tensor}."""
    changed = dict(state)
    for name in filter(is_packed, state):
        del changed[name]
        changed |= {name + suffix: tensor for suffix, tensor in change(name, state[name]).items()}
    return changed


@pytest.mark.parametrize("bits, group_size", [
    (8, None), pytest.param(4, None, marks=pytest.mark.slow), (4, 16)])
def test_quantised_on_disk_is_as_quantised_while_loading(folder, bits, group_size):
    """And both answer what a model answers that has the weights which the packed ones stand for."""
    def pack(_, weight):
        return dict(zip(("", "_scale"), quantize(weight, bits, group_size), strict=True))

    def unpack(_, weight):
        return {"": dequantize(*quantize(weight, bits, group_size), bits, torch.float32)}

    packed = write_checkpoint(folder / "packed", [with_weights(whole_state(), pack)])
    meant = write_checkpoint(folder / "meant", [with_weights(whole_state(), unpack)])
    on_disk = run(folder, "on_disk", "--load", str(packed), "--from-quantized-checkpoint")
    if group_size is None:  # 16 is no choice of the command line: real models have larger groups
        loading = run(folder, "loading", "--quantization-bit-width", str(bits))
        assert loading == on_disk
        one, other = (results(folder, f"{name}-scored") for name in ("loading", "on_disk"))
        assert one["tasks"] == other["tasks"]
    answers, scores = run(folder, "meant", "--load", str(meant))
    assert on_disk[0] == answers
    for name, items in scores.items():
        for mine, its in zip(on_disk[1][name], items, strict=True):
            assert mine.get("prediction") == its.get("prediction")
            assert mine.get("log_probs") == pytest.approx(its.get("log_probs"), abs=2e-4)


def test_results_say_how_the_model_was_quantised(folder):
    _, plain = run(folder, "plain")
    _, packed = run(folder, "packed", "--quantization-bit-width", "4")
    assert results(folder, "plain-scored")["settings"]["quantization"] is None
    assert results(folder, "packed-scored")["settings"]["quantization"] == "INT4"
    assert plain != packed


def test_results_of_another_quantisation_are_not_gone_on_with(folder, capsys):
    run(folder, "one", "--quantization-bit-width", "8")
    assert evaluate([*MODEL, "--quantization-bit-width", "4", "--data-path", str(folder / "data"), "--output",
                     str(folder / "one-scored"), str(folder / "tasks")]) == 2
    assert "another run (quantization: INT8, now INT4)" in capsys.readouterr().err


def on_each_rank(folder: str, name: str, checkpoint: str):
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    folder = Path(folder)
    flags = ["--load", checkpoint, "--model-parallel-size", str(world)]
    assert generate([*MODEL, *flags, "--top-k", "1", "--out-seq-length", "32", "--input-source",
                     str(folder / "prompts.txt"), "--output-path", str(folder / f"{name}-written")]) == 0
    return evaluate([*MODEL, *flags, "--data-path", str(folder / "data"), "--output", str(folder / f"{name}-scored"),
                     str(folder / "tasks")])


def test_two_ranks_with_the_original_s_quantised_files(folder, bits=4):
    """As two ranks with the weights that these files stand for."""
    parts = quantized_parts(bits)
    meant = [{name: tensor for name, tensor in with_weights(
        part, lambda name, weight, part=part: {"": dequantize(weight, part[name + "_scale"], bits, torch.float32)},
    ).items() if not name.endswith("_scale")} for part in parts]
    found = {}
    for name, states in (("packed", parts), ("meant", meant)):
        checkpoint = write_checkpoint(folder / name, states)
        (folder / f"meeting-{name}").mkdir()
        assert run_ranks(on_each_rank, 2, folder / f"meeting-{name}", str(folder), name, str(checkpoint)) == [0, 0]
        lines = (folder / f"{name}-written" / "results.jsonl").read_text(encoding="utf-8").splitlines()
        found[name] = [json.loads(line)["text"] for line in lines], {
            file: [item.get("prediction") for item in items]
            for file, items in samples(folder, f"{name}-scored").items()}
    assert found["packed"] == found["meant"]


def test_converted_checkpoints_on_two_ranks(folder):
    """The converter quantises before; the answers are those of the files that it wrote, whatever wrote them."""
    shapes = [word for word in MODEL if "=" in word and "sequence" not in word and "rotary" not in word]
    assert convert_tp.main(["--input-folder", MODEL[1], "--output-folder", str(folder / "int8"), "--target-tp", "2",
                            "--quantization-bit-width", "8", *shapes]) == 0
    assert len(find_shards(folder / "int8")) == 2
    assert read_shard(find_shards(folder / "int8")[0]).tensors[
        "transformer.layers.0.attention.dense.weight"].dtype == torch.int8
    (folder / "meeting").mkdir()
    assert run_ranks(on_each_rank, 2, folder / "meeting", str(folder), "int8", str(folder / "int8")) == [0, 0]


# with the scripts


@pytest.mark.skipif(not HAS_MODEL, reason="the embedded model is not in this clone")
@pytest.mark.parametrize("config, name", [
    pytest.param("int8", "INT8", marks=pytest.mark.slow), ("int4", "INT4, groups of 32 columns")])
def test_the_configurations_run(folder, config, name):
    environment = os.environ | {"CONFIG": f"configs/model_glm_small_{config}.sh", "PYTHON": sys.executable,
                                "MP_SIZE": "1"}
    (folder / "one.txt").write_text("The old house")

    def start(script, *arguments):
        done = subprocess.run(["bash", f"scripts/{script}", *arguments], cwd=ROOT, env=environment, timeout=600,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    start("generate.sh", "--input-source", str(folder / "one.txt"), "--output-path", str(folder / "written"),
          "--out-seq-length", "10", "--top-k", "1")
    (line,) = (folder / "written" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["text"].startswith("The old house ")
    start("evaluate.sh", "tasks/quickstart/words.yaml", "--limit", "2", "--output", str(folder / "scored"))
    assert results(folder, "scored")["settings"]["quantization"] == name
