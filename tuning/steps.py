"""Which rows each step of a training reads: from a file of batches, or epochs in the documented order.

A step's work is a function of its number, the seed and the files alone, so that there is no state of a reader to save.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from runtime.errors import UserError, shown
from runtime.reading import parse_json, read_text
from tuning.data import pretrain
from tuning.schedules import batches_of, row_order

SAMPLES_OF_DOCUMENT = 1000  # so many times the documents is how many samples there are


@dataclass(frozen=True)
class Work:
    """What one step of the optimiser reads."""

    rows: tuple[int, ...]  # by the numbers of the lines of `inspect`; of pretraining numbers of packed samples
    order: pretrain.Order | None = None  # of pretraining
    epoch: int | None = None  # which one the step ends; in pretraining, if validation follows, how many steps are done
    is_drawn: bool = False  # nobody chose what it reads: if there is nothing to learn, the step passes


@dataclass(frozen=True)
class GivenSteps:
    works: tuple[Work, ...]

    def __len__(self) -> int:
        return len(self.works)

    def __getitem__(self, step: int) -> Work:
        return self.works[step]


@dataclass(frozen=True)
class EpochSteps:
    """Each epoch reads all rows once, by torch's DistributedSampler; its last batch may be short."""

    rows: tuple[int, ...]  # that can be read, by their numbers
    size: int  # rows of a step, on all data-parallel ranks together
    steps: int
    seed: int

    def __len__(self) -> int:
        return self.steps

    @property
    def of_epoch(self) -> int:
        return -(-len(self.rows) // self.size)

    def __getitem__(self, step: int) -> Work:
        epoch, place = divmod(step, self.of_epoch)
        chosen = _epoch(len(self.rows), self.size, self.seed, epoch)[place]
        is_last = place + 1 == self.of_epoch
        return Work(tuple(self.rows[each] for each in chosen), epoch=epoch if is_last else None)


@dataclass(frozen=True)
class MixedSteps:
    """Some of the steps read texts with blanks in the place of their rows."""

    steps: EpochSteps
    order: Callable[[int, int], pretrain.Order | None]  # step, rows of it -> what it reads; None: its own rows

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def of_epoch(self) -> int:
        return self.steps.of_epoch

    def __getitem__(self, step: int) -> Work:
        work = self.steps[step]
        order = self.order(step, len(work.rows))
        return work if order is None else Work(order.indices, order, work.epoch, is_drawn=True)


@lru_cache(maxsize=1)
def _epoch(rows: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    return batches_of(row_order(rows, seed, epoch), size)


def read_batches(path: Path, steps: int | None, known: int, lacking: Mapping[int, str]) -> GivenSteps:
    """The lines of a file of rows. UserError names the line that is wrong.

    steps: as many as there must be; None: any number. known: how many rows there are. lacking: those that cannot be
    read, with the reason.
    """
    lines = [(number, parse_json(line, str(path), number)) for number, line in
             enumerate(read_text(path).split("\n"), 1) if line.strip()]
    return _given([_rows(line, f"{path}:{number}", known, lacking) for number, line in lines], path, steps)


def read_orders(path: Path, steps: int | None) -> GivenSteps:
    """The lines of a file of batches of pretraining."""
    return _given([Work(order.indices, order) for order in pretrain.read_orders(path)], path, steps)


def _given(works: Sequence[Work], path: Path, steps: int | None) -> GivenSteps:
    if not works:
        raise UserError(f"{path} is empty: it must hold a JSON line for each step")
    if steps not in (None, len(works)):
        raise UserError(f"{path} has {len(works)} batches, but --train-iters is {steps}; they must be as many")
    return GivenSteps(tuple(works))


def _rows(line: Any, where: str, known: int, lacking: Mapping[int, str]) -> Work:
    if not isinstance(line, dict) or set(line) != {"rows"}:
        raise UserError(f'{where}: must be like {{"rows": [0, 1, 2]}}, is {shown(line)}'
                        + (f" with the keys {', '.join(map(str, line))}" if isinstance(line, dict) else ""))
    rows = _numbers(line["rows"], f"{where}: rows")
    for row in rows:
        if row >= known:
            raise UserError(f"{where}: there is no row {row}; there are {known}, numbered from 0")
        if row in lacking:
            raise UserError(f"{where}: no sample can be made of row {row}: {lacking[row]}")
    return Work(rows)


def _numbers(values: Any, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not values:
        raise UserError(f"{where} must be a list of numbers, and not empty; it is {shown(values)}")
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UserError(f"{where}: {shown(value)} is no whole number of 0 or more")
    return tuple(values)


def epoch_steps(rows: Sequence[int], size: int, epochs: int | None, steps: int | None, seed: int) -> EpochSteps:
    """UserError where there are no rows, or nothing says how long to train."""
    if not rows:
        raise UserError("there are no rows to train on: none of the file's makes a sample")
    if epochs is None and steps is None:
        raise UserError("how long to train? --epochs N, or --train-iters N, or --batches FILE")
    of_epoch = -(-len(rows) // size)
    total = min(each for each in (steps, epochs and epochs * of_epoch) if each is not None)
    return EpochSteps(tuple(rows), size, total, seed)


@dataclass(frozen=True)
class DrawnSteps:
    """Pretraining: samples drawn with replacement, a step's by its number and the seed."""

    documents: int
    size: int  # samples of a step, on all data-parallel ranks together
    steps: int
    seed: int
    validated_every: int = 0  # steps, and behind the last one; 0: never

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Work:
        order, number = drawn_order(f"{self.seed} {step}", step, self.size, self.documents), step + 1
        is_due = self.validated_every and (number % self.validated_every == 0 or number == self.steps)
        return Work(order.indices, order, number if is_due else None, is_drawn=True)


def drawn_order(seed: str, count: int, size: int, documents: int) -> pretrain.Order:
    """Batch number `count`, of samples that are drawn with replacement."""
    draw = random.Random(seed)
    return pretrain.Order(count, tuple(draw.randrange(SAMPLES_OF_DOCUMENT * documents) for _ in range(size)))
