"""The time left of an evaluation: costs of batches, the pace of every task, and batches that are answered early."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from evaluation import hours, rounds
from evaluation import requests as batching
from evaluation.pace import BEGIN, END, Pace, Shape
from evaluation.plan import Work
from evaluation.requests import GenerateRequest, ScoreRequest
from evaluation.rounds import Rounds
from generation.params import SamplingParams
from glm.config import ModelConfig
from planning.shapes import Format, Setup
from runtime import parallel
from runtime.errors import UserError
from runtime.show import Progress
from tests.tried import CPU

MODEL = ModelConfig.from_name("glm-small")
# Batches of an evaluation of the embedded model on a processor with two cores: {task: [[rows, width, scored tokens of a
# row or None, most tokens of an answer, seconds]]}
SLOWER = 6  # times: then it takes three minutes
RECORDED = json.loads((Path(__file__).parent / "recorded_batches.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def nothing_shared(monkeypatch):
    """These questions stand for unlike ones."""
    monkeypatch.setattr(batching, "LEAST_SHARED", 10**6)


def scoring(width, scored=1):
    return ScoreRequest((0,) * (width - scored), ((1,) * scored,), 2, width - scored, 1)


def generating(width, limit):
    return GenerateRequest((0,) * width, SamplingParams(top_k=1), limit, (1,))


def work_of(name, batches, hashes=None):
    requests = [request for batch in batches for request in batch]
    numbers = iter(range(len(requests)))
    places = [[next(numbers) for _ in batch] for batch in batches]
    return SimpleNamespace(config=SimpleNamespace(name=name), requests=requests, batches=places,
                           hashes=hashes or [f"{name} {number}" for number in range(len(requests))],
                           at_once=len, size=lambda numbers: (sum(len(places[number]) for number in numbers), 1))


def test_costs_grow_with_rows_widths_and_steps():
    cost = Shape(MODEL).cost
    assert cost([scoring(64)] * 8) == pytest.approx(8 * cost([scoring(64)]))
    assert 8 * cost([scoring(64)]) < cost([scoring(512)]) < 16 * cost([scoring(64)])
    assert cost([generating(64, 20)]) - cost([generating(64, 10)]) == pytest.approx(
        cost([generating(64, 10)]) - 64 * (1 + 64 * Shape(MODEL).seen))
    assert cost([generating(8, 50)] * 4) < 2 * cost([generating(8, 50)])  # a step of few rows reads weights


def test_what_questions_share_costs_once(monkeypatch):
    monkeypatch.setattr(batching, "LEAST_SHARED", 64)
    cost = Shape(MODEL).cost
    assert cost([scoring(256)] * 8) < 1.2 * cost([scoring(256)])


def test_questions_that_share_a_beginning_are_planned_and_told_as_they_are_read(monkeypatch):
    monkeypatch.setattr(batching, "LEAST_SHARED", 64)
    requests = [scoring(256)] * 8
    work = Work(SimpleNamespace(config=SimpleNamespace(name="few")), {}, {}, requests, [], 512, None,
                batching.batches_of(requests, 512))
    assert work.batches == [[*range(8)]] and work.at_once(work.batches[0]) == 8
    setup = Setup(MODEL, Format("fp32"))
    assert hours.seconds(work, setup, CPU, None) == hours.batch_seconds(requests, setup, CPU, None)

    def answer(*_):
        raise MemoryError

    parallel.start()
    running = Rounds({"few": work}, SimpleNamespace(answer=answer), None, None, Progress(1, 1, shown=False))
    with pytest.raises(UserError, match="task few: no memory for a batch of 8 items and 263 tokens; set "
                                        "--max-batch-tokens to 131 or less"):
        running.finish("few", [0], [])


def test_every_task_has_a_pace_of_its_own_and_what_is_not_known_that_of_its_like():
    works = {"a": work_of("a", [[scoring(64)]] * 4), "b": work_of("b", [[scoring(64)]] * 2),
             "c": work_of("c", [[generating(64, 100)]] * 2)}
    pace = Pace(works, {name: range(len(work.batches)) for name, work in works.items()}, MODEL)
    assert pace.left() == 0  # nothing is known
    pace.answered("a", [0], 3.0)
    pace.answered("c", [0], 0.5)  # its answers ended early
    assert pace.left() == pytest.approx(3 * 3.0 + 2 * 3.0 + 0.5)
    pace.answered("b", [0], 1.0)
    pace.answered("a", [2, 3], None)  # another task had the same requests
    assert pace.left() == pytest.approx(3.0 + 1.0 + 0.5)


def test_the_time_left_goes_down_with_every_answer_of_a_batch():
    """A batch of many texts takes minutes; the first process hears of its own answers alone."""
    parallel.start()
    work, said = work_of("c", [[generating(64, 100)], [generating(64, 100)] * 4]), []
    work.tokens = lambda index: 1
    pace = Pace({"c": work}, {"c": range(2)}, MODEL)

    def answer(requests, _, on_answer):
        for place in range(len(requests)):
            on_answer(place)
            said.append(pace.left())
        return requests

    clock = iter((0.0, 0.0, 8.0, 8.0, 20.0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "time", SimpleNamespace(monotonic=lambda: next(clock)))
        scorer, progress = SimpleNamespace(answer=answer), Progress(5, 5, shown=False)
        Rounds({"c": work}, scorer, lambda *_: None, pace, progress).finish("c", [0, 1], [])
    cost = Shape(MODEL).cost
    whole = 8.0 * cost([generating(64, 100)] * 4) / cost([generating(64, 100)])  # at the first batch's pace
    assert said[0] == 0 and said[1:] == pytest.approx([0.75 * whole, 0.5 * whole, 0.25 * whole, 0.0])


def test_the_dearest_task_that_nothing_is_known_of_is_looked_at_first_and_only_early():
    works = {"a": work_of("a", [[scoring(64)]] * 3), "b": work_of("b", [[scoring(64)]] * 5),
             "c": work_of("c", [[scoring(64)]] * 4)}
    pace = Pace(works, {name: range(len(work.batches)) for name, work in works.items()}, MODEL)
    pace.answered("a", [0], 1.0)
    assert pace.unknown(BEGIN - 1, 1) is None and pace.unknown(END, 1) is None
    assert pace.unknown(BEGIN, 2) == ("b", [2, 3])
    pace.answered("b", [2], 1.0)
    assert pace.unknown(BEGIN, 1) == ("c", [1])
    pace.answered("c", [1], 1.0)
    assert pace.unknown(BEGIN, 1) is None


def test_a_batch_keeps_its_turn_where_another_one_asks_the_same():
    works = {"a": work_of("a", [[scoring(64)]] * 2, ["w", "x"]), "b": work_of("b", [[scoring(64)]] * 3, "xyy"),
             "c": work_of("c", [[scoring(64)] * 2] * 2, ["x", "p", "q", "q"])}
    pace = Pace(works, {name: range(len(work.batches)) for name, work in works.items()}, MODEL)
    pace.answered("a", [0], 1.0)
    assert pace.unknown(BEGIN, 1) == ("c", [1])
    pace.answered("c", [1], 1.0)
    assert pace.unknown(BEGIN, 1) is None


@pytest.mark.parametrize("order", [list(RECORDED), sorted(RECORDED)])
def test_after_the_first_minute_the_time_left_is_right_within_three_tenths(order, monkeypatch):
    """A recorded run again, task after task, by a clock that its batches move on."""
    parallel.start()
    works = {}
    for name in order:
        batches = [[generating(width, limit) if scored is None else scoring(width, scored)] * rows
                   for rows, width, scored, limit, _ in RECORDED[name]]
        works[name] = work_of(name, batches)
        works[name].seconds = [SLOWER * seconds for *_, seconds in RECORDED[name]]
    pace = Pace(works, {name: range(len(work.batches)) for name, work in works.items()}, MODEL)
    clock, seen, computed = SimpleNamespace(now=0.0), [], {name: [] for name in works}
    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def keep(work, numbers, _):
        clock.now += sum(work.seconds[number] for number in numbers)
        computed[work.config.name] += numbers
        seen.append(clock.now)

    scorer = SimpleNamespace(answer=lambda requests, at_once, on_answer: [])
    running = Rounds(works, scorer, keep, pace, Progress(1, 1, shown=False))
    said = []
    monkeypatch.setattr(pace, "answered", lambda *asked, answered=pace.answered: (
        answered(*asked), said.append(pace.left()) if asked[2] is not None else None))
    beside = [running.finish(name, [number for number in range(len(work.batches)) if number not in running.done[name]],
                             sorted(running.done[name])) for name, work in works.items()]
    assert all(sorted(numbers) == list(range(len(works[name].batches))) for name, numbers in computed.items())
    assert sum(beside) == pytest.approx(0.0)
    total = clock.now
    judged = [(left, total - now) for now, left in zip(seen, said, strict=True) if now >= 60 and total - now > 5]
    assert len(judged) > 20 and all(0.7 * left < found < 1.3 * left for found, left in judged)
