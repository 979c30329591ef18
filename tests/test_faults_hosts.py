"""Two hosts, through DeepSpeed's launcher: a process on the other one is stopped, or the cable to it is pulled."""

import re

import pytest

import commands.evaluate as command
from tests.golden_data import TP1
from tests.test_faults_killed import written
from tests.test_multiple_nodes import SCRIPT, settings
from tests.tiny_tasks import arguments, write_tasks
from tests.two_hosts import on_two_hosts, without_ssh

LIMIT = 4
FAULTS = {
    "stopped": """
        for process in $(pgrep -f '[-]m evaluation'); do
            tr '\\0' '\\n' <"/proc/$process/environ" | grep -qx RANK=1 && kill -STOP "$process"
        done""",
    "cable": "ip link set eth0 down",
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = write_tasks(tmp_path_factory.mktemp("alone"), rows=12)
    assert command.main([*arguments(folder), "--micro-batch-size", "1"]) == 0
    return folder


@pytest.mark.slow  # one host: test_faults_ranks.py
@pytest.mark.parametrize("fault", ["stopped", "cable"])
def test_the_other_host_is_named_and_the_run_goes_on(alone, fault):
    if reason := without_ssh():
        pytest.skip(reason)
    run = f"{SCRIPT} {alone}/tasks --max-batch-tokens 96 --micro-batch-size 1 --output {fault}"
    script = f"""
        {run} >report.txt &
        launcher=$!
        for i in $(seq 6000); do [[ ! -s {fault}/journal.jsonl ]] || break; sleep 0.1; done
        {FAULTS[fault]}
        wait $launcher || echo "ended with $?"
        for i in $(seq 4000); do pgrep -f '[-]m evaluation' >/dev/null || break; sleep 0.1; done
        pgrep -fc '[-]m evaluation' || true
    """
    environment = settings(alone, TP1, 1) | {"GLM_RANK_TIMEOUT": str(LIMIT)}
    done = on_two_hosts(script, alone, with_ssh=True, cwd=alone, env=environment)
    found = re.fullmatch(r"ended with 2\n(\d+)\n", done.stdout)
    assert found, done.stdout + done.stderr
    if fault == "stopped":  # over a cable that is not there nobody can be ended
        assert int(found[1]) == 0
    line = done.stderr.splitlines()[0]
    assert re.match(r"error: rank 1 \(process \d+ on host .*\) has not been heard of for ", line), done.stderr
    again = on_two_hosts(run, alone, with_ssh=True, cwd=alone, env=environment)
    assert again.returncode == 0, again.stderr
    assert written(alone / fault) == written(alone / "out")
