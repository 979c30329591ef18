"""Symmetric weight-only quantisation as formulas on tensors; knows no model. How the result lies in memory:
kernels/packing.py.

    scale = max|w| / (2^(bits - 1) - 1)  over a row, or over a group of its columns;    q = round(w / scale)
"""

import torch
from torch import Tensor

from kernels.packing import dequantize, pack_int4, unpack_int4

__all__ = ["dequantize", "pack_int4", "quantize", "unpack_int4"]


def quantize(weight: Tensor, bits: int, group_size: int | None = None) -> tuple[Tensor, Tensor]:
    """(rows, columns) float -> packed weight (int8) and its float16 scale, (rows,) or (rows, columns / group_size).

    A float16 weight gives, bit for bit, what the original computes in half precision: the quotient is rounded to
    float16 before it is rounded to a whole number (half to even). Other dtypes are divided in float32, by the scale as
    it is stored. Where a row (group) is too small for a float16 scale, its weights become zeros.
    Raises ValueError for other bits, an odd number of columns (4 bits) or groups that do not divide the columns.
    """
    rows, columns = weight.shape
    check_scheme(columns, bits, group_size)
    groups = weight.reshape(rows, -1, group_size or columns)
    largest = 2 ** (bits - 1) - 1
    scale = (groups.abs().amax(dim=-1).float() / largest).half()
    quotient = groups.float() / scale[..., None].float().masked_fill(scale[..., None] == 0, torch.inf)
    if weight.dtype == torch.float16:
        quotient = quotient.half()
    # a scale that was rounded down can give largest + 1/2, which would round up
    values = quotient.round().clamp(-largest, largest).to(torch.int8).reshape(rows, columns)
    return pack_int4(values) if bits == 4 else values, scale if group_size else scale[:, 0]


def check_scheme(columns: int, bits: int, group_size: int | None) -> None:
    """Raises ValueError, one line, where so many columns cannot be quantised like this."""
    if bits not in (4, 8):
        raise ValueError(f"bits is {bits}; it must be 4 or 8")
    if bits == 4 and columns % 2:
        raise ValueError(f"{columns} columns cannot be packed in pairs: 4 bits need an even number")
    if group_size is not None and (group_size < 1 or columns % group_size):
        raise ValueError(f"groups of {group_size} columns do not divide {columns} columns")
