"""What goes into a model beside the tokens: padding, masks, positions and their rotary angles, as pure functions.

`blocked` is True where attention is forbidden: blocked[b, i, j] means token i of row b must not see token j.

The rule of positions: a context's tokens count 0, 1, 2, ...; those of a blank all have the position of its mask, or
count on from a first one. A second channel, for models that have one, is 0 in the context and counts 1, 2, ... inside a
blank, from its sop on.

Rotary angles (Su et al. 2021) are not tabulated: those of the few tokens of a call cost less than keeping, growing and
moving a table would, and no position is ever out of range.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch

from glm.config import ModelConfig

BASE = 10000.0
T = TypeVar("T", int, torch.Tensor)


def right_pad(rows: list[list[int]], fill: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids -> tokens (b, s) int64 padded on the right to the longest, lengths (b,) int64."""
    lengths = torch.tensor([len(row) for row in rows])
    width = max((len(row) for row in rows), default=0)
    tokens = torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.int64).view(len(rows), width)
    return tokens, lengths


def padding_blocked(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """(b,) -> (b, 1, width): the places behind each row's end. Broadcasts over the querying tokens.

    lengths [2, 3], width 3 -> [[[F F T]], [[F F F]]]
    """
    return (torch.arange(width, device=lengths.device) >= lengths[:, None])[:, None]


def prefix_causal_blocked(prefix_lengths: torch.Tensor, lengths: torch.Tensor, width: int) -> torch.Tensor:
    """GLM's mask, (b, width, width): the first prefix_lengths[b] tokens are seen by all, the rest causally.

    prefix 2, length 4, width 5 (x = blocked):
        . . x x x
        . . x x x
        . . . x x
        . . . . x
        x x x x x   padding sees nothing
    """
    places = torch.arange(width, device=lengths.device)
    future = places[None, :] > places[:, None]
    beyond_prefix = places[None, None, :] >= prefix_lengths[:, None, None]
    padding = places >= lengths[:, None]
    return (future & beyond_prefix) | padding[:, None, :] | padding[:, :, None]


def in_blank(first: T, advance: T, step: T) -> tuple[T, T]:
    """Position and place of a blank's token, sop being step 0. advance: 0 where all have the position of the mask, else
    1. Numbers, arrays or tensors."""
    return first + step * advance, step + 1


def row_positions(context: int, blanks: Iterable[tuple[int, int, int]]) -> tuple[list[int], list[int]]:
    """Positions and places of a whole row: a context of so many tokens, and behind it blanks (first, advance, tokens).

    3, [(1, 0, 2)] -> [0, 1, 2, 1, 1], [0, 0, 0, 1, 2]
    """
    positions, places = list(range(context)), [0] * context
    for first, advance, count in blanks:
        for step in range(count):
            position, place = in_blank(first, advance, step)
            positions.append(position)
            places.append(place)
    return positions, places


def position_ids(config: ModelConfig, positions: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Positions and places (b, s) as the model takes them: (b, 2, s) where it has both channels, else (b, s)."""
    return torch.stack((positions, places), dim=1) if config.position_encoding_2d else positions


def whole_row(config: ModelConfig, ids: Sequence[int], context: int, shared_position: int | None, is_causal: bool,
              device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A row that is read at once: tokens (1, s), positions as the model takes them, blocked (1, s, s).

    context: how many of the ids stand before the blank. shared_position: of the blank's tokens; None: they count on.
    is_causal: tokens of the context, too, see only what is left of them.
    """
    s = len(ids)
    first, advance = (context, 1) if shared_position is None else (shared_position, 0)
    places = torch.tensor([row_positions(context, [(first, advance, s - context)])], device=device)  # (1, 2, s)
    prefix = torch.tensor([0 if is_causal else context], device=device)
    blocked = prefix_causal_blocked(prefix, torch.tensor([s], device=device), s)
    return torch.tensor([list(ids)], device=device), position_ids(config, *places.unbind(1)), blocked


@functools.cache
def inverse_frequencies(dimension: int, rotary_table: str, device: str = "cpu") -> torch.Tensor:
    """1 / 10000^(2i / dimension) for i < dimension/2, float32 (float16 for rotary_table "half").

    GLM-130B keeps them rounded to float16 in its checkpoints, hence "half" and "half_inv_freq".
    """
    exponents = torch.arange(0, dimension, 2, dtype=torch.float32, device=device) / dimension
    exact = 1.0 / BASE ** exponents
    if rotary_table == "exact":
        return exact
    return exact.half() if rotary_table == "half" else exact.half().float()


@functools.cache
def doubled_frequencies(dimension: int, rotary_table: str, device: str = "cpu") -> torch.Tensor:
    """(dimension,): the inverse frequencies twice, once for each of the halves that are turned against each other."""
    return inverse_frequencies(dimension, rotary_table, device).repeat(2)


def cosine_sine(position_ids: torch.Tensor, frequencies: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every token's angles, laid out over the head: (b, s, d) float32 each.

    position_ids: (b, s), or (b, 2, s) for 2D positions: the first half of the head then turns with position_ids[:, 0],
    the second with position_ids[:, 1], each as a head of its own. frequencies: doubled_frequencies of the head size, or
    of half of it; their precision carries through angle, cosine and sine.
    """
    if position_ids.dim() == 3:
        angles = (position_ids.mT.unsqueeze(-1) * frequencies).flatten(-2)
    else:
        angles = position_ids.unsqueeze(-1) * frequencies
    return angles.cos().float(), angles.sin().float()
