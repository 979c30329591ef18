"""Products of many rows of x: torch's, with blocks of a weight that is packed or not of the products' type.

Such a product is bound by arithmetic, which is that of float32 where the processor has no products of 16 bits: torch
would imitate them there, at a tenth of the rate.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import UNPACKED_BYTES
from kernels.reference import PackedWeight
from runtime.resources import make_large

WORKSPACE_BYTES = 33 << 20  # more than keep_freed_memory leaves to the heap; only what is used becomes memory


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """x (m, k) times weight (n, k) transposed, plus bias, in float32; rounded once, to the type of out (m, n), which is
    returned."""

    def fill(first: int, block: Tensor) -> None:
        block.copy_(weight[first:first + len(block)])

    wide = _workspace("x", *x.shape, torch.float32).copy_(x)
    return _by_blocks(wide, fill, bias, out)


def packed_linear(operators, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor) -> Tensor:
    """The same with a packed weight, in the type that the processor multiplies. Both sides have their columns in the
    order in which packed weights are unpacked fastest."""
    (m, k), threads, types = x.shape, torch.get_num_threads(), operators.TYPES
    data, scale, bits, group_size = weight
    wide = torch.bfloat16 if x.dtype is torch.bfloat16 and operators.has_bf16_products else torch.float32
    arranged = _workspace("x", m, operators.library.glm_padded(bits, k), wide)
    operators.library.glm_arrange(types[x.dtype], x.data_ptr(), m, k, bits, types[wide], arranged.data_ptr(), threads)

    def fill(first: int, block: Tensor) -> None:
        operators.library.glm_unpack(data.data_ptr(), scale.data_ptr(), types[scale.dtype], bits, group_size or k, k,
                                     first, len(block), types[wide], block.data_ptr(), threads)

    return _by_blocks(arranged, fill, bias, out)


def _by_blocks(x: Tensor, fill: Callable[[int, Tensor], None], bias: Tensor | None, out: Tensor) -> Tensor:
    """fill(first, block) writes rows of the weight, from `first` on, to a block like x."""
    columns, n = x.shape[1], out.shape[1]
    height = max(1, min(n, UNPACKED_BYTES // (columns * x.itemsize)))
    room = _workspace("weight", height, columns, x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    for first in range(0, n, height):
        block = room[:n - first]
        fill(first, block)
        part = slice(first, first + len(block))
        out[:, part] = F.linear(x, block, None if bias is None else bias[part])
    return out


_kept = threading.local()


def _workspace(name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns) of this thread's memory for `name`, whose content is lost with the next call. Kept, and so large
    that the system gives it whole pages of its own: in pieces of the heap torch's products were a fifth slower."""
    size = rows * columns * dtype.itemsize
    buffer = getattr(_kept, name, None)
    if buffer is None or buffer.numel() < size:
        buffer = make_large(torch.empty(max(size, WORKSPACE_BYTES), dtype=torch.uint8))
        setattr(_kept, name, buffer)
    return buffer[:size].view(dtype).view(rows, columns)
