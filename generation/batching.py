"""Which prompts run together: a batch is bounded by rows, by tokens to read and by the memory of its cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

MOST_ROWS = 64  # beams count as rows; more gain little, and one more row still costs its attention
MOST_TOKENS = 16384  # places at a time, for the activations while contexts are read
CPU_READ_TOKENS = 4096  # of contexts at a time on a CPU: with more, the activations leave its caches
CACHE_BYTES = 2 * 1024**3  # of keys and values, on every tensor-parallel rank

T = TypeVar("T")


def batches(items: Sequence[T], sizes: Sequence[int], model, num_beams: int,
            batch_size: int | None) -> Iterator[list[T]]:
    """Divide items into batches of like size, small ones first.

    sizes: places that each takes up (context and answer). batch_size fixes the number of items; None: by the bounds
    above, which are the same on all ranks. An item over all bounds is a batch of its own.
    """
    rows, places = bounds(bytes_per_place(model), num_beams) if batch_size is None else (batch_size, math.inf)
    batch, widest = [], 0
    for place in sorted(range(len(items)), key=lambda place: sizes[place]):
        widest = max(widest, sizes[place])
        if batch and (len(batch) >= rows or widest * (len(batch) + 1) > places):
            yield batch
            batch, widest = [], sizes[place]
        batch.append(items[place])
    if batch:
        yield batch


def bounds(place_bytes: int, num_beams: int) -> tuple[int, int]:
    """Most prompts of a batch, and most places of them together. place_bytes: of one beam's place in the cache."""
    return MOST_ROWS // num_beams, min(MOST_TOKENS, CACHE_BYTES // (place_bytes * num_beams))


def bytes_per_place(model) -> int:
    """What one token of one row takes up in this rank's cache."""
    from runtime import parallel  # here, because bounds() is needed before torch is imported

    ranks = parallel.size() if parallel.is_started() else 1
    config = model.config
    heads = max(1, config.key_value_heads // ranks)
    return 2 * config.num_layers * heads * config.head_size * next(model.parameters()).element_size()


def rounded(count: int) -> int:
    """The next power of two: of rows and places that are recorded for."""
    return 1 << (count - 1).bit_length()
