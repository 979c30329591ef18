"""Mistakes in a hostfile and with hosts are found before the launch, one clear line each."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import UserError
from runtime.hosts import Host, check_layout, read_hostfile, unreachable
from runtime.program import unlisten
from scripts.launch_hosts import Run, environment_file, for_pdsh
from tests.fake_ssh import FakeSsh

ROOT = Path(__file__).resolve().parent.parent


def hostfile(folder, text):
    path = folder / "hostfile"
    path.write_text(text)
    return path


def test_hosts_comments_and_blank_lines(tmp_path):
    path = hostfile(tmp_path, "# all of them\n\nworker-1 slots=8\n  user@10.0.0.2\tslots=8  # the second\n")
    assert read_hostfile(path) == [Host("worker-1", 8), Host("user@10.0.0.2", 8)]


@pytest.mark.parametrize("text, message", [
    ("a slots=8\nb:8\n", "hostfile:2: 'b:8' is not a host; write its name and its number of devices: worker-1 slots=8"),
    ("a slots=\n", "hostfile:1: 'a slots=' is not a host"),
    ("a slots=8 max_slots=8\n", "hostfile:1: 'a slots=8 max_slots=8' is not a host"),
    ("a,b slots=8\n", "hostfile:1: 'a,b slots=8' is not a host"),
    ("-oProxyCommand=x slots=8\n", "is not a host"),
    ("a slots=8\n\nb slots=8\na slots=4\n", "hostfile:4: host a is there already, in line 1; name it once"),
    ("a slots=999999\n", "hostfile:1: host a has 999999 slots; at most 1024, one for each device"),
    ("a slots=0\n", "hostfile:1: host a has 0 slots; give it at least 1, or leave it out"),
    ("# none\n", "hostfile names no host; it has a line for each, such as: worker-1 slots=8"),
])
def test_a_mistake_names_file_and_line(tmp_path, text, message):
    with pytest.raises(UserError) as error:
        read_hostfile(hostfile(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_hostfile(tmp_path):
    with pytest.raises(UserError, match="HOST_FILE_PATH=.*nowhere: no such file; it has a line for every host"):
        read_hostfile(tmp_path / "nowhere")


@pytest.mark.parametrize("slots, degree, message", [
    ([8, 4, 8], 4, "hosts: host b has 4 slots, a has 8; every host must have as many (use the smallest number)"),
    ([4, 4], 3, "2 hosts with 4 slots are 8 processes, no multiple of MP_SIZE=3; change the slots or MP_SIZE"),
    ([1], 2, "1 host with 1 slot are 1 process, no multiple of MP_SIZE=2"),
    ([4, 4, 4], 6, "MP_SIZE=6 does not fit inside a host with 4 slots: the processes of a tensor-parallel group must "
                   "share a host; MP_SIZE must divide 4"),
    ([4, 4], 8, "MP_SIZE=8 does not fit inside a host with 4 slots"),
])
def test_a_model_that_does_not_fit_on_the_hosts(slots, degree, message):
    hosts = [Host(name, count) for name, count in zip("abc", slots, strict=False)]
    with pytest.raises(UserError) as error:
        check_layout(hosts, degree, Path("hosts"))
    assert message in str(error.value)


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
def test_groups_inside_a_host_are_fine(degree):
    check_layout([Host("a", 8), Host("b", 8)], degree, Path("hosts"))


def test_every_host_that_cannot_be_reached_has_its_line():
    network = FakeSsh({
        "a": (0, "", ""),
        "b": (255, "", "Warning: something\nssh: connect to host b port 2222: Connection refused\n"),
        "c": subprocess.TimeoutExpired("ssh", 20),
        "d": (255, "", "Host key verification failed.\n"),
        "e": (1, "", ""),
        "f": (0, "CHECKPOINT_PATH\n", ""),
    })
    found = unreachable([Host(name, 1) for name in "abcdef"], ["-p", "2222"], {"CHECKPOINT_PATH": "/data/glm"}, network)
    assert found == [
        "host b cannot be reached over ssh: ssh: connect to host b port 2222: Connection refused; this must work "
        "without a question: ssh -p 2222 b true",
        "host c cannot be reached over ssh: no answer within 20 s",
        "host d cannot be reached over ssh: Host key verification failed.; this must work without a question: "
        "ssh -p 2222 d true",
        "host e cannot be reached over ssh: ssh ended with exit code 1; this must work without a question: "
        "ssh -p 2222 e true",
        "host f lacks CHECKPOINT_PATH /data/glm; everything must be at the same path on every host",
    ]
    for command in network.commands:
        assert "BatchMode=yes" in command and "ConnectTimeout=5" in command
        assert command[-1] == "test -e /data/glm || echo CHECKPOINT_PATH; true"


def test_no_ssh_program_is_said_once():
    network = FakeSsh({"a": FileNotFoundError(), "b": FileNotFoundError()})
    found = unreachable([Host("a", 1), Host("b", 1)], run=network)
    assert found == ["there is no program ssh on this machine; install an OpenSSH client"]


# The launch itself


def launch(folder, text, degree=1, **environment):
    """scripts/launch_hosts.py, where the only programs are ssh, which reaches nobody, and pdsh."""
    programs = folder / "bin"
    programs.mkdir()
    for name, body in (("ssh", "echo no route to host >&2; exit 255"), ("pdsh", "exit 1")):
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    command = [sys.executable, str(ROOT / "scripts" / "launch_hosts.py"), str(hostfile(folder, text)), str(degree),
               "evaluation"]
    values = {"PATH": f"{programs}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, env=values, cwd=folder, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("text, environment, message", [
    ("a slots=1\na slots=1\n", {}, "hostfile:2: host a is there already"),
    ("a slots=1\nb slots=1\n", {"MASTER_PORT": "99999"}, "MASTER_PORT=99999: must be a port, 1 to 65535"),
    ("a slots=1\nb slots=1\n", {"NODE_RANK": "2"}, "NODE_RANK=2: must be this host's place in the hostfile, 0 to 1"),
    ("a slots=1\nb slots=1\n", {"NODE_RANK": "0"}, "NODE_RANK without MASTER_ADDR: set it to the address of the first"),
    ("a slots=1\n", {}, "host a cannot be reached over ssh: no route to host"),
])
def test_a_launch_that_cannot_be_is_one_line(tmp_path, text, environment, message):
    done = launch(tmp_path, text, **environment)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_hosts_out_of_reach_have_a_line_each(tmp_path):
    done = launch(tmp_path, "a slots=1\nb slots=1\n")
    assert [line[:20] for line in done.stderr.splitlines()] == ["error: host a cannot", "error: host b cannot"]


def test_the_environment_of_the_other_hosts():
    given = {"DATA_PATH": "/my data/$x", "NCCL_IB_DISABLE": "0", "HOME": "/h", "PYTHONPATH": "/a:/b", "NCCL_P": "50%"}
    users = "# mine\n\nNCCL_IB_DISABLE=1\nOTHER=2\n"
    assert environment_file(given, users).splitlines() == [
        r"DATA_PATH=/my data/\$x", "NCCL_IB_DISABLE=0", "NCCL_P=50%%", "PYTHONPATH=/a:/b",
        "NCCL_IB_DISABLE=1", "OTHER=2",  # later lines win
    ]
    with pytest.raises(UserError, match="NCCL_X has a line end in its value"):
        environment_file({"NCCL_X": "two\nlines"}, "")


@pytest.mark.parametrize("argument, written", [
    ("--limit", "--limit"), ("tasks/*.yaml", "'tasks/*.yaml'"), ("two words", "two words"), ("", "''"),
    ("$x `y` z", r"\$x \`y\` z"), ("50%", "50%%"),
])
def test_arguments_are_written_for_a_shell(argument, written):
    assert for_pdsh(argument) == written


def test_the_script_says_what_is_wrong_with_the_hosts(tmp_path):
    script = ["bash", str(ROOT / "scripts" / "evaluate_multiple_node.sh"), "tasks"]
    hostfile(tmp_path, "a slots=4\n")
    for values, message in (({"HOST_FILE_PATH": "hosts"}, "HOST_FILE_PATH=hosts: no such file"),
                            ({"MP_SIZE": "3"}, "no multiple of MP_SIZE=3")):
        environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, **values}
        done = subprocess.run(script, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture
def signals_given_back():
    """A launch keeps the signals to the end of its program, so that nothing disturbs the ending of its processes."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    unlisten(before)


@pytest.mark.usefixtures("signals_given_back")
def test_hosts_go_on_when_the_terminal_is_closed_under_nohup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    run = Run(["sh", "-c", f"sleep 0.3; kill -HUP {os.getpid()}; sleep 0.3; exit 3"], dict(os.environ), True)
    run.has_reason = True
    assert run.wait() == 3


@pytest.mark.usefixtures("signals_given_back")
def test_lines_of_other_hosts_cannot_steer_the_terminal(capfdbinary):
    run = Run([sys.executable, "-c", r"print('a\x1b]0;x\x07 名字')"], dict(os.environ, PYTHONUTF8="1"), True)
    assert run.wait() == 0
    assert capfdbinary.readouterr().out == "a\\x1b]0;x\\x07 名字\n".encode()
