"""The shell scripts, against an interpreter that only writes down how it was called."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHELL_FILES = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("configs/*.sh"), ROOT / ".ci" / "run"])

# Stands for every Python: the one on PATH and, copied by "-m venv", the one of .venv.
INTERPRETER = r"""#!/bin/bash
printf '%s\n' "$0 $*" >>"$STUB_LOG"
case "$*" in
    *check_requirements.py*) [[ $STUB_COMPLETE == yes ]] || { echo "torch==2.13.0"; exit 1; } ;;
    "-c import sys"*) echo "${STUB_VERSION:-3.11.4}" ;;
    "-c import ensurepip"*) exit "${STUB_NO_VENV:-0}" ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip "*)
        echo "Collecting torch==2.13.0"
        sleep "${STUB_SECONDS:-0}"
        [[ -z $STUB_PIP_FAILS ]] || { echo "ERROR: No matching distribution found for torch==2.13.0"; exit 1; } ;;
    *) printf 'argument: %s\n' "$@" ;;
esac
"""


class Clone:
    """A copy of the scripts, in a folder with a blank in its name, and a PATH whose every Python is the one above."""

    def __init__(self, folder: Path):
        self.root = folder / "a clone"
        for name in ("scripts", "configs"):
            shutil.copytree(ROOT / name, self.root / name)
        shutil.copy(ROOT / "requirements.txt", self.root)
        (self.root / "checkpoints" / "glm-small").mkdir(parents=True)
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.programs = folder / "bin"
        self.programs.mkdir()
        for name in ("python3", "python", "python3.12", "python3.11", "python3.10"):
            (self.programs / name).write_text(INTERPRETER)
            (self.programs / name).chmod(0o755)
        self.log = folder / "calls.log"
        self.log.touch()
        self.venv = self.root / ".venv"

    def start(self, program, *arguments, **environment):
        values = {
            "PATH": f"{self.programs}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.elsewhere),
            "STUB_LOG": str(self.log),
            **environment,
        }
        command = ["bash", str(self.root / "scripts" / program), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.elsewhere, env=values, start_new_session=True, **pipes)

    def run(self, program, *arguments, **environment):
        process = self.start(program, *arguments, **environment)
        process.out, process.err = process.communicate(timeout=600)
        return process

    def calls(self, what):
        return [line for line in self.log.read_text().splitlines() if what in line]


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_every_script_parses(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_what_is_run_by_name_is_executable():
    for path in [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"]:
        assert os.access(path, os.X_OK), path


# The environment


def test_the_first_start_makes_the_environment_and_the_second_uses_it(clone):
    first = clone.run("generate.sh")
    assert first.returncode == 0, first.err
    assert "Making the Python environment" in first.err
    second = clone.run("generate.sh")
    assert second.returncode == 0 and second.err == ""
    assert len(clone.calls("-m pip install")) == 1
    assert clone.calls("-m generation")[1].startswith(str(clone.venv / "bin" / "python"))


def test_a_failed_install_says_what_failed_and_leaves_nothing(clone):
    failed = clone.run("generate.sh", STUB_PIP_FAILS="yes")
    assert failed.returncode == 1
    assert "pip install -r requirements.txt: exit code 1" in failed.err
    assert "ERROR: No matching distribution found for torch==2.13.0" in failed.err
    assert str(clone.root / ".venv.log") in failed.err
    assert not clone.venv.exists()
    assert clone.run("generate.sh").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_install_leaves_nothing(clone, number):
    process = clone.start("generate.sh", STUB_SECONDS="30")
    wait_until(lambda: clone.calls("-m pip install"))
    os.killpg(process.pid, number)
    assert process.wait(timeout=20) != 0
    wait_until(lambda: not clone.venv.exists())
    process.communicate()


def test_an_environment_that_was_cut_off_is_made_again(clone):
    process = clone.start("generate.sh", STUB_SECONDS="30")
    wait_until(lambda: clone.calls("-m pip install"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert (clone.venv / "bin" / "python").exists()
    assert clone.run("generate.sh").returncode == 0
    assert len(clone.calls("-m pip install")) == 2


def test_parallel_starts_make_it_once(clone):
    processes = [clone.start("generate.sh", STUB_SECONDS="1") for _ in range(3)]
    for process in processes:
        process.communicate(timeout=600)
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(clone.calls("-m pip install")) == 1


def test_changed_requirements_are_installed(clone):
    clone.run("generate.sh")
    with open(clone.root / "requirements.txt", "a") as file:
        file.write("another>=1\n")
    assert clone.run("generate.sh").returncode == 0
    assert len(clone.calls("-m pip install")) == 2


def test_the_active_environment_is_used_where_it_has_everything(clone):
    active = clone.run("generate.sh", VIRTUAL_ENV="/somewhere", STUB_COMPLETE="yes")
    assert active.returncode == 0 and active.err == ""
    assert not clone.venv.exists() and not clone.calls("-m pip")


def test_the_system_python_is_used_where_it_has_everything(clone):
    assert clone.run("generate.sh", STUB_COMPLETE="yes").returncode == 0
    assert not clone.venv.exists()


def test_what_the_active_environment_lacks_is_named(clone):
    lacking = clone.run("generate.sh", VIRTUAL_ENV="/somewhere")
    assert lacking.returncode == 0
    assert "lacks: torch==2.13.0" in lacking.err
    assert clone.venv.exists()


def test_an_environment_made_by_hand_is_not_touched(clone):
    (clone.venv / "bin").mkdir(parents=True)
    (clone.venv / "precious").touch()
    foreign = clone.run("generate.sh")
    assert foreign.returncode == 1
    assert "was not made by this script" in foreign.err
    assert (clone.venv / "precious").exists()


def test_an_unsupported_python_is_named(clone):
    old = clone.run("generate.sh", STUB_VERSION="3.9.18")
    assert old.returncode == 1
    assert "Python 3.10, 3.11 or 3.12 is needed" in old.err and "3.9.18" in old.err
    assert not clone.venv.exists()


def test_the_named_interpreter_makes_the_environment(clone):
    named = clone.programs / "python3.12"
    assert clone.run("generate.sh", PYTHON="python3.12").returncode == 0
    assert clone.calls("-m venv")[0].startswith(str(named))
    assert clone.run("generate.sh", PYTHON="python3.12").err == ""
    absent = clone.run("generate.sh", PYTHON="/no/such/python")
    assert absent.returncode == 1 and "PYTHON=/no/such/python" in absent.err


def test_a_python_without_venv_is_named(clone):
    bare = clone.run("generate.sh", STUB_NO_VENV="1")
    assert bare.returncode == 1
    assert "apt install python3-venv" in bare.err
    assert not clone.venv.exists()


def test_another_index_for_torch(clone):
    clone.run("generate.sh", TORCH_INDEX_URL="https://example.org/cpu")
    torch_alone, the_rest = clone.calls("-m pip install")
    assert torch_alone.endswith("--index-url https://example.org/cpu torch==2.13.0")
    assert "index-url" not in the_rest


# Starting a model


def arguments_of(process):
    assert process.returncode == 0, process.err
    return [line.removeprefix("argument: ") for line in process.out.splitlines()]


def test_arguments_arrive_as_they_were_given(clone):
    process = clone.run("generate.sh", "--input-source", "my prompts.txt", "--top-k", "1", STUB_COMPLETE="yes")
    small = str(clone.root / "checkpoints" / "glm-small")
    expected = ["-m", "generation", "--load", small, "--input-source", "my prompts.txt", "--top-k", "1"]
    assert arguments_of(process) == expected


def test_several_devices_are_several_processes(clone):
    given = {"CHECKPOINT_PATH": str(clone.elsewhere), "CONFIG": "configs/model_glm_130b.sh", "STUB_COMPLETE": "yes"}
    arguments = arguments_of(clone.run("generate.sh", "--seed", "1", **given))
    assert arguments[:3] == [str(clone.root / "scripts" / "launch.py"), "8", "generation"]
    assert arguments[3:7] == ["--model-parallel-size", "8", "--load", str(clone.elsewhere)]
    assert arguments[-2:] == ["--seed", "1"]
    assert "glm-130b" in arguments


@pytest.mark.parametrize(
    "given, message",
    [
        ({"CONFIG": "configs/no_such.sh"}, "CONFIG=configs/no_such.sh: no such file; there are: configs/model_"),
        ({"CHECKPOINT_PATH": "/no/such"}, "CHECKPOINT_PATH=/no/such: no such folder"),
        ({"CONFIG": "configs/model_glm_130b.sh"}, "CHECKPOINT_PATH=/path/to/glm-130b-sat: no such folder"),
        ({"MP_SIZE": "two"}, "MP_SIZE=two: must be the number of devices"),
    ],
)
def test_mistakes_stop_before_anything_is_installed(clone, given, message):
    process = clone.run("generate.sh", **given)
    assert process.returncode == 2
    assert process.err.startswith("error: ") and message in process.err
    assert not clone.calls("")


# launch.py


PROGRAM = """
import os, signal, sys
sys.stdout.write(f"{sys.argv[1:]} {os.environ['WORLD_SIZE']}\\n")
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL) if "killed" in sys.argv else sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize(
    "arguments, code, message",
    [(["0"], 0, ""), (["2"], 2, ""), (["killed"], 137, "error: the process of rank 1 was ended by SIGKILL")],
)
def test_the_launcher_ends_as_its_processes_do(tmp_path, arguments, code, message):
    """torchrun's tracebacks and reports would hide the line that says what is wrong."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(ROOT / "scripts" / "launch.py"), "2", "program", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == code
    assert done.stdout.splitlines() == [f"{arguments} 2"] * 2 or code
    assert done.stderr.startswith(message) and len(done.stderr.splitlines()) == bool(message), done.stderr


# check_requirements.py


def check(tmp_path, text):
    file = tmp_path / "requirements.txt"
    file.write_text(text)
    command = [sys.executable, str(ROOT / "scripts" / "check_requirements.py"), str(file)]
    return subprocess.run(command, capture_output=True, text=True)


def test_this_environment_meets_the_requirements(tmp_path):
    result = check(tmp_path, (ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "", "")


def test_missing_and_outdated_packages_are_listed(tmp_path):
    result = check(tmp_path, "# why\npytest>=1  # old enough\npytest>=999\nno-such-package==1.0,<2\n")
    assert result.returncode == 1
    outdated, missing = result.stdout.splitlines()
    assert outdated.startswith("pytest>=999 (found ") and missing == "no-such-package==1.0,<2"
