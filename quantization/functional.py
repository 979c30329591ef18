"""Symmetric weight-only quantisation as formulas on tensors; knows no model. How the result lies in memory:
kernels/packing.py.

    scale = max|w| / (2^(bits - 1) - 1)  over a row, or over a group of its columns;    q = round(w / scale)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.packing import dequantize, pack_int4, unpack_int4

__all__ = ["dequantize", "pack_int4", "quantize", "unpack_int4"]
PIECE = 1 << 18  # so many weights are quantised at a time: they stay in the cache
PIECE_ON_DEVICE = 1 << 24  # there each piece is some ten launches, which take the host longer than a small one's work


class Scheme(NamedTuple):
    """How one weight is quantised."""

    bits: int  # 8 or 4
    group_size: int | None = None  # columns that share a scale; None: a whole row


def quantize(weight: Tensor, bits: int, group_size: int | None = None,
             empty: Callable[..., Tensor] = torch.empty) -> tuple[Tensor, Tensor]:
    """(rows, columns) float -> packed weight (int8) and its float16 scale, (rows,) or (rows, columns / group_size).

    A float16 weight gives, bit for bit, what the original computes in half precision: the quotient is rounded to
    float16 before it is rounded to a whole number (half to even). Other dtypes are divided in float32, by the scale as
    it is stored. Where a row (group) is too small for a float16 scale, its weights become zeros.
    Needs, beside the result, memory for some rows in float32 only (PIECE values; on a device PIECE_ON_DEVICE).
    empty(shape, dtype=..., device=...): makes the two, of which nothing is read before it is written.
    Raises ValueError for other bits, an odd number of columns (4 bits) or groups that do not divide the columns.
    """
    rows, columns = weight.shape
    check_scheme(columns, bits, group_size)
    packed = empty((rows, columns * bits // 8), dtype=torch.int8, device=weight.device)
    scale = empty((rows, columns // (group_size or columns)), dtype=torch.float16, device=weight.device)
    step = max(1, (PIECE if weight.device.type == "cpu" else PIECE_ON_DEVICE) // columns)
    for start in range(0, rows, step):
        piece = slice(start, start + step)
        packed[piece], scale[piece] = _quantize_rows(weight[piece], bits, scale.shape[1])
    return packed, scale if group_size else scale[:, 0]


def _quantize_rows(weight: Tensor, bits: int, groups: int) -> tuple[Tensor, Tensor]:
    largest = 2 ** (bits - 1) - 1
    values = weight.float().reshape(weight.shape[0], groups, -1)
    scale = (values.abs().amax(dim=-1) / largest).half()
    values = values / scale[..., None].float().masked_fill(scale[..., None] == 0, torch.inf)
    if weight.dtype == torch.float16:
        values = values.half()
    # a scale that was rounded down can give largest + 1/2, which would round up
    values = values.round().clamp(-largest, largest).to(torch.int8).reshape(weight.shape)
    return pack_int4(values) if bits == 4 else values, scale


def check_scheme(columns: int, bits: int, group_size: int | None) -> None:
    """Raises ValueError, one line, where so many columns cannot be quantised like this."""
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits}; it must be 4 or 8")
    if bits == 4 and columns % 2:
        raise ValueError(f"{columns} columns cannot be packed in pairs: 4 bits need an even number")
    if group_size is not None and (group_size < 1 or columns % group_size):
        raise ValueError(f"groups of {group_size} columns do not divide {columns} columns")
