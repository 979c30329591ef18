"""The shell scripts, against an interpreter that only writes down how it was called; test_environment.py has env.sh."""

import os
import subprocess
import sys

import pytest

from tests.cloned_scripts import ROOT, Clone

SHELL_FILES = sorted([*ROOT.glob("scripts/*.sh"), *ROOT.glob("configs/*.sh"), ROOT / ".ci" / "run"])

@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_every_script_parses(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_what_is_run_by_name_is_executable():
    for path in [*ROOT.glob("scripts/*.sh"), ROOT / ".ci" / "run"]:
        assert os.access(path, os.X_OK), path


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


SOURCED = {"env.sh", "model.sh", "read_config.sh", "tune.sh", "ptuning.sh"}
WITH_FILES = {"ds_finetune_superglue.sh", "ds_finetune_superglue_prompt.sh", "ds_finetune_seq2seq.sh",
              "finetune_blank.sh", "ds_pretrain_nvidia.sh", "evaluate_seq2seq.sh"}  # test_tuning_originals.py
STARTED = [f"scripts/{path.name}" for path in SHELL_FILES
           if path.parent.name == "scripts" and path.name not in SOURCED | WITH_FILES]


@pytest.fixture
def outputs(clone, tmp_path):
    """A function: the standard output of every script that is started, by name, however it is started."""
    for name in ("apt-get", "timeout"):  # .ci/run installs nothing here
        (clone.programs / name).write_text("#!/bin/sh\n")
        (clone.programs / name).chmod(0o755)

    def of_all(command, folder=clone.root, **environment):
        values = clone.environment(STUB_COMPLETE="yes", **environment)
        done = {name: subprocess.run([*command(name), "a  b"], cwd=folder, env=values, capture_output=True, text=True)
                for name in [*STARTED, ".ci/run"]}
        assert {name: result.stderr for name, result in done.items()} == dict.fromkeys(done, "")
        assert all("argument: a  b\n" in result.stdout for result in done.values())
        return {name: result.stdout for name, result in done.items()}

    return of_all


def test_scripts_find_their_clone_whatever_way_they_are_started(clone, outputs, tmp_path):
    """By a path, relative where CDPATH names a folder with other scripts, by another shell than Bash, by links."""
    (tmp_path / "other" / "scripts").mkdir(parents=True)
    (tmp_path / "other" / ".ci").mkdir()
    usual = outputs(lambda name: ["bash", str(clone.root / name)], folder=clone.elsewhere)
    assert outputs(lambda name: ["bash", name], CDPATH=f".:{tmp_path / 'other'}") == usual
    assert outputs(lambda name: ["sh", name], CDPATH=str(tmp_path / "other")) == usual
    for name in usual:
        link = clone.elsewhere / name.replace("/", " ")
        link.symlink_to(clone.root / name)
        link.with_suffix(".again").symlink_to(link.name)
    assert outputs(lambda name: ["bash", name.replace("/", " ")], folder=clone.elsewhere) == usual


@pytest.mark.parametrize("start, end", [("", "\r\n"), ("\ufeff", "\n"), ("\ufeff", "\r\n")], ids=repr)
def test_a_configuration_from_an_editor_of_windows(clone, start, end):
    small = (clone.root / "configs" / "model_glm_small.sh").read_text().replace("MODEL_ARGS=()", "MODEL_ARGS=(--bf16)")
    (clone.elsewhere / "mine.sh").write_text(start + small.replace("\n", end), newline="")
    plain = clone.run("generate.sh", CONFIG="configs/model_glm_small.sh", STUB_COMPLETE="yes")
    process = clone.run("generate.sh", CONFIG="mine.sh", STUB_COMPLETE="yes")
    assert arguments_of(process) == [*arguments_of(plain), "--bf16"] and process.err == ""


def test_a_configuration_may_look_beside_itself(clone):
    (clone.elsewhere / "configs" / "model").mkdir(parents=True)
    lines = ['CHECKPOINT_PATH="$(dirname "${BASH_SOURCE[0]}")/model"', "MP_SIZE=1", "MODEL_ARGS=()"]
    (clone.elsewhere / "configs" / "mine.sh").write_text("\n".join(lines))
    process = clone.run("generate.sh", CONFIG="configs/mine.sh", CDPATH=str(clone.root), STUB_COMPLETE="yes")
    assert arguments_of(process)[3] == str(clone.elsewhere / "configs" / "model")


def test_git_keeps_the_line_ends_of_scripts():
    """A carriage return is a part of the word for Bash; git for Windows adds them where nothing is said."""
    attributes = (ROOT / ".gitattributes").read_text().splitlines()
    assert {"*.sh text eol=lf", ".ci/run text eol=lf"} <= set(attributes)


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
