"""A few layers of a model, timed on this machine's processor: what the time of the whole model is planned from.

No constant says what products, attention and the work between them reach on every processor, in every format and at
every number of rows; some layers of random weights, run by the very code that runs the model, say it in a few seconds.
Letters: b rows, s tokens of a row.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, TypeVar

from kernels import FEW_ROWS, backend, compiled, scored_bytes
from planning.shapes import Setup, embedding, layer_bytes, layer_weights, weights

if TYPE_CHECKING:
    import torch

    from glm.cache import KVCache
    from glm.model import GLM

STEP_BYTES = 256 << 20  # of weights that a decoding step reads: far more than a core's caches hold
READ = 50_000_000 * 1024  # weights times tokens of a pass that reads: the fewer tokens, the more layers
CACHE_BYTES = 256 << 20  # that a timed step looks at, at most
OTHERS = 256 << 20  # bytes that are read in between, at most
ROWS = (1, 2, 4, 8, 16, 32, 64)  # of a decoding step
SEEN_ROWS = (1, 4, 16, 64)
TOKENS = (16, 64, 256, 512, 1024)  # of a pass that reads
WIDTH = 16  # tokens of a row, where attention is to count little
SEEN = 1024  # places of the cache, or tokens of a row, where it is to count
SCORED = (1, 4, 16, 64, 256, 1024)  # places whose tokens are scored
LEAST, MOST = 3, 20  # rounds
LEAST_OF_RANKS = 7
SETTLED, SHORT = 4, 5e-3  # times that short work is done in a row, and seconds after which it is not done again
ENOUGH, LONG = 1.0, 4.0  # seconds after which there are no more rounds than the least, and none at all

Key = TypeVar("Key")


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
    """Of such a model in such a format. Ranks call it together (planning/ranks.py), and get no attention: by more than
    it takes do their waits for one another differ."""
    import torch

    with torch.inference_mode():
        tried = _tried(setup)
        seen, pair = (Curve(((1, 0.0),)), 0.0) if setup.degree > 1 else (_seen(tried), _pair(tried))
        return Trial(_steps(tried), seen, _reads(tried, pair), pair, _of_places(tried, SCORED, _scored),
                     _of_places(tried, ROWS, _chosen))


def attention(setup: Setup) -> tuple[Curve, float]:
    """`seen` and `pair` of a trial, alone."""
    import torch

    with torch.inference_mode():
        tried = _tried(setup)
        return _seen(tried), _pair(tried)


@dataclass(frozen=True)
class Tried:
    """Layers in place of a model's."""

    setup: Setup  # of the model that they are of, which may be a narrower one
    narrower: int  # by how many times its widths are less
    model: GLM  # all that are tried
    table: float  # by how many times its vocabulary's matrix is less
    clock: Clock

    def layers_for(self, tokens: int) -> int:
        """How many are tried by a pass of so many tokens."""
        weights_of_all_ranks = layer_weights(self.setup) * self.setup.degree
        return max(1, min(self.model.config.num_layers, READ // (weights_of_all_ranks * tokens)))

    def step_bytes(self, _: object) -> int:
        """Of the weights that a step reads, however many rows it has."""
        return self.model.config.num_layers * layer_bytes(self.setup.run, self.setup)

    def pass_bytes(self, tokens: int) -> int:
        return self.layers_for(tokens) * layer_bytes(self.setup.run, self.setup)


def _tried(setup: Setup) -> Tried:
    from planning.layers import narrowed, sample_model, tried_vocabulary

    config, narrower = narrowed(setup.config, setup.degree)
    tried = replace(setup, config=config)
    count = max(1, min(config.num_layers, STEP_BYTES // (layer_bytes(setup.run, tried) * setup.degree)))
    model = sample_model(tried, count)
    table = tried_vocabulary(config, setup.degree) * config.hidden_size
    return Tried(tried, narrower, model, setup.config.vocab_size * setup.config.hidden_size / table,
                 Clock(sum(map(setup.run.bytes, weights(setup))), setup.degree))


class Clock:
    """Times work as if all other weights of the model were read between two times: what fits in the processor's caches
    stays there, and no more; a small model stays as a whole.

    Whatever will be compared is timed in turn, for the speed of a machine that others use changes from second to
    second. Short work comes some times in a row, of which the last one counts: a step of one row behind one of 64 rows,
    which leaves other things in the caches, took 0.70, 0.62, 0.59 ms, and 0.44 alone. The fastest time counts; of
    ranks, whose waits for one another belong to it, the middle one.
    """

    def __init__(self, size: float, ranks: int):
        """size: bytes of all weights."""
        import torch

        from runtime import parallel

        self._agreed, self._meet = parallel.broadcast_object, lambda: parallel.sum_over_parts(torch.zeros(1))
        self._ranks, self._size = ranks, size
        self._buffer = torch.zeros(int(min(size, OTHERS)) // 64 * 64, dtype=torch.uint8)
        operations = compiled()
        self._read = operations.read if operations else torch.sum

    def in_turn(self, works: Mapping[Key, Callable[[], object]], own: Callable[[Key], float]) -> dict[Key, float]:
        """Seconds of each, once everything is in its place. own: bytes of the model's weights that the work reads."""
        others = {key: self._buffer[:max(0, int(self._size - own(key))) // 64 * 64] for key in works}

        def timed() -> dict[Key, float]:
            return {key: self._timed(work, others[key]) for key, work in works.items()}

        timed()
        begin = time.perf_counter()
        first = timed()
        least, taken = LEAST if self._ranks == 1 else LEAST_OF_RANKS, time.perf_counter() - begin
        count = self._agreed(min(max(least, int(ENOUGH / taken)), MOST, 1 + int(LONG / taken)))
        rounds = [first, *(timed() for _ in range(count - 1))]
        of_all = min if self._ranks == 1 else median
        return {key: of_all([each[key] for each in rounds]) for key in works}

    def _timed(self, work: Callable[[], object], others: torch.Tensor) -> float:
        taken: list[float] = []
        while not taken or (self._ranks == 1 and len(taken) < SETTLED and sum(taken) < SHORT):
            self._read(others)
            if self._ranks > 1:  # what they lag behind one another by now is not the work's
                self._meet()
            begin = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begin)
        return taken[-1]


def _of_places(tried: Tried, counts: Iterable[int], work: Callable[[GLM, torch.Tensor], object]) -> Curve:
    """work(model, hidden states) by the places of these, no more of them than logits are computed for at a time."""
    import torch

    model = tried.model
    most = max(FEW_ROWS, scored_bytes("cpu") // (4 * model.config.vocab_size))
    x = torch.randn(most, model.config.hidden_size).to(model.head_weight.dtype)
    found = tried.clock.in_turn({count: lambda count=count: work(model, x[:count])
                                 for count in sorted({min(count, most) for count in counts})},
                                lambda _: tried.setup.run.bytes(embedding(tried.setup)))
    return Curve(tuple(found.items())).times(tried.table)


def _scored(model: GLM, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = model.head(hidden)
    return backend(logits).log_sums(logits)


def _chosen(model: GLM, hidden: torch.Tensor) -> torch.Tensor:
    logits = model.choices(hidden)
    logits.refine(1)
    return logits.values.max(dim=-1).indices


def _steps(tried: Tried) -> Curve:
    """Steps at an empty cache, by their rows."""
    wanted = sorted({*ROWS, min(tried.setup.rows, 4 * ROWS[-1])})
    found = tried.clock.in_turn({rows: _step(tried.model, tried.model.new_cache(rows, 2), 1) for rows in wanted},
                                tried.step_bytes)
    return Curve(tuple(found.items())).times(tried.narrower**2 / tried.model.config.num_layers)


def _seen(tried: Tried) -> Curve:
    """What a place more of each row adds, by the rows."""
    model, setup = tried.model, tried.setup
    place = 2 * model.config.num_layers * setup.cache_width * setup.element
    places = {rows: max(16, min(max(SEEN, setup.context), CACHE_BYTES // (place * rows)))
              for rows in sorted({*SEEN_ROWS, min(setup.rows, ROWS[-1])})}
    room = model.new_cache(1, max(rows * (count + 1) for rows, count in places.items()))  # of one step at a time
    works = {}
    for rows, count in places.items():
        works[rows, False] = _step(model, model.new_cache(rows, 2), 1)
        works[rows, True] = _step(model, _cut(room, rows, count + 1), count)
    found = tried.clock.in_turn(works, tried.step_bytes)
    return Curve(tuple((rows, max(0.0, found[rows, True] - found[rows, False]) / (count - 1))
                       for rows, count in places.items())).times(tried.narrower / model.config.num_layers)


def _cut(room: KVCache, rows: int, places: int) -> KVCache:
    """A cache in the memory of another one."""
    sides, layers, _, heads, _, size = room.whole.shape
    shape = sides, layers, rows, heads, places, size
    return type(room)(room.whole.view(-1)[:math.prod(shape)].view(shape))


def _step(model: GLM, cache: KVCache, places: int) -> Callable[[], None]:
    """A step of all the cache's rows, which look at so many places."""
    import torch

    from glm.inputs import position_ids

    tokens = torch.arange(cache.batch)[:, None] % model.config.vocab_size
    positions = position_ids(model.config, torch.full_like(tokens, min(places, _last(model))), torch.ones_like(tokens))

    def step() -> None:
        cache.length = places
        model.hidden_states(tokens, positions, None, cache)

    return step


def _reads(tried: Tried, pair: float) -> Curve:
    """Passes without attention, by their tokens. pair: `_pair`."""
    found = tried.clock.in_turn({tokens: _pass(tried, tokens // WIDTH, WIDTH) for tokens in TOKENS}, tried.pass_bytes)
    return Curve(tuple((tokens, tried.narrower**2 * seconds / tried.layers_for(tokens)
                        - tried.narrower * pair * tokens * WIDTH) for tokens, seconds in found.items()))


def _pair(tried: Tried) -> float:
    """What two tokens of a row take for attention."""
    longest = max(SEEN, min(tried.setup.context, 2 * SEEN)) // WIDTH * WIDTH
    found = tried.clock.in_turn({width: _pass(tried, longest // width, width) for width in (WIDTH, longest)},
                                lambda _: tried.pass_bytes(longest))
    more = max(0.0, found[longest] - found[WIDTH]) * tried.narrower / tried.layers_for(longest)
    return more / (longest * (longest - WIDTH))


def _pass(tried: Tried, rows: int, width: int) -> Callable[[], None]:
    """Rows of so many tokens are read: with a mask where they are scored, else into a cache."""
    import torch

    from glm.inputs import position_ids
    from planning.layers import part_of

    model, is_masked = part_of(tried.model, tried.layers_for(rows * width)), bool(tried.setup.scored)
    tokens = torch.arange(rows * width).view(rows, width) % model.config.vocab_size
    places = torch.arange(width).expand(rows, width).clamp(max=_last(model))
    positions = position_ids(model.config, places, torch.zeros_like(places))
    blocked = None
    if is_masked:  # as contexts have it that do not see the quarter behind them
        blocked = torch.zeros(rows, width, width, dtype=torch.bool)
        blocked[:, :, -(width // 4):] = torch.ones(width, width // 4, dtype=torch.bool).triu(1 + width // 4 - width)
    cache = None if is_masked else model.new_cache(rows, width, is_clear=False)

    def read() -> None:
        if cache is not None:
            cache.length = 0
        model.hidden_states(tokens, positions, blocked, cache)

    return read


def _last(model: GLM) -> int:
    """Of the positions that it has."""
    return model.config.max_sequence_length - 1 if model.last_position is None else model.last_position
