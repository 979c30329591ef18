"""One of several processes is killed, stopped, stuck or asked to end: the others stop in time; the run goes on."""

import inspect
import os
import signal
import time

import pytest

from runtime.heartbeat import Watch
from tests.faults import (
    ROOT,
    SECONDS,
    command,
    ended,
    errors_of,
    generation_arguments,
    launched,
    prompts_of,
    ranks_of,
    said,
    size_of,
    started,
    started_ranks,
    wait_for,
)
from tests.golden_data import split_state, whole_state, write_checkpoint
from tests.test_faults_killed import files_of, written
from tests.tiny_tasks import arguments, write_tasks

LIMIT = 5.0  # seconds; a user's default is 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tasks, prompts and a checkpoint for two tensor-parallel ranks."""
    folder = write_tasks(tmp_path_factory.mktemp("ranks"), rows=10)
    (folder / "prompts.txt").write_text(prompts_of(24))
    write_checkpoint(folder / "tp2", split_state(whole_state(), 2))
    return folder


def program(folder, name, output):
    """Module, arguments, and the file that grows while it works."""
    if name == "generation":
        argv = generation_arguments(folder, "--resume", output=output, load=folder / "tp2")
        return "generation", argv, folder / output / "results.jsonl"
    argv = [*arguments(folder, output=output), "--load", str(folder / "tp2"), "--micro-batch-size", "1"]
    return "evaluation", argv, folder / output / "journal.jsonl"


def same(folder, name, output):
    if name == "generation":
        return files_of(folder / output) == files_of(folder / f"{name}-whole")
    return written(folder / output) == written(folder / f"{name}-whole")


@pytest.fixture(scope="module")
def undisturbed(folder):
    for name in ("generation", "evaluation"):
        module, argv, _ = program(folder, name, f"{name}-whole")
        ranks = started_ranks(f"{module}.__main__", argv, folder / "log", 2)
        assert [ended(rank) for rank in ranks] == [0, 0], errors_of(folder / "log0")


@pytest.mark.parametrize("name, rank, number", [
    ("evaluation", 1, signal.SIGSTOP), ("generation", 0, signal.SIGKILL),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("evaluation", 0, signal.SIGKILL), ("generation", 0, signal.SIGSTOP), ("evaluation", 0, signal.SIGSTOP),
        ("evaluation", 1, signal.SIGKILL), ("generation", 1, signal.SIGSTOP), ("generation", 1, signal.SIGKILL))),
])
def test_a_rank_that_hangs_or_dies_is_named_by_the_others_and_the_run_goes_on(folder, undisturbed, name, rank, number):
    """Without a launcher that would end the others, as where the ranks are on several hosts."""
    output = f"{name}-{rank}-{number}"
    module, argv, grows = program(folder, name, output)
    ranks = started_ranks(f"{module}.__main__", argv, folder / "log", 2, GLM_RANK_TIMEOUT=str(LIMIT))
    try:
        wait_for(lambda: size_of(grows) > 0, ranks[0])
        os.kill(ranks[rank].pid, number)
        lost = ranks[rank].pid
        assert ended(ranks[1 - rank]) == 2
    finally:
        ranks[rank].kill()
        ranks[rank].join()
    message = errors_of(folder / f"log{1 - rank}")
    assert message.count("\n") == 1, message
    host = os.uname().nodename
    assert message.startswith(f"error: rank {rank} (process {lost} on host {host}) has not been heard of for ")
    assert "what is finished is kept: start again (python -m generation: with --resume)" in message
    again = started_ranks(f"{module}.__main__", argv, folder / "log", 2)
    assert [ended(process) for process in again] == [0, 0]
    assert same(folder, name, output)


@pytest.mark.parametrize("number, code, words", [
    (signal.SIGSTOP, 2, ["error: rank 1 (process "]),
    pytest.param(signal.SIGKILL, 137, ["interrupted; ", "error: the process of rank 1 was ended by SIGKILL"],
                 marks=pytest.mark.slow),
])
def test_the_launcher_ends_with_its_ranks(folder, number, code, words):
    module, argv, grows = program(folder, "evaluation", f"launched-{number}")
    launcher = launched(2, module, argv, GLM_RANK_TIMEOUT=str(LIMIT))
    ranks = ranks_of(launcher, 2)
    wait_for(lambda: size_of(grows) > 0)
    os.kill(ranks[1], number)
    lines = said(launcher.communicate(timeout=SECONDS)[1]).splitlines()
    assert launcher.returncode == code
    assert len(lines) == len(words) and all(map(str.startswith, lines, words)), lines
    assert not any(os.path.exists(f"/proc/{rank}") for rank in ranks)


def test_the_launcher_passes_sigterm_on_and_the_run_goes_on(folder, undisturbed):
    module, argv, grows = program(folder, "evaluation", "asked")
    launcher = launched(2, module, argv)
    wait_for(lambda: size_of(grows) > 0)
    launcher.terminate()
    _, errors = launcher.communicate(timeout=SECONDS)
    assert launcher.returncode == 143
    assert said(errors) == f"interrupted; the same command goes on from here: {folder / 'asked'}\n"
    again = started_ranks(f"{module}.__main__", argv, folder / "log", 2)
    assert [ended(rank) for rank in again] == [0, 0] and errors_of(folder / "log0") == ""
    assert same(folder, "evaluation", "asked")


WAITING = """
import os, sys, time
folder = sys.argv[1]
open(f"{folder}/{os.environ['RANK']}", "w").close()
while not os.path.exists(f"{folder}/go"):
    time.sleep(0.01)
"""


def launched_waiting(folder):
    """A launcher and two ranks that wait for a file."""
    (folder / "waiting.py").write_text(WAITING)
    launcher = launched(2, "waiting", [str(folder)], PYTHONPATH=f"{ROOT}:{folder}")
    wait_for(lambda: (folder / "0").exists() and (folder / "1").exists())
    return launcher


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("is_ignored", [True, False])
def test_what_is_ignored_at_the_start_stays_ignored(tmp_path, number, is_ignored):
    """nohup ignores SIGHUP, a shell SIGINT for what it starts in the background; the launcher's ranks inherit that."""
    before = signal.signal(number, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        launcher = launched_waiting(tmp_path)
    finally:
        signal.signal(number, before)
    for process in (*ranks_of(launcher, 2), launcher.pid) if is_ignored else (launcher.pid,):
        os.kill(process, number)
    if is_ignored:
        (tmp_path / "go").touch()
    launcher.communicate(timeout=SECONDS)
    assert launcher.returncode == (0 if is_ignored else 128 + number)


def test_no_rank_outlives_a_launcher_that_is_killed(tmp_path):
    launcher = launched_waiting(tmp_path)
    ranks = ranks_of(launcher, 2)
    launcher.kill()
    launcher.communicate()
    wait_for(lambda: not any(is_alive(rank) for rank in ranks))


def is_alive(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# A rank that computes, and one that is stuck

LONG = """
import datetime, os, sys, time
import torch
from torch.distributed import distributed_c10d
from runtime import parallel
parallel.start(2)
parallel.collect(0)  # both are there, however long starting took
for group in (distributed_c10d.GroupMember.WORLD, parallel.mpu.get_model_parallel_group()):
    distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=float(sys.argv[1])), group)
if os.environ["RANK"] == "1":
    print("rank 1 is", os.getpid(), flush=True)
    time.sleep(float(sys.argv[2]))  # stands for a computation of its own, or for a lock that nobody will open
try:
    parallel.collect(1)
    parallel.collect(2)
except RuntimeError as error:
    lost = parallel.lost(error)
    if lost is None:
        raise
    print("lost" if lost.is_mine_to_say else "others say", lost, flush=True)
    parallel.stop()
    sys.exit(2)
parallel.stop()
print("good", flush=True)
"""


def long_ranks(tmp_path, timeout, computes, limit):
    """All in seconds: of a collective, of the second rank, of silence."""
    (tmp_path / "long.py").write_text(LONG)
    return launched(2, "long", [timeout, computes], PYTHONPATH=f"{ROOT}:{tmp_path}", GLM_RANK_TIMEOUT=limit)


@pytest.mark.slow
def test_a_long_computation_is_not_taken_for_a_hanging_rank(tmp_path):
    """Twice the limit without a word from the main thread."""
    launcher = long_ranks(tmp_path, "600", "8", limit="4")
    out, err = launcher.communicate(timeout=SECONDS)
    assert launcher.returncode == 0 and out.count("good") == 2, err


@pytest.mark.slow
def test_a_rank_that_never_comes_is_named_at_the_time_out_of_a_collective(tmp_path):
    """It lives, so it is heard; but the others have waited for longer than they are allowed to."""
    launcher = long_ranks(tmp_path, "1", "6000", limit="10")
    out, err = launcher.communicate(timeout=SECONDS)
    stuck = out.partition("rank 1 is ")[2].split()[0]
    assert launcher.returncode == 2 and err == ""
    assert f"lost rank 1 (process {stuck} on host " in out
    assert "did not come to where the others waited for it (time-out); what is finished is kept" in out


@pytest.mark.parametrize("value", ["soon", *(pytest.param(value, marks=pytest.mark.slow)
                                             for value in ("-1", "nan", "inf"))])
def test_a_limit_that_is_no_number_of_seconds(value, tmp_path):
    argv = ["--model-parallel-size", "2", "--output", str(tmp_path / "out"), "tasks/quickstart"]
    process = started("evaluation.__main__", argv, tmp_path / "log", GLM_RANK_TIMEOUT=value, RANK="0", WORLD_SIZE="2")
    assert ended(process) == 2
    assert errors_of(tmp_path / "log") == (
        f"error: GLM_RANK_TIMEOUT={value}: must be a number of seconds, 0 to wait for ever\n")


class CountedWatch(Watch):
    """Knows how often it has spoken. It stands in a program of its own below, too."""

    beats = 0

    def _send(self, leaves):
        super()._send(leaves)
        self.beats += 1


def test_who_is_never_heard_is_not_missed():
    """As where a network lets no datagram through."""
    given_up = []
    watch = CountedWatch(0.2, given_up.append)
    place = watch.place("127.0.0.1")
    watch.start(b"0" * 16, 0, [place, place._replace(port=9)])
    wait_for(lambda: watch.beats > 25)
    watch.stop()
    assert not given_up


def test_the_silence_of_others_does_not_count_while_this_process_is_stopped(tmp_path):
    """Suspended and resumed as a whole, a run goes on; so it does whatever the clock on the wall does meanwhile."""
    source = f"""
import os, time
from runtime.heartbeat import Watch
{inspect.getsource(CountedWatch)}
def give_up(lost):
    print("gave up", flush=True)
    os._exit(2)
watches = [CountedWatch(3.0, give_up) for _ in range(2)]
places = [watch.place("127.0.0.1") for watch in watches]
for rank, watch in enumerate(watches):
    watch.start(b"0" * 16, rank, places)
def beat(count):
    before = [watch.beats for watch in watches]
    while any(watch.beats < old + count for watch, old in zip(watches, before)):
        time.sleep(0.01)
beat(3)
print("up", flush=True)
while not os.path.exists({str(tmp_path / "resumed")!r}):
    time.sleep(0.01)
beat(5)
for watch in watches:
    watch.stop()
"""
    process = command("-c", source)
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)  # longer than the limit
    process.send_signal(signal.SIGCONT)
    (tmp_path / "resumed").touch()
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (0, "", "")
