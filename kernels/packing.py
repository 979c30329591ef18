"""How quantised weights lie in memory, as formulas on tensors: what every kernel must read, and the slow way to do it.

A packed weight is int8 (rows, columns) with 8 bits, or (rows, columns / 2) with 4: the even column in the high half of
a byte, the odd column in the low half, both two's complement. Its scale is (rows,) or, for groups of neighbouring
columns, (rows, groups).
"""

import torch
from torch import Tensor

BITS = (8, 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """int8 (rows, columns / 2) -> int8 (rows, columns) with values -8 ... 7."""
    high = packed >> 4  # arithmetic: keeps the sign
    low = (packed << 4) >> 4
    return torch.stack((high, low), dim=-1).flatten(-2)


def pack_int4(values: Tensor) -> Tensor:
    """int8 (rows, columns), columns even, values -8 ... 7 -> int8 (rows, columns / 2)."""
    return (values[..., 0::2] << 4) | (values[..., 1::2] & 0xF)


def dequantize(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Packed weight and its scale -> (rows, columns) of ``dtype``: q * scale, rounded once, to ``dtype``.

    The product of int8 and a half-precision scale is exact in float32, so float32 gives it unrounded and float16
    what half-precision arithmetic gives.
    """
    if bits not in BITS:
        raise ValueError(f"bits is {bits}; it must be 4 or 8")
    values = unpack_int4(weight) if bits == 4 else weight
    rows, columns = values.shape
    groups = scale.reshape(rows, -1, 1).float()
    product = values.view(rows, groups.shape[1], -1).float().mul_(groups)
    return product.view(rows, columns).to(dtype)
