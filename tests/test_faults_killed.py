"""kill -9 at random points, ten times and more for each program: what comes out in the end is what would have come out.

Every kill is a real one of a real process. tests/test_convert_tp_safety.py kills tools/convert_tp.py before each change
of the disk, too, and tests/test_evaluation_run.py the evaluation on one process 18 times.
"""

import random
import re
import shutil
import time
from pathlib import Path

import pytest
import torch

import commands.evaluate as evaluation
import commands.generate as generation
from tests.faults import (
    errors_of,
    generation_arguments,
    kill_at_random,
    prompts_of,
    size_of,
    started,
    started_ranks,
    wait_for,
)
from tests.golden_data import split_state
from tests.test_pretrain import arguments as training_arguments
from tests.test_pretrain import corpus, losses  # noqa: F401 (a fixture)
from tests.tiny_checkpoints import assert_same, tensors_of, tiny_checkpoint, tiny_state
from tests.tiny_tasks import arguments, write_tasks
from tools import pretrain
from tools.converting.manifest import read_manifest
from tools.converting.verify import against_manifest

KILLS = 5  # of each of the two runs of a program


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything that the run has left but its settings, which hold times."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in ("settings.json", ".lock")}


# Generation from a file


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answered")
    (folder / "prompts.txt").write_text(prompts_of(24))
    assert generation.main(generation_arguments(folder)) == 0
    return folder


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_generation(answered, seed):
    chance, output = random.Random(seed), f"killed-{seed}"
    grows, most = answered / output / "results.jsonl", size_of(answered / "out" / "results.jsonl")
    kills = 0
    while kills < KILLS:
        argv = generation_arguments(answered, "--resume", output=output)
        kills += kill_at_random([started("commands.generate", argv, answered / "log")], grows, most, chance)
        if size_of(grows) == most:  # all is answered: begin again
            shutil.rmtree(answered / output)
    assert generation.main(generation_arguments(answered, "--resume", output=output)) == 0
    assert files_of(answered / output) == files_of(answered / "out")


# Evaluation, on other numbers of processes


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    folder = write_tasks(tmp_path_factory.mktemp("scored"))
    assert evaluation.main(arguments(folder)) == 0
    return folder


def written(folder: Path) -> bytes:
    """results.json, but for the code's hash: somebody may edit a file while the tests run."""
    return re.sub(rb'"code": {[^}]*}', b"", (folder / "results.json").read_bytes())


@pytest.mark.parametrize("seed, worlds", [
    (0, (2, 1, 3, 2, 1)), pytest.param(1, (1, 2, 2, 1, 3), marks=pytest.mark.slow)])
def test_evaluation_killed_and_resumed_on_other_numbers_of_processes(scored, seed, worlds):
    chance, output = random.Random(seed), f"killed-{seed}"
    grows, most = scored / output / "journal.jsonl", size_of(scored / "out" / "journal.jsonl")
    argv = ["--model-parallel-size", "1", *arguments(scored, output=output)]
    kills = 0
    for world in worlds * 4:
        kills += kill_at_random(started_ranks("commands.evaluate", argv, scored / "log", world), grows, most,
                                chance) == world
        if kills == KILLS:
            break
    assert kills == KILLS
    last = started_ranks("commands.evaluate", argv, scored / "log", 3 - worlds[-1] % 2)
    for process in last:
        process.join()
    assert [process.exitcode for process in last] == [0] * len(last)
    assert written(scored / output) == written(scored / "out")


# Converting


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_converting(tmp_path, seed):
    source, chance, kills, runs = tiny_checkpoint(tmp_path / "in", 2), random.Random(seed), 0, 0
    while kills < KILLS:
        output = tmp_path / f"out{runs}"
        runs += 1
        argv = ["--input-folder", str(source), "--output-folder", str(output), "--target-tp", "3"]
        for _ in range(3):
            process = started("commands.convert", argv, tmp_path / "log")
            process.join(chance.uniform(0.01, 0.15))
            process.kill()
            process.join()
            kills += process.exitcode == -9
            if (output / "latest").exists():
                assert_same(tensors_of(output), split_state(tiny_state(), 3))
        process = started("commands.convert", argv, tmp_path / "log")
        process.join()
        assert process.exitcode == 0
        assert_same(tensors_of(output), split_state(tiny_state(), 3))
        assert not against_manifest(output, read_manifest(output / "manifest.json")).problems


# Training


@pytest.mark.parametrize("times", [KILLS, pytest.param(2 * KILLS, marks=pytest.mark.slow)])
def test_training(corpus, tmp_path, times):  # noqa: F811
    """The loss curve and the weights are those of a run that nobody disturbed."""
    def argv(output: str, *more: str) -> list[str]:
        return training_arguments(corpus, tmp_path / output, "--save-every", "3", *more)

    chance, log = random.Random(0), tmp_path / "killed" / "log.jsonl"
    for _ in range(times):
        enough = size_of(log) + chance.uniform(0, 1000)  # some 8 steps
        process = started("tools.pretrain", argv("killed"), tmp_path / "log")  # of 3000 steps
        wait_for(lambda enough=enough: size_of(log) > enough, process)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -9, errors_of(tmp_path / "log")
    end = ["--stop-at", str(len(losses(tmp_path / "killed")) + 9)]
    pretrain.main(argv("killed", *end))
    pretrain.main(argv("whole", *end))
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    whole, killed = (torch.load(tmp_path / name / "state.pt", weights_only=True)["model"]
                     for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
