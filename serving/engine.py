"""The thread that owns the model: requests wait for room, join the running batch, and leave it when they are done.

Everything that touches the model happens in this thread, in rounds: rows leave, rows join, each gets a token. The news
of a round are handed over in one call, so that the thread that serves clients is woken once a step.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from generation.batch import Batch
from generation.groups import Row
from glm.prompt_form import Context
from runtime.mapped import check_unchanged
from serving.choices import News

log = logging.getLogger("serving")
MOST_READ_TOKENS = 4096  # of contexts between two steps, one context at least: running rows wait meanwhile
MOST_FAILURES = 3  # rounds in a row that fail before the engine gives up
FAILED = News(error="the model failed on this request")


@dataclass(eq=False)
class Job:
    """A request: choices that are answered each by itself, as serving.choices has them."""

    choices: list
    scored: list[Scored] = field(default_factory=list)  # read before the choices; their news have numbers below 0
    mailbox: object = None  # where its news go
    arrived: float = field(default_factory=time.monotonic)
    begun: float | None = None  # when its first row joined
    is_cancelled: bool = False  # nobody waits any more
    left: int = 0  # units that are not done


class Scored(NamedTuple):
    """A text that is read from left to right, for the log-probability of each of its ids."""

    context: Context
    alternatives: int


class Unit(NamedTuple):
    """What waits for room: one row of a job, or its ids to be scored."""

    job: Job
    number: int  # of the choice; of scored ids -1, -2, ...
    row: Row | None

    @property
    def scored(self) -> Scored:
        return self.job.scored[-1 - self.number]


class Round(NamedTuple):
    """What every rank does: the first one decides."""

    most: int | None  # the batch begins empty, with so many places of all rows at most; None: it goes on
    dropped: list[int]
    rows: list[Row]
    scored: list[Scored]


class Room(NamedTuple):
    """What the batch may take."""

    rows: int
    bytes: int  # of keys and values
    place_bytes: int  # of one token of one row

    @property
    def places(self) -> int:
        """Of all rows together."""
        return self.bytes // self.place_bytes

    def holds(self, rows: int, places: int) -> bool:
        return rows <= self.rows and rows * places <= self.places


class Engine(threading.Thread):
    """hear: takes the news of a round, [(job, number of the choice, news)], and must not block. score: its value is
    handed over as news. tell: sends a Round to the other ranks, None at the end."""

    def __init__(self, model, room: Room, most_units: int, hear: Callable[[list], None],
                 score: Callable[[Scored], object], tell: Callable[[Round | None], None] = lambda _: None):
        super().__init__(name="engine", daemon=True)
        self.model, self.room = model, room
        self._most_units, self._hear, self._score, self._tell = most_units, hear, score, tell
        self._changed = threading.Condition()
        self._waiting: collections.deque[Unit] = collections.deque()
        self._running: dict[int, Unit] = {}  # by the batch's numbers
        self._dropped: list[int] = []  # numbers of rows that leave in the next round
        self._joining: list[Unit] = []  # in this round
        self._batch: Batch | None = None
        self._is_ending = False
        self.units = 0  # in flight
        self.failure: BaseException | None = None

    # Called by other threads

    def submit(self, job: Job) -> bool:
        """False: the queue is full."""
        units = [Unit(job, -1 - number, None) for number in range(len(job.scored))]
        units += [Unit(job, number, choice.row) for number, choice in enumerate(job.choices)]
        with self._changed:
            if self.units + len(units) > self._most_units:
                return False
            job.left = len(units)
            self.units += len(units)
            self._waiting += units
            self._changed.notify()
        return True

    def could_hold(self, job: Job) -> bool:
        """Whether each of its rows finds room in an empty batch."""
        return all(self.room.holds(choice.row.width, choice.row.places) for choice in job.choices)

    def cancel(self, job: Job) -> None:
        with self._changed:
            job.is_cancelled = True
            self._changed.notify()

    def end(self) -> None:
        """The thread ends after the round that it is in."""
        with self._changed:
            self._is_ending = True
            self._changed.notify()

    def counts(self) -> tuple[int, int, int, float]:
        """Jobs that run, jobs that wait, rows of the batch, and the share of the cache's budget that is taken."""
        with self._changed:
            running, waiting = list(self._running.values()), list(self._waiting)
        rows, places = _extent(unit.row for unit in running)
        jobs = {id(unit.job) for unit in running}
        return (len(jobs), len({id(unit.job) for unit in waiting} - jobs), rows,
                min(1.0, rows * places * self.room.place_bytes / self.room.bytes))

    # This thread

    def run(self) -> None:
        failures = 0
        try:
            while self._has_work():
                try:
                    self._round()
                    failures = 0
                except Exception as error:
                    log.exception("a round failed")
                    failures += 1
                    self._give_up()
                    if failures == MOST_FAILURES:
                        raise error
        except BaseException as error:
            self.failure = error
        finally:
            self._tell(None)
            self._hear([])

    def _has_work(self) -> bool:
        """Waits for some; False: the end."""
        with self._changed:
            if not (self._waiting or self._running):
                self._batch, self._dropped = None, []  # the cache goes
            self._changed.wait_for(lambda: self._waiting or self._running or self._is_ending)
            return not self._is_ending

    def _round(self) -> None:
        check_unchanged(self.model)
        with self._changed:
            self._forget_cancelled()
            joining, scoring = self._admitted()
            self._joining = [*joining, *scoring]
        most = self.room.places if self._batch is None else None
        round = Round(most, self._dropped, [unit.row for unit in joining], [unit.scored for unit in scoring])
        self._dropped = []
        self._tell(round)
        news = [(unit, value) for unit, value in zip(scoring, self._scores(round.scored), strict=True)]
        if most is not None:
            self._batch = Batch(self.model, most=most)
        numbers = turn(self._batch, round)
        with self._changed:
            self._running |= dict(zip(numbers, joining, strict=True))
            self._joining = []
        for event in self._batch.step():
            unit = self._running[event.number]
            row, said = unit.job.choices[unit.number].take(event)
            if said is not None:
                news.append((unit, said))
            with self._changed:
                if event.answers is not None or (said is not None and said.is_last):
                    del self._running[event.number]
                if row is not None:
                    self._waiting.appendleft(unit._replace(row=row))
            if event.answers is None and said is not None and said.is_last:
                self._dropped.append(event.number)
        self._hand_over(news)

    def _scores(self, scored: list[Scored]) -> list:
        return [self._score(each) for each in scored]

    def _forget_cancelled(self) -> None:
        gone = [unit for unit in self._waiting if unit.job.is_cancelled]
        self._waiting = collections.deque(unit for unit in self._waiting if not unit.job.is_cancelled)
        for number, unit in list(self._running.items()):
            if unit.job.is_cancelled:
                gone.append(self._running.pop(number))
                self._dropped.append(number)
        self.units -= len(gone)

    def _admitted(self) -> tuple[list[Unit], list[Unit]]:
        """Units from the head of the queue that find room: rows that join, and ids to be scored."""
        joining, scoring, tokens = [], [], 0
        while self._waiting:
            unit = self._waiting[0]
            length = len(unit.scored.context.ids if unit.row is None else unit.row.context)
            rows, places = _extent([*(each.row for each in (*self._running.values(), *joining)), unit.row])
            if ((joining or scoring) and tokens + length > MOST_READ_TOKENS) or not self.room.holds(rows, places):
                break
            tokens += length
            (scoring if unit.row is None else joining).append(self._waiting.popleft())
            unit.job.begun = unit.job.begun or time.monotonic()
        return joining, scoring

    def _hand_over(self, news: list[tuple[Unit, News]]) -> None:
        done = [unit for unit, said in news if unit.number < 0 or said.is_last]
        for unit in done:
            unit.job.left -= 1
        with self._changed:
            self.units -= len(done)
        if news:
            self._hear([(unit.job, unit.number, said) for unit, said in news])

    def _give_up(self) -> None:
        """All that runs has failed, and nobody knows whose fault it is; what waits may still be answered."""
        with self._changed:
            failed = [*self._running.values(), *self._joining]
            self._running, self._joining, self._dropped, self._batch = {}, [], [], None
        self._hand_over([(unit, FAILED) for unit in failed])


def turn(batch: Batch, round: Round) -> list[int]:
    """Rows leave and join -> the numbers of those that joined. The same on every rank."""
    for number in round.dropped:
        batch.drop(number)
    return batch.add(round.rows)


def follow(model, hear: Callable[[], Round | None], score: Callable[[Scored], object]) -> None:
    """What the other ranks do: every round of the first, until there are no more."""
    batch = None
    while (round := hear()) is not None:
        if round.most is not None:
            batch = Batch(model, most=round.most)
        for each in round.scored:
            score(each)
        turn(batch, round)
        batch.step()


def _extent(rows: Iterable[Row | None]) -> tuple[int, int]:
    """Rows of the cache, and the most places of one."""
    rows = [row for row in rows if row is not None]
    return sum(row.width for row in rows), max((row.places for row in rows), default=0)
