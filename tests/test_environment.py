"""scripts/env.sh: which Python is taken, and how .venv is made."""

import os
import signal
import time

import pytest

from tests.cloned_scripts import Clone


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def wait_until(condition):
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
    process = clone.start("generate.sh", STUB_SECONDS="6000")
    wait_until(lambda: clone.calls("-m pip install"))
    os.killpg(process.pid, number)
    assert process.wait(timeout=600) != 0
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


@pytest.mark.parametrize("name, line", [("requirements.txt", "another>=1"), ("constraints.txt", "another==1.2")])
def test_changed_requirements_are_installed(clone, name, line):
    clone.run("generate.sh")
    with open(clone.root / name, "a") as file:
        file.write(f"{line}\n")
    assert clone.run("generate.sh", STUB_COMPLETE=".venv").returncode == 0
    assert len(clone.calls("-m pip install")) == 2


@pytest.mark.parametrize("fault", [{"STUB_PIP_FAILS": "yes"}, {"STUB_NO_VENV": "1"}])
def test_where_a_change_cannot_be_installed_the_environment_of_before_is_kept(clone, fault):
    clone.run("generate.sh")
    (clone.venv / "precious").touch()
    with open(clone.root / "constraints.txt", "a") as file:
        file.write("another==1.2\n")
    failed = clone.run("generate.sh", STUB_COMPLETE=".venv", **fault)
    assert failed.returncode == 1 and (clone.venv / "precious").exists()
    kept = clone.run("generate.sh", PYTHON=str(clone.venv / "bin" / "python"), STUB_COMPLETE=".venv")
    assert kept.returncode == 0 and kept.err == ""
    assert clone.run("generate.sh", STUB_COMPLETE=".venv").returncode == 0
    assert not (clone.venv / "precious").exists() and not clone.venv.with_name(".venv.before").exists()


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
    assert len(clone.calls("constraints: ")) == 1, "that index has not every version of what torch needs"


def test_the_versions_of_the_lock_are_installed_unless_the_newest_are_asked_for(clone):
    clone.run("generate.sh")
    lock = [f"constraints: {clone.root / 'constraints.txt'}"]
    assert clone.calls("constraints: ") == lock
    assert clone.run("generate.sh", NEWEST="yes", STUB_COMPLETE="yes", VIRTUAL_ENV="/active").returncode == 0
    assert len(clone.calls("-m pip install")) == 2 and clone.calls("constraints: ") == lock
    clone.run("generate.sh", NEWEST="yes")
    assert len(clone.calls("-m pip install")) == 2
    clone.run("generate.sh")
    assert len(clone.calls("-m pip install")) == 3 and clone.calls("constraints: ") == lock * 2
