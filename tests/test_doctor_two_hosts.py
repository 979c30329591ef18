"""The doctor on two hosts: two network namespaces with ssh, see tests/two_hosts.py."""

import json
import os
import re
import shutil
import sys
from importlib.metadata import distribution
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
        f"CHECKPOINT_PATH=${{CHECKPOINT_PATH:-{TP1}}}\nMP_SIZE=1\n"
        f"MODEL_ARGS=(--fp32 --device cpu {shape} --tokenizer-path {TOKENIZER}/ice_text.model)\n")
    (tmp_path / "hosts.txt").write_text("first slots=1\nsecond slots=1\n")
    return {**os.environ, "PYTHON": sys.executable, "CONFIG": "config.sh", "HOST_FILE_PATH": "hosts.txt",
            "DS_ACCELERATOR": "cpu", "MASTER_ADDR": "10.77.0.1", "MY_TOKEN": "s3cret"}


def run(tmp_path, job, script=DOCTOR, with_ssh=True):
    return on_two_hosts(script, tmp_path, with_ssh, cwd=tmp_path, env=job)


@pytest.mark.slow
def test_two_good_hosts_on_a_slow_network(tmp_path, job):
    """400 Mbit/s are 0.05 GB/s; where the system cannot slow a network down, it is a fast one."""
    if reason := without_ssh():
        pytest.skip(reason)
    slow = "tc qdisc add dev eth0 root tbf rate 400mbit burst 256kb latency 100ms"
    done = run(tmp_path, job, f"{slow} && ip netns exec second {slow} && touch slow; {DOCTOR} --json")
    report = json.loads(done.stdout)
    assert [one for one in report["findings"] if one["level"] == "error"] == [] and done.returncode < 2, done.stderr
    assert sorted(report["facts"]) == ["first", "second"]
    assert report["all_reduce"]["world"] == 2 and report["all_reduce"]["bandwidth"] > 0
    if (tmp_path / "slow").exists():
        assert 0.005 < report["all_reduce"]["bandwidth"] < 0.06
        assert "all-reduce-slow" in {one["code"] for one in report["findings"]}
    assert "s3cret" not in done.stdout + done.stderr


def elsewhere(folder, file, change):
    """A command that puts another file in the place of one, on the second host alone."""
    other = folder / f"other-{file.name}"
    other.write_bytes(change(file.read_bytes()))
    return f"nsenter --mount --target $(pgrep -n -x sshd) mount --bind {other} {file}\n"


def test_one_host_out_of_reach_one_with_a_taken_port_and_one_that_differs(tmp_path, job):
    """Each is looked at all the same; nothing is joined. The second host sees other files in some places."""
    if reason := without_ssh():
        pytest.skip(reason)
    (tmp_path / "hosts.txt").write_text("first slots=1\n10.77.0.9 slots=1\nsecond slots=1\n")
    checkpoint = shutil.copytree(TP1, tmp_path / "checkpoint")
    (tmp_path / "listen.py").write_text(
        "import pathlib, socket, time\ns = socket.create_server(('', 29500))\n"
        "pathlib.Path('listens').touch()\ntime.sleep(6000)\n")
    script = f"{sys.executable} listen.py &\nuntil [[ -e listens ]]; do sleep 0.1; done\n"
    (metadata,) = [file.locate() for file in distribution("rich").files if file.name == "METADATA"]
    script += elsewhere(tmp_path, metadata, lambda text: re.sub(rb"(?m)^Version: .*", b"Version: 4.1", text))
    script += elsewhere(tmp_path, ROOT / "runtime" / "files.py", lambda text: text + b"CHANGED = True\n")
    script += elsewhere(tmp_path, checkpoint / "49300" / "mp_rank_00_model_states.pt", lambda data: data[:1000])
    done = run(tmp_path, job | {"CHECKPOINT_PATH": str(checkpoint)}, f"{script} {DOCTOR}; code=$?; kill %1; exit $code")
    assert done.returncode == 2, done.stderr
    lines = {(line.split(": ")[1], line.rpartition("[")[2][:-1]): line for line in done.stdout.splitlines()
             if line.startswith("error: ")}
    assert set(lines) == {("10.77.0.9", "host-unreachable"), ("first", "port"), ("second", "requirement"),
                          ("second", "checkpoint-headers"), ("second", "host-versions"), ("second", "host-code"),
                          ("second", "host-checkpoint")}
    assert "host 10.77.0.9 cannot be reached over ssh: ssh: connect to host" in lines["10.77.0.9", "host-unreachable"]
    assert "port 29500, where the ranks would meet, cannot be used: Address already in use" in lines["first", "port"]
    assert "other versions than on first: rich 4.1 (first: " in lines["second", "host-versions"]


@pytest.mark.slow
def test_without_ssh_a_host_that_never_comes_is_named_by_its_ranks(tmp_path, job):
    if reason := without_namespaces():
        pytest.skip(reason)
    done = run(tmp_path, job | {"NODE_RANK": "0"}, f"{DOCTOR} --rank-seconds 3", with_ssh=False)
    errors = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(errors) == 1, done.stdout + done.stderr
    assert errors[0].startswith("error: rank 1 on second: does not answer") and errors[0].endswith("[rank-missing]")


@pytest.mark.slow
def test_without_ssh_the_command_is_given_on_both(tmp_path, job):
    if reason := without_namespaces():
        pytest.skip(reason)
    script = f"NODE_RANK=1 ip netns exec second {DOCTOR} >second.txt & NODE_RANK=0 {DOCTOR}; code=$?; wait; exit $code"
    done = run(tmp_path, job, script, with_ssh=False)
    assert done.returncode < 2, done.stdout + done.stderr
    assert "all-reduce of 2 ranks over gloo: " in done.stdout
    assert "error" not in (tmp_path / "second.txt").read_text()
