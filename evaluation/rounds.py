"""Answers to a task's requests: batches in rounds over the model-parallel groups, kept after every round.

In a round every group computes a batch of its own. The first process keeps the answers, so a killed run loses a round
at most. A batch of which any answer is lacking is computed whole: what is in a batch never depends on an earlier run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from evaluation.store import Journal
from evaluation.work import Work
from runtime import parallel
from runtime.errors import NonFinite, UserError
from runtime.parallel import agree

T = TypeVar("T")


def on_first(compute: Callable[[], T]) -> T | None:
    """compute() on the first process, its result there and None elsewhere; all hear of an error."""
    return agree(lambda: compute() if parallel.is_first_process() else None)


def from_first(compute: Callable[[], T]) -> T:
    """compute() on the first process, its result on all."""
    return parallel.collect(on_first(compute))[0]


def lacking(work: Work, keys: Sequence[str], journal: Journal) -> list[int]:
    """The batches (places in work.batches) of which any answer is not there yet."""
    return [number for number, batch in enumerate(work.batches) if any(keys[index] not in journal for index in batch)]


def answer(work: Work, scorer, keys: Sequence[str] | None, journal: Journal | None, numbers: Sequence[int],
           advance: Callable[[int, int], None]) -> None:
    """Compute the batches `numbers`; every process calls it with the same ones.

    keys, journal: of the first process, None elsewhere. advance(items, tokens) is called after every round.
    """
    groups, own = parallel.data_parallel_size(), parallel.data_parallel_rank()
    for start in range(0, len(numbers), groups):
        batches = [work.batches[number] for number in numbers[start:start + groups]]
        mine = batches[own] if own < len(batches) else None
        found = parallel.collect(agree(lambda batch=mine: None if batch is None else _compute(work, scorer, batch)))

        def keep(batches=batches, found=found) -> None:
            journal.add((keys[index], answer) for batch, answers in zip(batches, found, strict=False)
                        for index, answer in zip(batch, answers, strict=True))

        on_first(keep)
        advance(*work.size(index for batch in batches for index in batch))


def _compute(work: Work, scorer, batch: Sequence[int]) -> list[dict]:
    try:
        return scorer.answer([work.requests[index] for index in batch])
    except NonFinite as error:
        raise UserError(f"task {work.config.name}: {work.place_of(batch[error.rows[0]])}: NaN or infinity in the "
                        f"model: {error}") from None
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        tokens = len(batch) * max(work.requests[index].size for index in batch)
        raise UserError(f"task {work.config.name}: no memory for a batch of {len(batch)} items and {tokens} tokens; "
                        f"set --max-batch-tokens to {max(1, tokens // 2)} or less") from None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
