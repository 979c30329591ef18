"""The thread that owns the model: requests wait for room, join the running batch, and leave it when they are done.

Everything that touches the model happens in this thread, in rounds: rows leave, rows join, each gets a token. The news
of a round are handed over in one call, so that the thread that serves clients is woken once a step.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from generation.batch import Batch
from generation.groups import Row
from runtime import parallel
from runtime.mapped import check_unchanged
from serving.choices import News
from serving.jobs import Job, Room, Scored, Unit, extent

log = logging.getLogger("serving")
MOST_READ_TOKENS = 4096  # of contexts between two steps, one context at least: running rows wait meanwhile
MOST_FAILURES = 3  # rounds in a row that fail before the engine gives up
FAILED = News(error="the model failed on this request")


class Place(NamedTuple):
    """Of a row: the model in whose batch it is, and the batch's number for it."""

    model: str | None
    number: int


class Round(NamedTuple):
    """What every rank does with one of the models: the first one decides."""

    model: str | None
    most: int | None  # the batch begins empty, with so many places of all rows at most; None: it goes on
    dropped: list[int]
    rows: list[Row]
    scored: list[Scored]


class Engine(threading.Thread):
    """models: by the names of their adapters, None the one without; they share their weights, and have batches of their
    own, which take turns. hear: takes the news of a round, [(job, number of the choice, news)], and must not block.
    score: its value, of a model and ids, is handed over as news. tell: sends other ranks a Round, at last None."""

    def __init__(self, models: Mapping[str | None, object], room: Room, most_units: int, hear: Callable[[list], None],
                 score: Callable[[object, Scored], object], tell: Callable[[Round | None], None] | None = None):
        super().__init__(name="engine", daemon=True)
        self.models, self.model, self.room = models, models[None], room
        self._most_units, self._hear, self._score = most_units, hear, score
        self._has_others, self._tell = tell is not None, tell or (lambda _: None)
        self._is_apart = False  # the other ranks are in the midst of a round
        self._changed = threading.Condition()
        self._waiting: collections.deque[Unit] = collections.deque()
        self._running: dict[Place, Unit] = {}
        self._dropped: list[Place] = []  # rows that leave in the next round
        self._joining: list[Unit] = []  # in this round
        self._batches: dict[str | None, Batch] = {}
        self._is_ending = False
        self.units = 0  # in flight
        self.failure: BaseException | None = None

    # Called by other threads

    def submit(self, job: Job) -> bool:
        """False: the queue is full."""
        units = [Unit(job, -1 - number, None) for number in range(len(job.scored))]
        units += [Unit(job, number, choice.row) for number, choice in enumerate(job.choices)]
        with self._changed:
            if self.units + job.size > self._most_units:
                return False
            self.units += job.size
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
        rows, places = extent(unit.row for unit in running)
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
                    self._give_up()
                    if self._is_apart and (lost := parallel.lost(error)):
                        raise lost from None
                    log.exception("a round failed")
                    failures += 1
                    if failures == MOST_FAILURES or self._is_apart:
                        raise error
        except BaseException as error:
            self.failure = error
        finally:
            with contextlib.suppress(RuntimeError):  # another rank has gone
                if not self._is_apart:  # it would be waited for at one sum, and this rank at another
                    self._tell(None)
            self._hear([])

    def _has_work(self) -> bool:
        """Waits for some; False: the end."""
        with self._changed:
            if not (self._waiting or self._running):
                self._batches, self._dropped = {}, []  # the caches go
            self._changed.wait_for(lambda: self._waiting or self._running or self._is_ending)
            return not self._is_ending

    def _round(self) -> None:
        check_unchanged(self.model)
        with self._changed:
            self._forget_cancelled()
            joining, scoring = self._admitted()
            self._joining = [*joining, *scoring]
            active = {place.model for place in (*self._running, *self._dropped)}
            active |= {unit.job.model for unit in self._joining}
        for name in self.models:
            if name in active:
                self._hand_over(self._turn(name, *([unit for unit in units if unit.job.model == name]
                                                   for units in (joining, scoring))))

    def _turn(self, name: str | None, joining: list[Unit], scoring: list[Unit]) -> list[tuple[Unit, object]]:
        """One model's part of a round -> its news."""
        model, most = self.models[name], None if name in self._batches else self.room.places
        dropped = [place.number for place in self._dropped if place.model == name]
        round = Round(name, most, dropped, [unit.row for unit in joining], [unit.scored for unit in scoring])
        self._dropped = [place for place in self._dropped if place.model != name]
        self._is_apart = self._has_others
        self._tell(round)
        news = [(unit, self._score(model, unit.scored)) for unit in scoring]
        if most is not None:
            self._batches[name] = Batch(model, most=most)
        batch = self._batches[name]
        numbers = turn(batch, round)
        with self._changed:
            self._running |= {Place(name, number): unit for number, unit in zip(numbers, joining, strict=True)}
            self._joining = [unit for unit in self._joining if unit.job.model != name]
        events = batch.step()
        self._is_apart = False
        for event in events:
            place = Place(name, event.number)
            unit = self._running[place]
            row, said = unit.job.choices[unit.number].take(event)
            if said is not None:
                news.append((unit, said))
            with self._changed:
                if event.answers is not None or (said is not None and said.is_last):
                    del self._running[place]
                if row is not None:
                    self._waiting.appendleft(unit._replace(row=row))
            if event.answers is None and said is not None and said.is_last:
                self._dropped.append(place)
        return news

    def _forget_cancelled(self) -> None:
        gone = [unit for unit in self._waiting if unit.job.is_cancelled]
        self._waiting = collections.deque(unit for unit in self._waiting if not unit.job.is_cancelled)
        for place, unit in list(self._running.items()):
            if unit.job.is_cancelled:
                gone.append(self._running.pop(place))
                self._dropped.append(place)
        self.units -= len(gone)

    def _admitted(self) -> tuple[list[Unit], list[Unit]]:
        """Units from the head of the queue that find room: rows that join, and ids to be scored."""
        joining, scoring, tokens = [], [], 0
        while self._waiting:
            unit = self._waiting[0]
            length = len(unit.scored.context.ids if unit.row is None else unit.row.context)
            running = [*self._running.values(), *joining]
            rows, places = extent([*(each.row for each in running if each.job.model == unit.job.model), unit.row])
            others, _ = extent(each.row for each in running if each.job.model != unit.job.model)
            is_full = not self.room.holds(rows, places) or rows + others > self.room.rows
            if ((joining or scoring) and tokens + length > MOST_READ_TOKENS) or is_full:
                break
            tokens += length
            (scoring if unit.row is None else joining).append(self._waiting.popleft())
            unit.job.begun = unit.job.begun or time.monotonic()
        return joining, scoring

    def _hand_over(self, news: list[tuple[Unit, News]]) -> None:
        done = sum(unit.number < 0 or said.is_last for unit, said in news)
        with self._changed:
            self.units -= done
        if news:
            self._hear([(unit.job, unit.number, said) for unit, said in news])

    def _give_up(self) -> None:
        """All that runs has failed, and nobody knows whose fault it is; what waits may still be answered."""
        with self._changed:
            failed = [*self._running.values(), *self._joining]
            self._running, self._joining, self._dropped, self._batches = {}, [], [], {}
        self._hand_over([(unit, FAILED) for unit in failed])


def turn(batch: Batch, round: Round) -> list[int]:
    """Rows leave and join -> the numbers of those that joined. The same on every rank."""
    for number in round.dropped:
        batch.drop(number)
    return batch.add(round.rows)


def follow(models: Mapping[str | None, object], hear: Callable[[], Round | None],
           score: Callable[[object, Scored], object]) -> None:
    """What the other ranks do: every round of the first, until there are no more."""
    batches: dict[str | None, Batch] = {}
    while (round := hear()) is not None:
        model = models[round.model]
        for each in round.scored:
            score(model, each)
        if round.most is not None:
            batches[round.model] = Batch(model, most=round.most)
        turn(batches[round.model], round)
        batches[round.model].step()
