"""How far a run is: lines now and then, or a bar on a terminal; the time left goes by the length of the items."""

import os
import pty
import re
import sys
from types import SimpleNamespace

import pytest

from evaluation.plan import Work
from evaluation.requests import GenerateRequest, ScoreRequest
from evaluation.rounds import Rounds
from generation.file_run import Pace, most_of
from generation.params import BeamParams, SamplingParams
from runtime import parallel
from runtime.show import Progress
from tests.faults import said


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_every_ten_seconds_and_weigh_items_by_their_length(capsys):
    clock = FakeClock()
    with Progress(100, 1000, clock=clock) as progress:
        for seconds, items, weight in ((4.0, 10, 400), (11.0, 1, 100), (12.0, 1, 0), (22.0, 38, 400)):
            clock.now = seconds
            progress.advance(items, weight)
    assert capsys.readouterr().err.splitlines() == [
        "11/100 items, 1.0 items/s", "50/100 items, 2.3 items/s"]


def test_the_time_left_is_not_guessed_at_from_the_first_minute(capsys):
    clock = FakeClock()
    with Progress(100, 1000, clock=clock) as progress:
        for seconds, items, weight in ((59.0, 10, 100), (75.0, 10, 400)):
            clock.now = seconds
            progress.advance(items, weight)
    assert capsys.readouterr().err.splitlines() == [
        "10/100 items, 0.2 items/s", "20/100 items, 0.3 items/s, 1 min 15 s left"]


def test_before_anything_else_is_known_the_time_left_goes_by_the_length(capsys):
    clock, known = FakeClock(), []
    with Progress(100, 1000, clock=clock, left=lambda: sum(known)) as progress:
        for clock.now in (75.0, 100.0):
            progress.advance(10, 250)
            known.append(33.0)
    assert capsys.readouterr().err.splitlines() == [
        "10/100 items, 0.1 items/s, 3 min 45 s left", "20/100 items, 0.2 items/s, 33 s left"]


def test_the_time_left_is_that_of_the_tokens_where_a_batch_ends_as_a_whole():
    now = [0.0]
    pace = Pace([10, 10, 10, 30], lambda: now[0])
    assert pace.left() == 0.0
    for now[0] in (1.0, 2.0):  # a token of each a second
        for place in range(4):
            pace.step(place)
    assert pace.left() == 2.0 * (8 + 8 + 8 + 28) / 8
    pace.done(0)
    assert pace.left() == 2.0 * 3  # as answers come: one in 2 s; by the tokens 11 s
    now[0] = 8.0
    for _ in range(24):
        pace.step(3)
    assert pace.left() == 8.0 * (8 + 8 + 4) / 32  # by the answers 24 s
    assert most_of(SamplingParams(max_gen_length=20), 64) == 20 and most_of(SamplingParams(out_seq_length=9), 64) == 9
    assert most_of(BeamParams(), 64) == 64


def test_what_an_earlier_run_has_answered_is_told(capsys):
    for lacking in (150, 0):
        with Progress(lacking, lacking, kept=30):
            pass
    assert capsys.readouterr().err.splitlines() == [
        "30 of 180 answers are there from an earlier run", "all 30 answers are there from an earlier run"]


def test_what_need_not_be_computed_is_taken_off(capsys):
    clock = FakeClock()
    with Progress(100, 1000, clock=clock) as progress:
        progress.skip(50, 500)
        clock.now = 100.0
        progress.advance(25, 250)
    assert capsys.readouterr().err == "25/50 items, 0.2 items/s, 1 min 40 s left\n"


def test_long_times_are_hours_and_minutes(capsys):
    clock = FakeClock()
    with Progress(10000, 10000, clock=clock) as progress:
        clock.now = 100.0
        progress.advance(100, 100)
    assert capsys.readouterr().err == "100/10000 items, 1.0 items/s, 2 h 45 min left\n"


def test_other_processes_and_empty_runs_are_silent(capsys):
    clock = FakeClock()
    for progress in (Progress(10, 10, shown=False, clock=clock), Progress(0, 0, clock=clock)):
        with progress:
            clock.now += 100.0
            progress.task("x")
            progress.write(lambda: None)
            if progress.total:
                progress.advance(1, 1)
    assert capsys.readouterr() == ("", "")


def test_tests_of_what_programs_say_leave_lines_of_progress_out(capsys):
    """Those of a program come when time has passed, so no test may expect them, or expect none."""
    clock = FakeClock()
    with Progress(10000, 10000, clock=clock) as evaluating, Progress(
            10**9, clock=clock, unit="B", title="Converting") as converting:
        for clock.now in (10.0, 10_000.0):
            evaluating.advance(10, 10)
            converting.advance(10**8)
    lines = capsys.readouterr().err
    assert lines.count("\n") == 4
    assert said(f"a\n{lines}error: b\n") == "a\nerror: b\n"


def test_a_terminal_gets_a_bar_that_makes_room_for_lines(monkeypatch):
    reading, writing = pty.openpty()
    with open(writing, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "100")
        said = []
        with Progress(20, 200) as progress:
            progress.task("words")
            progress.advance(5, 50)
            progress.write(lambda: said.append(1))
        assert said == [1]
        terminal.flush()
        shown = os.read(reading, 1 << 16).decode()
    os.close(reading)
    assert "words" in shown and re.search(r"5/20 items, [\d.]+ items/s", shown)
    assert "\x1b[2K" in shown  # the line of the bar was cleared; how often is a matter of time


@pytest.mark.parametrize("request_, tokens", [
    (ScoreRequest((1, 2, 3), ((4,), (5,)), 9, 3, 0), 4),
    (GenerateRequest((1, 2, 3), SamplingParams(top_k=1), 10, (0,)), 13),
    (GenerateRequest((1, 2, 3), BeamParams(num_beams=4), 10, (0,)), 43),
])
def test_a_request_counts_as_the_tokens_it_makes_the_model_compute(request_, tokens):
    work = Work(SimpleNamespace(config=None), {}, {}, [request_], [], 0, None, [[0, 0]])
    assert work.size([0]) == (2, 2 * tokens)


def test_what_is_generated_counts_as_it_comes_and_once():
    parallel.start()
    request_ = GenerateRequest((1,) * 5, SamplingParams(top_k=1), 4, (0,))
    task, batches = SimpleNamespace(config=SimpleNamespace(name="w")), [[0, 1], [2, 3]]
    work = Work(task, {}, {}, [request_] * 4, [], 99, None, batches)
    told = []

    def answer(requests, at_once, on_answer):
        on_answer(1)
        told.append("the batch goes on")
        return []

    progress = SimpleNamespace(skip=lambda *_: None, advance=lambda *size: told.append(size))
    Rounds({"w": work}, SimpleNamespace(answer=answer), lambda *_: None, None, progress).finish("w", [0, 1], [])
    assert told == [(1, 9), "the batch goes on", (1, 9)] * 2
