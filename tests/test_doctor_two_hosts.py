"""The doctor on two hosts: two network namespaces with ssh, see tests/two_hosts.py."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.golden_data import SHAPE, TOKENIZER, TP1
from tests.two_hosts import on_two_hosts, without_namespaces, without_ssh

ROOT = Path(__file__).resolve().parent.parent
DOCTOR = f"bash {ROOT}/scripts/doctor.sh"


@pytest.fixture
def job(tmp_path):
    shape = " ".join(f"--{name}={value}" for name, value in SHAPE.items())
    (tmp_path / "config.sh").write_text(
        f"CHECKPOINT_PATH={TP1}\nMP_SIZE=1\n"
        f"MODEL_ARGS=(--fp32 --device cpu {shape} --tokenizer-path {TOKENIZER}/ice_text.model)\n")
    (tmp_path / "hosts.txt").write_text("first slots=1\nsecond slots=1\n")
    return {**os.environ, "PYTHON": sys.executable, "CONFIG": "config.sh", "HOST_FILE_PATH": "hosts.txt",
            "DS_ACCELERATOR": "cpu", "MASTER_ADDR": "10.77.0.1", "MY_TOKEN": "s3cret"}


def run(tmp_path, job, script=DOCTOR, with_ssh=True):
    return on_two_hosts(script, tmp_path, with_ssh, cwd=tmp_path, env=job)


def test_two_good_hosts(tmp_path, job):
    if reason := without_ssh():
        pytest.skip(reason)
    done = run(tmp_path, job, f"{DOCTOR} --json")
    report = json.loads(done.stdout)
    assert report["findings"] == [] and done.returncode == 0, done.stderr
    assert sorted(report["facts"]) == ["first", "second"]
    assert report["all_reduce"]["world"] == 2 and report["all_reduce"]["bandwidth"] > 0
    assert "s3cret" not in done.stdout + done.stderr


def test_a_host_out_of_reach_and_one_with_a_taken_port(tmp_path, job):
    """The other is looked at all the same; nothing is joined."""
    if reason := without_ssh():
        pytest.skip(reason)
    (tmp_path / "hosts.txt").write_text("first slots=1\n10.77.0.9 slots=1\n")
    taken = f"{sys.executable} -c 'import socket, time; s = socket.create_server((\"\", 29500)); time.sleep(200)' &\n"
    done = run(tmp_path, job, f"{taken} sleep 1; {DOCTOR}; code=$?; kill %1; exit $code")
    lines = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert [line.rpartition("[")[2] for line in lines] == ["host-unreachable]", "port]"], lines
    assert lines[0].startswith("error: 10.77.0.9: host 10.77.0.9 cannot be reached over ssh: ssh: connect to host")
    assert lines[1].startswith("error: first: port 29500, where the ranks would meet, cannot be used: Address already")


def test_without_ssh_a_host_that_never_comes_is_named_by_its_ranks(tmp_path, job):
    if reason := without_namespaces():
        pytest.skip(reason)
    done = run(tmp_path, job | {"NODE_RANK": "0"}, f"{DOCTOR} --rank-seconds 3", with_ssh=False)
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1, done.stdout + done.stderr
    assert errors[0].startswith("error: rank 1 on second: does not answer") and errors[0].endswith("[rank-missing]")


def test_without_ssh_the_command_is_given_on_both(tmp_path, job):
    if reason := without_namespaces():
        pytest.skip(reason)
    script = f"NODE_RANK=1 ip netns exec second {DOCTOR} >second.txt & NODE_RANK=0 {DOCTOR}; code=$?; wait; exit $code"
    done = run(tmp_path, job, script, with_ssh=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all-reduce of 2 ranks over gloo: " in done.stdout
    assert "all is well" in (tmp_path / "second.txt").read_text()
