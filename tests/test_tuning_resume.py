"""A training that is killed goes on with the same command, and leaves the very same files; others are refused."""

import json
import os
import random
import shutil
import signal
import sys
import time

import pytest

from tests import parallel_helper
from tests.tiny_training import tiny_glm, training_flags
from tuning.__main__ import main

STEPS = 12
RESULT = ("log.jsonl", "parameters.json", f"{STEPS}/mp_rank_00_model_states.pt", "architecture.json",
          "latest_checkpointed_iteration.txt")


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    return training_flags(tiny_glm(tmp_path_factory.mktemp("glm")))


@pytest.fixture(scope="module")
def whole(flags, tmp_path_factory):
    """A run that nothing has disturbed, with dropout."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(["train", *flags, "--save", str(folder)]) == 0
    return folder


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in RESULT}


def test_the_same_command_gives_the_same_files(flags, whole, tmp_path):
    assert main(["train", *flags, "--save", str(tmp_path / "run")]) == 0
    assert files_of(tmp_path / "run") == files_of(whole)
    assert not (tmp_path / "run" / "state.pt").exists()


def test_a_finished_run_is_left_alone(flags, whole):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*")
              if path.is_file() and path.name != ".lock"}
    assert main(["train", *flags, "--save", str(whole)]) == 0
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*")
                      if path.is_file() and path.name != ".lock"}


class Killed(BaseException):
    """As sudden as SIGKILL for all that is on the disk."""


@pytest.mark.parametrize("moment", ["before a line", "torn line", "before a state", "before the checkpoint"])
def test_killed_at_a_moment(flags, whole, tmp_path, monkeypatch, moment):
    from tuning import run as runs
    from tuning import training

    folder = tmp_path / "run"
    log, state = runs.Run.log, runs.Run.save_state

    def killed(*_, **__):
        raise Killed

    def kill_in_log(self, line):
        if line["step"] == 7:
            if moment == "torn line":
                self._log.add(b'{"step": 7, "lo')
            raise Killed
        log(self, line)

    def kill_in_state(self, content):
        if content["step"] == 9:
            raise Killed
        state(self, content)

    if moment in ("before a line", "torn line"):
        monkeypatch.setattr(runs.Run, "log", kill_in_log)
    elif moment == "before a state":
        monkeypatch.setattr(runs.Run, "save_state", kill_in_state)
    else:
        monkeypatch.setattr(training, "save", killed)
    with pytest.raises(Killed):
        main(["train", *flags, "--save", str(folder)])
    monkeypatch.undo()
    assert main(["train", *flags, "--save", str(folder)]) == 0
    assert files_of(folder) == files_of(whole)


def train(flags, folder):
    sys.exit(main(["train", *flags, "--save", str(folder)]))


def steps_done(folder):
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def test_killed_by_the_system(flags, whole, tmp_path):
    folder = tmp_path / "run"
    process = parallel_helper.start(train, flags, folder)
    while steps_done(folder) < 5 and process.is_alive():
        time.sleep(0.001)
    process.kill()
    process.join()
    assert steps_done(folder) >= 5  # it has not ended by itself before
    assert main(["train", *flags, "--save", str(folder)]) == 0
    assert files_of(folder) == files_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random(flags, whole, tmp_path, seed):
    draw, folder = random.Random(seed), tmp_path / "run"
    for _ in range(3):
        process = parallel_helper.start(train, flags, folder)
        until = steps_done(folder) + draw.randrange(STEPS)
        while steps_done(folder) < until and process.is_alive():
            time.sleep(0.001)
        time.sleep(draw.random() * 0.1)
        process.kill()
        process.join()
    assert main(["train", *flags, "--save", str(folder)]) == 0
    assert files_of(folder) == files_of(whole)


def test_ctrl_c_keeps_what_was_done(flags, whole, tmp_path, monkeypatch, capsys):
    from tuning import run as runs

    folder, log = tmp_path / "run", runs.Run.log

    def interrupted(self, line):
        log(self, line)
        if line["step"] == 4:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(runs.Run, "log", interrupted)
    assert main(["train", *flags, "--save", str(folder)]) == 130
    assert "goes on" in capsys.readouterr().err and steps_done(folder) == 5
    monkeypatch.undo()
    seen = []
    monkeypatch.setattr(runs.Run, "log", lambda self, line: (seen.append(line["step"]), log(self, line)))
    assert main(["train", *flags, "--save", str(folder)]) == 0
    assert seen == list(range(5, STEPS)) and files_of(folder) == files_of(whole)


@pytest.mark.parametrize("more, named", [
    (["--lr", "2e-3"], "--lr is 0.002, but the run"),
    (["--seed", "1"], "--seed is 1, but"),
    (["--pattern-id", "1"], "--pattern-id is 1"),
])
def test_another_command_is_refused(flags, whole, capsys, more, named):
    before = files_of(whole)
    assert main(["train", *flags, *more, "--save", str(whole)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and named in error and error.count("\n") == 1 and files_of(whole) == before


def test_other_files_are_refused(flags, whole, tmp_path, capsys):
    rows = tmp_path / "COPA"
    shutil.copytree(flags[flags.index("--data-dir") + 1], rows)
    file = rows / "train.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace("The", "A", 1), encoding="utf-8")
    other = tiny_glm(tmp_path / "glm", seed=1)
    for more, named in ((["--data-dir", rows], "the rows: not what"), (["--load", other], "--load: not what")):
        assert main(["train", *flags, *map(str, more), "--save", str(whole)]) == 2
        assert named in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(flags, tmp_path, capsys):
    (tmp_path / "latest").write_text("100")
    assert main(["train", *flags, "--save", str(tmp_path)]) == 2
    assert "holds latest, but no training" in capsys.readouterr().err


def test_a_damaged_state(flags, whole, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    facts = json.loads((whole / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({name: facts[name] for name in ("settings", "contents")}))
    (folder / "state.pt").write_bytes(b"PK\x03\x04 nothing")
    assert main(["train", *flags, "--save", str(folder)]) == 2
    assert "state.pt is damaged" in capsys.readouterr().err
