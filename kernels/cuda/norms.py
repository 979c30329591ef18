"""Layer norms and RMS norms of rows, with bias and residual before them, in one launch (norm.h): a block takes a row.

They stand between the products of a layer, where torch would start a kernel for each operation and write every
intermediate value to memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cuda.build import KINDS, Program
from kernels.cuda.driver import Call, aligned

SOURCE = "step.cu"
THREADS = 1024  # NORM_THREADS in norm.h: the most
MOST_QUADS = 4  # 16-byte pieces of a row that a thread holds


def norm(device, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, residual: Tensor | None = None,
         alpha: float = 1.0, added: Tensor | None = None, total: Tensor | None = None) -> Tensor:
    """reference.layer_norm of x + added + alpha * residual, all (..., h) but added (h); without a bias
    reference.rms_norm. On `device` (driver.Device), in float32 and rounded once. total: (..., h), contiguous, where the
    sum is put, too. Raises ValueError and kernels.cache.BuildError."""
    check(x, weight, bias, residual, added)
    x, residual = aligned(x), None if residual is None else aligned(residual)
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    each, threads = division(x)
    call = Call((x, residual, added, weight, bias), (), (total, out), (x.shape[-1],), (alpha, epsilon))
    device.launch(Program(SOURCE, KINDS[x.dtype]), f"norm_{each}", (x.numel() // x.shape[-1], 1), threads, call)
    return out


def division(x: Tensor) -> tuple[int, int]:
    """How a block divides a row of x (..., h): 16-byte pieces of each thread at most, threads."""
    quads = x.shape[-1] * x.element_size() // 16
    each = next(count for count in (1, 2, MOST_QUADS) if quads <= count * THREADS)
    return each, 32 * -(-quads // (32 * each))


def fits(x: Tensor, *vectors: Tensor | None) -> bool:
    """Whether there is a kernel for the norm of x (..., h): whole 16-byte pieces, no more than a block holds; vectors,
    its weight and biases (h), like x, in one piece, from a multiple of 16 bytes on."""
    row = x.shape[-1] * x.element_size()
    return (x.dtype in KINDS and row % 16 == 0 and row <= 16 * MOST_QUADS * THREADS
            and all(part.shape == x.shape[-1:] and part.dtype is x.dtype and part.data_ptr() % 16 == 0
                    and part.is_contiguous() for part in vectors if part is not None))


def check(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, added: Tensor | None = None) -> None:
    """Raises ValueError, one line, where norm's arguments do not belong together."""
    vectors = [part for part in (weight, bias, added) if part is not None]
    if not fits(x, *vectors):
        given = " ".join(f"{part.dtype} {tuple(part.shape)}" for part in (x, *vectors))
        raise ValueError(f"norm: x, weight and bias are {given}; they must be of one dtype, in rows of whole 16 bytes, "
                         f"at most {16 * MOST_QUADS * THREADS}, and weight and bias begin at a multiple of 16")
    if residual is not None and (residual.shape != x.shape or residual.dtype is not x.dtype):
        raise ValueError(f"norm: the residual is {residual.dtype} {tuple(residual.shape)}, x {x.dtype} "
                         f"{tuple(x.shape)}")
    if len({part.device for part in (x, residual, *vectors) if part is not None}) > 1:
        raise ValueError("norm: all tensors must be on one device")
