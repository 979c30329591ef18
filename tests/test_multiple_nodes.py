"""Evaluation on two hosts, through DeepSpeed's launcher: two network namespaces, see tests/two_hosts.py."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.two_hosts import on_two_hosts, without_namespaces, without_ssh

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = f"{sys.executable} {ROOT}/scripts/launch_hosts.py"
TRICKY = ["two words", "$HOME `id` %h", "tasks/*.yaml", "it's", 'say "no" to $x', ""]
MODULE = """
import json, os, sys
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "DATA_PATH", "NCCL_X", "MINE"]
names += ["PYTHONSAFEPATH", "PYTHONPATH"]
addresses = os.popen("ip -4 -o address show eth0").read()
values = {name: os.environ.get(name) for name in names}
line = json.dumps({**values, "arguments": sys.argv[1:], "host": "second" if "10.77.0.2/" in addresses else "first"})
sys.stdout.write(line + "\\n")
if "fails" in sys.argv and os.environ["RANK"] == "3":
    sys.exit("error: no such task")
"""


@pytest.fixture
def job(tmp_path):
    """A module that tells what it was given, and the environment to start it in."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "tell.py").write_text(MODULE)
    (tmp_path / "hosts.txt").write_text("second slots=2\nfirst slots=2\n")
    (tmp_path / ".deepspeed_env").write_text("MINE=7\n")
    return {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}/modules", "PYTHONSAFEPATH": "1", "DS_ACCELERATOR": "cpu",
            "DATA_PATH": "/my $data", "NCCL_X": "5%"}


def told(done, expected_code=0):
    assert done.returncode == expected_code, done.stderr
    return sorted((json.loads(line) for line in done.stdout.splitlines()), key=lambda one: one["RANK"])


def test_every_process_of_two_hosts_gets_arguments_and_environment(tmp_path, job):
    if reason := without_ssh():
        pytest.skip(reason)
    arguments = " ".join("'" + one.replace("'", "'\\''") + "'" for one in TRICKY)
    done = on_two_hosts(f"{LAUNCH} hosts.txt 2 tell {arguments}", tmp_path, with_ssh=True, cwd=tmp_path, env=job)
    everybody = told(done)
    assert done.stderr == ""  # none of the launcher's reports
    assert [one["RANK"] for one in everybody] == ["0", "1", "2", "3"]
    assert [one["host"] for one in everybody] == ["second", "second", "first", "first"]  # as the hostfile has them
    assert [one["LOCAL_RANK"] for one in everybody] == ["0", "1", "0", "1"]
    for one in everybody:
        assert one["arguments"] == TRICKY
        assert one["MASTER_ADDR"] == "10.77.0.2" and one["WORLD_SIZE"] == "4"
        assert (one["DATA_PATH"], one["NCCL_X"], one["MINE"]) == ("/my $data", "5%", "7")
        assert one["PYTHONSAFEPATH"] == "1" and one["PYTHONPATH"] == job["PYTHONPATH"]
    assert (tmp_path / ".deepspeed_env").read_text() == "MINE=7\n"


def test_the_line_of_a_failing_process_is_the_only_one(tmp_path, job):
    if reason := without_ssh():
        pytest.skip(reason)
    done = on_two_hosts(f"{LAUNCH} hosts.txt 1 tell fails", tmp_path, with_ssh=True, cwd=tmp_path, env=job)
    assert done.returncode == 1 and done.stderr == "error: no such task\n"


def test_a_host_out_of_reach(tmp_path, job):
    if reason := without_ssh():
        pytest.skip(reason)
    (tmp_path / "hosts.txt").write_text("first slots=1\n10.77.0.9 slots=1\nsecond slots=1\n")
    done = on_two_hosts(f"{LAUNCH} hosts.txt 1 tell", tmp_path, with_ssh=True, cwd=tmp_path, env=job)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: host 10.77.0.9 cannot be reached over ssh: ssh: connect to host 10.77.0.9")
    assert done.stderr.count("\n") == 1


def test_without_ssh_the_command_is_given_on_every_host(tmp_path, job):
    if reason := without_namespaces():
        pytest.skip(reason)
    script = f"""
        export MASTER_ADDR=10.77.0.2
        NODE_RANK=1 {LAUNCH} hosts.txt 2 tell 'two words' &
        NODE_RANK=0 ip netns exec second {LAUNCH} hosts.txt 2 tell 'two words'
        wait $!
    """
    done = on_two_hosts(script, tmp_path, with_ssh=False, cwd=tmp_path, env=job)
    everybody = told(done)
    assert done.stderr == ""
    assert [(one["RANK"], one["host"]) for one in everybody] == [
        ("0", "second"), ("1", "second"), ("2", "first"), ("3", "first")]
    assert all(one["arguments"] == ["two words"] for one in everybody)
