"""What the engine is given, and where it finds room: requests, the units that each of them waits for room with, the
room."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from generation.groups import Row
from glm.prompt_form import Context


@dataclass(eq=False)
class Job:
    """A request: choices that are answered each by itself, as serving.choices has them."""

    choices: list
    scored: list[Scored] = field(default_factory=list)  # read before the choices; their news have numbers below 0
    mailbox: object = None  # where its news go
    arrived: float = field(default_factory=time.monotonic)
    begun: float | None = None  # when its first row joined
    is_cancelled: bool = False  # nobody waits any more
    model: str | None = None  # the name of its adapter; None: the model without any

    @property
    def size(self) -> int:
        """Units that it is answered in."""
        return len(self.scored) + len(self.choices)


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


class Room(NamedTuple):
    """What the batches may take."""

    rows: int  # of all batches
    bytes: int  # of keys and values of one
    place_bytes: int  # of one token of one row

    @property
    def places(self) -> int:
        """Of all rows together."""
        return self.bytes // self.place_bytes

    def holds(self, rows: int, places: int) -> bool:
        return rows <= self.rows and rows * places <= self.places


def extent(rows: Iterable[Row | None]) -> tuple[int, int]:
    """Rows of the cache, and the most places of one."""
    rows = [row for row in rows if row is not None]
    return sum(row.width for row in rows), max((row.places for row in rows), default=0)
