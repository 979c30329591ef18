"""SIGTERM and Ctrl-C: a clean stop with a line that says how to go on, exit code 143 or 130; and a clock that jumps.

The evaluation's are in tests/test_evaluation_cli.py, the launcher's in tests/test_faults_ranks.py.
"""

import ast
import json
import os
import shutil
import signal
import subprocess

import pytest

from commands import convert as convert_tp
from runtime.program import Interrupts, Terminated, terminating
from tests.faults import (
    SECONDS,
    command,
    ended,
    errors_of,
    generation_arguments,
    launched,
    prompts_of,
    said,
    size_of,
    started,
    wait_for,
)
from tests.test_faults_killed import answered, corpus, files_of, scored, written  # noqa: F401 (fixtures)
from tests.test_imports import LIBRARY, tree_of
from tests.test_pretrain import arguments as training_arguments
from tests.test_pretrain import losses
from tests.tiny_checkpoints import assert_same, tensors_of, tiny_checkpoint
from tests.tiny_tasks import arguments
from tools import pretrain
from tools.converting import convert as conversion

ASKED = [(signal.SIGTERM, 143), (signal.SIGINT, 130)]


def asked_to_end(process, number, condition):
    wait_for(condition, process)
    os.kill(process.pid, number)
    return ended(process)


@pytest.mark.parametrize("number, code", ASKED)
def test_generation(tmp_path, number, code):
    (tmp_path / "prompts.txt").write_text(prompts_of(400))
    results = tmp_path / "out" / "results.jsonl"
    process = started("commands.generate", generation_arguments(tmp_path), tmp_path / "log")
    assert asked_to_end(process, number, lambda: size_of(results) > 2000) == code
    assert errors_of(tmp_path / "log") == f"interrupted; --resume goes on from here: {tmp_path / 'out'}\n"
    kept = [json.loads(line)["index"] for line in results.read_text().splitlines()]
    assert len(kept) > 3 and kept == sorted(kept)  # in the order of the prompts
    assert not list((tmp_path / "out").glob(".*.tmp"))


def test_training_saves_the_step_that_it_is_in(corpus, tmp_path, capsys):  # noqa: F811
    def argv(output, *more):
        return training_arguments(corpus, tmp_path / output, "--save-every", "1000", *more)

    log = tmp_path / "out" / "log.jsonl"
    process = started("tools.pretrain", argv("out"), tmp_path / "log")  # of 3000 steps
    assert asked_to_end(process, signal.SIGTERM, lambda: size_of(log) > 500) == 143
    assert errors_of(tmp_path / "log") == (
        f"interrupted; the same command goes on from the last saved step: {tmp_path / 'out'}\n")
    done = len(losses(tmp_path / "out"))
    end = ["--stop-at", str(done + 9)]
    pretrain.main(argv("out", *end))
    assert f"from step {done} to 3000" in capsys.readouterr().out and done > 0
    pretrain.main(argv("whole", *end))
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")


def test_converting(tmp_path, monkeypatch, capsys):
    source, write = tiny_checkpoint(tmp_path / "in", 2), conversion._write_shard
    argv = ["--input-folder", str(source), "--output-folder", str(tmp_path / "out"), "--target-tp", "3"]

    def asked_at_the_second(path, *rest):
        if "01" in path.name:
            os.kill(os.getpid(), signal.SIGTERM)
        return write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_write_shard", asked_at_the_second)
        assert convert_tp.main(argv) == 143
    assert said(capsys.readouterr().err) == "interrupted; the same command goes on\n"
    assert not list((tmp_path / "out").rglob("*.tmp")) and not (tmp_path / "out" / "latest").exists()
    assert convert_tp.main(argv) == 0
    assert "(1 of them finished before)" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "out")
    found = tensors_of(source)
    assert convert_tp.main([*argv[:-1], "2"]) == 0
    assert_same(tensors_of(tmp_path / "out"), found)


def test_a_second_sigterm_does_not_disturb_what_is_being_closed():
    with pytest.raises(Terminated), terminating():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def test_steps_are_not_cut_in_two_unless_ctrl_c_comes_twice():
    with Interrupts() as asked:
        assert not asked
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked
        with pytest.raises(Terminated):
            asked.check()
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("number, waiting", [(signal.SIGTERM, terminating), (signal.SIGTERM, Interrupts),
                                             (signal.SIGINT, Interrupts)])
def test_a_signal_that_is_ignored_stays_so(number, waiting):
    """As SIGINT is in what a shell runs in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with waiting() as asked:
            os.kill(os.getpid(), number)
        assert not asked and signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


# Clock jumps

JUMPS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <sys/time.h>
#include <time.h>
static atomic_uint calls;
static long offset(void) {  /* days and years, there and back, another one at every call */
    unsigned n = atomic_fetch_add(&calls, 1) * 2654435761u;
    return (long)(n % 2000000000u) - 1000000000L;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += offset();
    return code;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict out, void *restrict zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    out->tv_sec = now.tv_sec; out->tv_usec = now.tv_nsec / 1000;
    return 0;
}
"""


@pytest.fixture(scope="module")
def jumping(tmp_path_factory):
    """A library that makes the clock on the wall jump by years at every look at it."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "jumps.c").write_text(JUMPS)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", folder / "jumps.so", folder / "jumps.c", "-ldl"],
                   check=True)
    return str(folder / "jumps.so")


def under(jumping, module, argv, **environment):
    process = command("-m", module, *argv, LD_PRELOAD=jumping, **environment)
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    return out


def test_the_clock_does_jump(jumping):
    process = subprocess.run(["python3", "-c", "import time; print([time.time() // 1e6 for _ in range(4)])"],
                             env={**os.environ, "LD_PRELOAD": jumping}, capture_output=True, text=True)
    assert len(set(json.loads(process.stdout))) == 4


def test_clock_jumps_change_no_answer(jumping, answered, tmp_path):  # noqa: F811
    """The run is interrupted and resumed, too."""
    shutil.copytree(answered, tmp_path / "run")
    results = tmp_path / "run" / "out" / "results.jsonl"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:5]))
    under(jumping, "generation", generation_arguments(tmp_path / "run", "--resume"))
    assert files_of(tmp_path / "run" / "out") == files_of(answered / "out")


@pytest.mark.slow
def test_clock_jumps_change_no_score_of_a_resumed_run(jumping, scored, tmp_path):  # noqa: F811
    shutil.copytree(scored / "out", tmp_path / "out")
    journal = tmp_path / "out" / "journal.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:9]))
    (tmp_path / "out" / "results.json").unlink()
    under(jumping, "evaluation", arguments(scored, output=tmp_path / "out"))
    assert written(tmp_path / "out") == written(scored / "out")


def test_clock_jumps_end_no_run_of_several_processes(jumping, scored, tmp_path):  # noqa: F811
    argv = ["--model-parallel-size", "1", *arguments(scored, output=tmp_path / "out")]
    process = launched(2, "evaluation", argv, LD_PRELOAD=jumping, GLM_RANK_TIMEOUT="5")
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0 and said(err) == "", err
    assert written(tmp_path / "out") == written(scored / "out")


def test_the_clock_on_the_wall_is_only_written_down():
    """Durations come from clocks that cannot be set; what a file or a run is called may hold a date."""
    allowed = {("evaluation/results.py", "strftime"), ("generation/file_run.py", "strftime"),
               ("generation/records.py", "strftime"), ("serving/answers.py", "time")}
    found = set()
    for name in LIBRARY:
        for node in ast.walk(tree_of(name)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if (node.value.id, node.attr) in {("time", "time"), ("time", "time_ns"), ("time", "localtime"),
                                                  ("time", "gmtime"), ("time", "strftime")}:
                    found.add((name, node.attr))
                if node.value.id == "datetime" and node.attr != "timedelta":
                    found.add((name, node.attr))
    assert found <= allowed
