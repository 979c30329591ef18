"""Prompts are written only where answers belong, secrets of the environment nowhere; no file is open to more people."""

import os
import stat
import subprocess
import sys
import tempfile

import pytest

from commands import convert as convert_tp
from kernels.cache import cache_folder
from tests.faults import ROOT, command, ended, errors_of, generation_arguments, launched, ranks_of, started
from tests.golden_data import split_state, whole_state, write_checkpoint
from tests.test_faults_killed import corpus  # noqa: F401 (a fixture)
from tests.test_pretrain import arguments as training_arguments
from tests.tiny_checkpoints import tiny_checkpoint
from tests.tiny_tasks import arguments, write_rows, write_tasks
from tools import pretrain

SECRET = "sk-do-not-write-this-down-4711"
PROMPT = "Mrs. Quimby has the illness called xylophobia"


@pytest.fixture
def places(tmp_path):
    """Every folder where a program may leave something that nobody asked for; as its environment has them."""
    names = {"HOME": "home", "TMPDIR": "temporary", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "configuration"}
    for name in names.values():
        (tmp_path / "places" / name).mkdir(parents=True)
    return {name: str(tmp_path / "places" / folder) for name, folder in names.items()} | {
        "API_KEY": SECRET, "GLM_TOKEN": SECRET, "GLM_KERNEL_CACHE": str(cache_folder())}


def run(process, code=0):
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    assert SECRET not in out + err
    return out + err


def holding(folder, text):
    """The files below a folder that hold a text, in whatever they are written, or have it in their name."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")
                  if path.is_file() and (text.encode() in path.read_bytes() or text in path.name))


def modes(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def private():
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_generation_leaves_the_prompt_in_the_answers_alone(tmp_path, places, private):
    (tmp_path / "prompts.txt").write_text(f"id0\t{PROMPT} [XMASK]\nid1\t{PROMPT}\n")
    said = run(command("-m", "generation", *generation_arguments(tmp_path), **places), 2)
    assert PROMPT not in said  # not in the message on its faulty line either
    assert holding(tmp_path, PROMPT) == ["out/id1.txt", "out/results.jsonl", "prompts.txt"]
    assert not holding(tmp_path, SECRET)
    assert modes(tmp_path / "out") == {0o600}  # the user's umask is respected


def test_evaluation_shows_items_in_its_report_alone_and_no_secret(tmp_path, places, private):
    write_tasks(tmp_path, rows=4)
    file = write_rows(tmp_path / "data" / "writing" / "dev.jsonl",
                      [{"inputs_pretokenized": PROMPT, "targets_pretokenized": ["and"]}])
    said = run(command("-m", "evaluation", *arguments(tmp_path), **places))
    assert PROMPT not in said
    assert holding(tmp_path, PROMPT) == [file.relative_to(tmp_path).as_posix(), "out/report.html"]
    assert not holding(tmp_path, SECRET)
    assert modes(tmp_path / "out") == {0o600}
    file.write_text('{"inputs_pretokenized": "' + PROMPT + '", "targets_pretokenized": 7}\n')
    assert ended(started("commands.evaluate", arguments(tmp_path), tmp_path / "log", **places)) == 2
    said = errors_of(tmp_path / "log")
    assert not holding(tmp_path, SECRET)
    assert said.count("\n") == 1 and "field targets_pretokenized" in said and PROMPT not in said


def test_several_processes_and_one_that_dies_leave_nothing_more(tmp_path, places, private):
    (tmp_path / "prompts.txt").write_text(f"id1\t{PROMPT}\n")
    write_checkpoint(tmp_path / "tp2", split_state(whole_state(), 2))
    argv = generation_arguments(tmp_path, load=tmp_path / "tp2")
    run(launched(2, "generation", argv, **places))
    assert holding(tmp_path, PROMPT) == ["out/id1.txt", "out/results.jsonl", "prompts.txt"]
    process = launched(2, "generation", [*argv, "--output-path", str(tmp_path / "other")], **places)
    ranks_of(process, 2)
    process.terminate()
    run(process, 143)
    assert set(holding(tmp_path, PROMPT)) <= {"other/id1.txt", "other/results.jsonl", "out/id1.txt",
                                              "out/results.jsonl", "prompts.txt"}
    assert not holding(tmp_path, SECRET)


def test_a_session_leaves_nothing(tmp_path, places):
    argv = [word for word in generation_arguments(tmp_path) if word not in ("--with-id",)]
    argv[argv.index("--input-source") + 1] = "interactive"
    done = subprocess.run([sys.executable, "-m", "generation", *argv], input=PROMPT + "\n", text=True, cwd=ROOT,
                          env={**os.environ, **places, "OMP_NUM_THREADS": "1"}, capture_output=True, timeout=600)
    assert done.returncode == 0 and PROMPT in done.stdout
    assert not holding(tmp_path, PROMPT) and not holding(tmp_path, SECRET)


def test_converting_and_training_write_no_secret(tmp_path, corpus, places, private, monkeypatch, capfd):  # noqa: F811
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", None)  # what it found for this process before
    tiny_checkpoint(tmp_path / "in", 2)
    assert convert_tp.main(["--input-folder", str(tmp_path / "in"), "--output-folder", str(tmp_path / "out"),
                            "--target-tp", "1"]) == 0
    pretrain.main(training_arguments(corpus, tmp_path / "run", "--stop-at", "1"))
    assert SECRET not in "".join(capfd.readouterr())
    assert not holding(tmp_path, SECRET)
    assert modes(tmp_path / "out") == modes(tmp_path / "run") == {0o600}


def test_other_hosts_hear_of_named_variables_only():
    from scripts.launch_hosts import environment_file

    text = environment_file({"API_KEY": SECRET, "GLM_TOKEN": SECRET, "NCCL_DEBUG": "INFO", "DATA_PATH": "/data",
                             "GLM_RANK_TIMEOUT": "90"}, "")
    assert text == "DATA_PATH=/data\nGLM_RANK_TIMEOUT=90\nNCCL_DEBUG=INFO\n"
