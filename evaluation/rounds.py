"""Batches computed in rounds: every tensor-parallel group of processes computes one of its own, and the first process
keeps the answers. Task by task, but for a batch of each task to come, which early on says how long the run will take.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from evaluation.pace import Pace, is_over
from evaluation.plan import Work
from evaluation.requests import GenerateRequest, shape_of
from runtime import parallel
from runtime.errors import NonFinite, UserError
from runtime.parallel import agree
from runtime.show import Progress

T = TypeVar("T")


def on_first(compute: Callable[[], T]) -> T | None:
    """compute() on the first process, its result there and None elsewhere; all hear of an error."""
    return agree(lambda: compute() if parallel.is_first_process() else None)


def from_first(compute: Callable[[], T]) -> T:
    """compute() on the first process, its result on all."""
    return parallel.collect(on_first(compute))[0]


class Rounds:
    """All processes call its methods with the same values."""

    def __init__(self, works: Mapping[str, Work], scorer, keep: Callable | None, pace: Pace | None, progress: Progress):
        """keep(work, numbers, answers), pace: on the first process alone."""
        self._works, self._scorer, self._keep, self._pace, self._progress = works, scorer, keep, pace, progress
        self._begin, self._looks_ahead = time.monotonic(), len(works) > 1
        self._before = dict.fromkeys(works, 0.0)  # seconds that batches of tasks to come have taken
        self.done: dict[str, set[int]] = {name: set() for name in works}  # batches that were computed

    def finish(self, name: str, numbers: Sequence[int], others: Sequence[int]) -> float:
        """Computes a task's batches `numbers`. others: that were to be computed when the run began, and are answered.

        Returns the seconds that other tasks' batches took meanwhile, less those that this one's took before.
        """
        elsewhere, beside = [number for number in others if number not in self.done[name]], -self._before[name]
        self._progress.skip(*self._works[name].size(elsewhere))
        if self._pace is not None:
            self._pace.answered(name, elsewhere, None)
        groups = parallel.data_parallel_size()
        for start in range(0, len(numbers), groups):
            self._compute(name, numbers[start:start + groups])
            while (found := self._to_come()) is not None:
                self._before[found[0]] = self._compute(*found)
                beside += self._before[found[0]]
        return beside

    def _to_come(self) -> tuple[str, list[int]] | None:
        """Batches of a task to come that are to be computed now; None: the task goes on."""
        if not self._looks_ahead:
            return None
        self._looks_ahead, found = from_first(self._asked)
        return found

    def _asked(self) -> tuple[bool, tuple[str, list[int]] | None]:
        seconds = time.monotonic() - self._begin
        return not is_over(seconds), self._pace.unknown(seconds, parallel.data_parallel_size())

    def _compute(self, name: str, numbers: Sequence[int]) -> float:
        """A round: a batch for each group. Returns the seconds that it took."""
        work, own, begun = self._works[name], parallel.data_parallel_rank(), time.monotonic()
        mine = work.batches[numbers[own]] if own < len(numbers) else None
        shown = Counter()  # of the round's items and tokens, those that this process's progress counts already

        def show(index: int) -> None:
            tokens = work.tokens(index)
            shown.update(items=1, tokens=tokens)
            if self._pace is not None:
                self._pace.moved(name, numbers, shown["items"] / len(mine))
            self._progress.advance(1, tokens)

        found = parallel.collect(agree(lambda: None if mine is None else _computed(work, self._scorer, mine, show)))
        on_first(lambda: self._keep(work, numbers, found))
        self.done[name].update(numbers)
        seconds = time.monotonic() - begun
        if self._pace is not None:
            self._pace.answered(name, numbers, seconds)
        items, tokens = work.size(numbers)
        self._progress.advance(items - shown["items"], tokens - shown["tokens"])
        return seconds


def _computed(work: Work, scorer, batch: Sequence[int], show: Callable[[int], None]) -> list[dict]:
    """show: called with each request that is generated, as soon as it is."""
    requests, rows = [work.requests[index] for index in batch], work.at_once(batch)
    try:
        return scorer.answer(requests, rows, lambda place: show(batch[place]))
    except NonFinite as error:
        raise UserError(f"task {work.config.name}: {work.place_of(batch[error.rows[0]])}: NaN or infinity in the "
                        f"model: {error}") from None
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, MemoryError) or "out of memory" in str(error)
                or "can't allocate memory" in str(error)):
            raise
        sequences, width = (rows, requests[0].size) if isinstance(requests[0], GenerateRequest) else shape_of(requests)
        tokens = sequences * width
        raise UserError(f"task {work.config.name}: no memory for a batch of {rows} items and {tokens} tokens; "
                        f"set --max-batch-tokens to {max(1, tokens // 2)} or less") from None
