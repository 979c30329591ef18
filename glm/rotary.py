"""Rotary position angles (Su et al. 2021), pure functions of the position ids.

Nothing is tabulated: the angles of the few tokens of a call cost less than keeping, growing and moving a table would,
and no position is ever out of range.
"""

import functools

import torch

BASE = 10000.0


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


def _angles(position_ids: torch.Tensor, inverse_frequency: torch.Tensor) -> torch.Tensor:
    """(..., s) int64 x (dimension/2) -> (..., s, dimension): the angles twice, one for each rotated half."""
    angles = position_ids.to(inverse_frequency.dtype).unsqueeze(-1) * inverse_frequency
    return torch.cat((angles, angles), dim=-1)


def cosine_sine(position_ids: torch.Tensor, inverse_frequency: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every token's angles, laid out over the head: (b, s, d) float32 each.

    position_ids: (b, s), or (b, 2, s) for 2D positions: the first half of the head then turns with
    position_ids[:, 0], the second with position_ids[:, 1], each as a head of its own (inverse_frequency is
    that of half the head size). The precision of inverse_frequency carries through angle, cosine and sine.
    """
    if position_ids.dim() == 3:
        angles = torch.cat([_angles(position_ids[:, i], inverse_frequency) for i in range(2)], dim=-1)
    else:
        angles = _angles(position_ids, inverse_frequency)
    return angles.cos().float(), angles.sin().float()
