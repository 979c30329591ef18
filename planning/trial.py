"""A few layers of a model, timed on this machine's processor: what the time of the whole model is planned from.

No constant says what products, attention and the work between them reach on every processor, in every format and at
every number of rows; some layers of random weights, run by the very code that runs the model, say it in a few seconds.
Letters: b rows, s tokens of a row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from kernels import FEW_ROWS, backend, compiled, scored_bytes
from planning.shapes import Setup, layer_bytes, layer_weights, weights

if TYPE_CHECKING:
    import torch

    from glm.model import GLM

STEP_BYTES = 256 << 20  # of weights that a decoding step reads: far more than a core's caches hold
READ_WEIGHTS = 50_000_000  # of the layers that read: products are bound by arithmetic, so that few layers will do
CACHE_BYTES = 256 << 20  # that the timed steps look at, at most
OTHERS = 256 << 20  # bytes that are read in between, at most
ROWS = (1, 2, 4, 8, 16, 32, 64)  # of a decoding step
SEEN_ROWS = (1, 8, 64)
TOKENS = (16, 64, 256, 1024)  # of a pass that reads
WIDTH = 16  # tokens of a row, where attention is to count little
SEEN = 1024  # places of the cache, or tokens of a row, where it is to count
SCORED = (1, 4, 16, 64, 256, 1024)  # places whose tokens are scored
REPEATS, ENOUGH = 20, 0.06  # the fastest counts; seconds after which nothing is repeated


@dataclass(frozen=True)
class Curve:
    """Seconds by a count: straight between the points, in proportion beyond them."""

    points: tuple[tuple[float, float], ...]

    def __call__(self, count: float) -> float:
        low, before = self.points[0]
        if count <= low:
            return before
        for (low, before), (high, after) in pairwise(self.points):
            if count <= high:
                return before + (after - before) * (count - low) / (high - low)
        return self.points[-1][1] * count / self.points[-1][0]

    def times(self, factor: float) -> Curve:
        return Curve(tuple((count, factor * seconds) for count, seconds in self.points))


@dataclass(frozen=True)
class Trial:
    """Seconds of a rank, with what it waits for the others."""

    step: Curve  # of a layer, by the rows of a decoding step; they look at an empty cache
    seen: Curve  # of a layer, by these rows, for a place of the cache that each of them looks at
    read: Curve  # of a layer, by the tokens of a pass that reads, without what they look at
    pair: float  # of a layer, for a token that looks at another one while both are read
    scores: Curve  # of log-probabilities, by the places that they are computed at
    choice: Curve  # of the likeliest tokens, by the rows that look for one


def trial(setup: Setup) -> Trial:
    """Of such a model in such a format. Ranks call it together (planning/ranks.py)."""
    import torch

    from planning.layers import narrowed, part_of, sample_model, tried_vocabulary

    config, narrower = narrowed(setup.config, setup.degree)
    tried = replace(setup, config=config)
    count = max(1, min(config.num_layers, STEP_BYTES // (layer_bytes(setup.run, tried) * setup.degree)))
    few = max(1, min(count, READ_WEIGHTS // (layer_weights(tried) * setup.degree)))
    with torch.inference_mode():
        model = sample_model(tried, count)
        clock = Clock(sum(map(setup.run.bytes, weights(setup))))
        step, seen = _steps(model, tried, clock)
        scores, choice = (_of_places(model, counts, work, clock) for counts, work in (
            (SCORED, _scored), (ROWS, _chosen)))
        read, pair = _reading(part_of(model, few), max(SEEN, min(setup.context, 2 * SEEN)), bool(setup.scored), clock)
    tried_table = tried_vocabulary(config, setup.degree) * config.hidden_size
    table = setup.config.vocab_size * setup.config.hidden_size / tried_table
    return Trial(step.times(narrower**2 / count), seen.times(narrower / count), read.times(narrower**2 / few),
                 pair * narrower / few, scores.times(table), choice.times(table))


class Clock:
    """Times work as if all of the model's weights were read between two times: what fits in the processor's caches
    stays there, and no more."""

    def __init__(self, size: float):
        """size: bytes of the weights."""
        import torch

        from runtime import parallel

        self._agreed = parallel.broadcast_object
        buffer = torch.zeros(int(min(size, OTHERS)) // 64 * 64, dtype=torch.uint8)
        operations = compiled()
        self._others = (lambda: operations.read(buffer)) if operations else buffer.sum

    def fastest(self, work: Callable[[], object]) -> float:
        """Seconds of it, once everything is in its place."""
        self._timed(work)
        first = self._timed(work)
        more = self._agreed(max(0, min(REPEATS, int(ENOUGH / first)) - 1))
        return min(first, *(self._timed(work) for _ in range(more)), first)

    def _timed(self, work: Callable[[], object]) -> float:
        self._others()
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin


def _of_places(model: GLM, counts: Iterable[int], work: Callable[[GLM, torch.Tensor], object],
               clock: Clock) -> Curve:
    """work(model, hidden states) by the places of these, no more of them than logits are computed for at a time."""
    import torch

    most = max(FEW_ROWS, scored_bytes("cpu") // (4 * model.config.vocab_size))
    x = torch.randn(most, model.config.hidden_size).to(model.head_weight.dtype)
    return Curve(tuple((count, clock.fastest(lambda count=count: work(model, x[:count])))
                       for count in sorted({min(count, most) for count in counts})))


def _scored(model: GLM, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model.head(hidden)
    return backend(logits).log_sums(logits)


def _chosen(model: GLM, hidden: torch.Tensor) -> torch.Tensor:
    logits = model.choices(hidden)
    logits.refine(1)
    return logits.values.max(dim=-1).indices


def _steps(model: GLM, setup: Setup, clock: Clock) -> tuple[Curve, Curve]:
    """Of all its layers: steps at an empty cache, by their rows; and for a place more of each row."""
    place = 2 * model.config.num_layers * setup.cache_width * setup.element
    wanted = sorted({*ROWS, min(setup.rows, 4 * ROWS[-1])})
    empty = {rows: _step(model, rows, 1, clock) for rows in wanted}
    seen = {}
    for rows in sorted({*SEEN_ROWS, min(setup.rows, ROWS[-1])}):
        places = max(16, min(max(SEEN, setup.context), CACHE_BYTES // (place * rows)))
        seen[rows] = max(0.0, _step(model, rows, places, clock) - empty[rows]) / places
    return Curve(tuple(empty.items())), Curve(tuple(seen.items()))


def _step(model: GLM, rows: int, places: int, clock: Clock) -> float:
    import torch

    from glm.inputs import position_ids

    cache = model.new_cache(rows, places + 1)
    tokens = torch.arange(rows)[:, None] % model.config.vocab_size
    positions = position_ids(model.config, torch.full_like(tokens, min(places, _last(model))), torch.ones_like(tokens))

    def step() -> None:
        cache.length = places
        model.hidden_states(tokens, positions, None, cache)

    return clock.fastest(step)


def _reading(model: GLM, longest: int, is_masked: bool, clock: Clock) -> tuple[Curve, float]:
    """Of all its layers: passes without attention, by their tokens; and what two tokens of a row take for attention."""
    short = {tokens: _pass(model, tokens // WIDTH, WIDTH, is_masked, clock) for tokens in (*TOKENS, longest)}
    pair = max(0.0, _pass(model, 1, longest, is_masked, clock) - short[longest]) / (longest * (longest - WIDTH))
    return Curve(tuple((tokens, seconds - pair * tokens * WIDTH) for tokens, seconds in sorted(short.items()))), pair


def _pass(model: GLM, rows: int, width: int, is_masked: bool, clock: Clock) -> float:
    import torch

    from glm.inputs import position_ids

    tokens = torch.arange(rows * width).view(rows, width) % model.config.vocab_size
    places = torch.arange(width).expand(rows, width).clamp(max=_last(model))
    positions = position_ids(model.config, places, torch.zeros_like(places))
    blocked = torch.ones(rows, width, width, dtype=torch.bool).triu(1) if is_masked else None
    cache = None if is_masked else model.new_cache(rows, width, is_clear=False)

    def read() -> None:
        if cache is not None:
            cache.length = 0
        model.hidden_states(tokens, positions, blocked, cache)

    return clock.fastest(read)


def _last(model: GLM) -> int:
    """Of the positions that it has."""
    return model.config.max_sequence_length - 1 if model.last_position is None else model.last_position
