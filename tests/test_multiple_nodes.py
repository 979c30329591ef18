"""Evaluation on two hosts, through DeepSpeed's launcher: two network namespaces, see tests/two_hosts.py."""

import json
import os
import sys
from pathlib import Path

import pytest

import commands.evaluate as command
from tests.golden_data import SHAPE, TOKENIZER, TP1, split_state, whole_state, write_checkpoint
from tests.tiny_tasks import arguments, results, samples, write_tasks
from tests.two_hosts import on_two_hosts, without_namespaces, without_ssh

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = f"{sys.executable} {ROOT}/scripts/launch_hosts.py"
TRICKY = ["two words", "$HOME `id` %h", "tasks/*.yaml", "it's", 'say "no" to $x', ""]
MODULE = """
import json, os, sys, time
names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "DATA_PATH", "NCCL_X", "MINE"]
names += ["PYTHONSAFEPATH", "PYTHONPATH"]
addresses = os.popen("ip -4 -o address show eth0").read()
values = {name: os.environ.get(name) for name in names}
line = json.dumps({**values, "arguments": sys.argv[1:], "host": "second" if "10.77.0.2/" in addresses else "first"})
sys.stdout.write(line + "\\n")
sys.stdout.flush()
if "waits" in sys.argv:
    time.sleep(6000)
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


def test_an_interrupted_launch_leaves_no_process_on_any_host(tmp_path, job):
    if reason := without_ssh():
        pytest.skip(reason)
    script = f"""
        {LAUNCH} hosts.txt 1 tell waits >told.txt &
        for i in $(seq 3000); do [[ $(wc -l <told.txt) -lt 4 ]] || break; sleep 0.2; done
        pgrep -fc '[-]m tell waits'
        kill -TERM $!
        wait $! || echo "ended with $?"
        for i in $(seq 3000); do pgrep -f '[-]m tell waits' >/dev/null || break; sleep 0.2; done
        pgrep -fc '[-]m tell waits' || true
    """
    done = on_two_hosts(script, tmp_path, with_ssh=True, cwd=tmp_path, env=job)
    before, ended, after = done.stdout.splitlines()
    assert int(before) >= 4 and ended == "ended with 143" and after == "0", done.stderr


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


# The evaluation itself

SCRIPT = f"bash {ROOT}/scripts/evaluate_multiple_node.sh"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Tasks, and in out/ what one process on one host makes of them."""
    folder = write_tasks(tmp_path_factory.mktemp("alone"), rows=4)
    assert command.main(arguments(folder)) == 0
    return folder


def settings(folder, checkpoint, degree):
    """The environment of a run: a configuration, two hosts with `degree` slots."""
    shape = " ".join(f"--{name}={value}" for name, value in SHAPE.items())
    (folder / "config.sh").write_text(
        f"CHECKPOINT_PATH={checkpoint}\nMP_SIZE={degree}\n"
        f"MODEL_ARGS=(--fp32 --device cpu {shape} --tokenizer-path {TOKENIZER}/ice_text.model)\n")
    (folder / "hosts.txt").write_text(f"first slots={degree}\nsecond slots={degree}\n")
    return {**os.environ, "PYTHON": sys.executable, "CONFIG": str(folder / "config.sh"), "DS_ACCELERATOR": "cpu",
            "HOST_FILE_PATH": "hosts.txt", "DATA_PATH": str(folder / "data"), "MASTER_ADDR": "10.77.0.1"}


def test_two_hosts_write_the_results_of_a_single_process(alone):
    if reason := without_ssh():
        pytest.skip(reason)
    done = on_two_hosts(f"{SCRIPT} {alone}/tasks --max-batch-tokens 96 --output pdsh", alone, with_ssh=True, cwd=alone,
                        env=settings(alone, TP1, 1))
    assert done.returncode == 0, done.stderr
    assert "Evaluation results of task choices:" in done.stdout
    assert (alone / "pdsh" / "results.json").read_bytes() == (alone / "out" / "results.json").read_bytes()
    assert samples(alone, "pdsh") == samples(alone)
    timings = json.loads((alone / "pdsh" / "timings.json").read_text())
    assert timings["processes"] == 2


@pytest.mark.slow
def test_tensor_parallel_inside_a_host_data_parallel_across(alone, tmp_path):
    """As test_evaluation_run.py's two groups of two processes, on hosts of their own."""
    if reason := without_namespaces():
        pytest.skip(reason)
    checkpoint = write_checkpoint(tmp_path / "tp2", split_state(whole_state(), 2))
    run = f"{SCRIPT} {alone}/tasks --max-batch-tokens 96 --output groups"
    script = f"NODE_RANK=1 ip netns exec second {run} & NODE_RANK=0 {run}; wait $!"
    done = on_two_hosts(script, alone, with_ssh=False, cwd=alone, env=settings(alone, checkpoint, 2))
    assert done.returncode == 0, done.stderr
    expected, found = results(alone)["tasks"], results(alone, "groups")["tasks"]
    assert found.keys() == expected.keys()
    for name, task in expected.items():
        assert found[name]["counts"] == task["counts"]
        for group, metrics in task["groups"].items():
            for metric, values in metrics.items():
                assert found[name]["groups"][group][metric]["average"] == pytest.approx(values["average"], rel=1e-4)


@pytest.mark.slow
def test_a_mistake_in_a_task_file_is_one_line(alone):
    if reason := without_ssh():
        pytest.skip(reason)
    (alone / "wrong.yaml").write_text("name: wrong\ntype: mul\npth: choices\npath: choices\n")
    done = on_two_hosts(f"{SCRIPT} wrong.yaml", alone, with_ssh=True, cwd=alone, env=settings(alone, TP1, 1))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and "wrong.yaml" in done.stderr and done.stderr.count("\n") == 1
