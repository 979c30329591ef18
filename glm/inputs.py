"""Masks, positions and padding: pure functions of lengths and ids.

`blocked` is True where attention is forbidden: blocked[b, i, j] means token i of row b must not see token j.
"""

import torch


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
