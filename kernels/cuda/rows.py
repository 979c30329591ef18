"""Kernels of which a block takes a whole row: norms, with the residual before them, and the greedy choice (norm.h,
choice.h)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.cuda.build import KINDS, Program
from kernels.cuda.driver import Call, aligned

SOURCE = "step.cu"
NORM_THREADS, CHOICE_THREADS = 1024, 1024  # as in norm.h (the most) and choice.h
MOST_QUADS = 4  # 16-byte pieces of a row that a thread holds
LARGEST_GRID = 2**31 - 1


def norm(device, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, residual: Tensor | None = None,
         alpha: float = 1.0) -> Tensor:
    """reference.layer_norm of x + alpha * residual, all (..., h); without a bias reference.rms_norm. On `device`
    (driver.Device), in float32 and rounded once. Raises ValueError and kernels.cache.BuildError."""
    return _launch_norm(device, x, weight, bias, epsilon, residual, alpha, None)


def sum_and_norm(device, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, residual: Tensor,
                 alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """x + alpha * residual, which the next residual is made of where norms come first, and its norm."""
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    return total, _launch_norm(device, x, weight, bias, epsilon, residual, alpha, total)


def _launch_norm(device, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, residual: Tensor | None,
                 alpha: float, total: Tensor | None) -> Tensor:
    check_norm(x, weight, bias, residual)
    x, residual = aligned(x), None if residual is None else aligned(residual)
    out, quads = torch.empty_like(x), x.shape[-1] * x.element_size() // 16
    if out.numel() == 0:
        return out
    each = next(count for count in (1, 2, MOST_QUADS) if quads <= count * NORM_THREADS)
    threads = 32 * -(-quads // (32 * each))
    call = Call((x, residual, weight, bias), (), (total, out), (x.shape[-1],), (alpha, epsilon))
    device.launch(Program(SOURCE, KINDS[x.dtype]), f"norm_{each}", (x.numel() // x.shape[-1], 1), threads, call)
    return out


def fits(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether there is a kernel for the norm of x (..., h): whole 16-byte pieces, no more than a block holds; weight
    and bias (h) like x, in one piece, from a multiple of 16 bytes on."""
    row = x.shape[-1] * x.element_size()
    return (x.dtype in KINDS and row % 16 == 0 and row <= 16 * MOST_QUADS * NORM_THREADS
            and all(part.shape == x.shape[-1:] and part.dtype is x.dtype and part.data_ptr() % 16 == 0
                    and part.is_contiguous() for part in (weight, bias) if part is not None))


def check_norm(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    vectors = [part for part in (weight, bias) if part is not None]
    if not fits(x, weight, bias):
        given = " ".join(f"{part.dtype} {tuple(part.shape)}" for part in (x, *vectors))
        raise ValueError(f"norm: x, weight and bias are {given}; they must be of one dtype, in rows of whole 16 bytes, "
                         f"at most {16 * MOST_QUADS * NORM_THREADS}, and weight and bias begin at a multiple of 16")
    if residual is not None and (residual.shape != x.shape or residual.dtype is not x.dtype):
        raise ValueError(f"norm: the residual is {residual.dtype} {tuple(residual.shape)}, x {x.dtype} "
                         f"{tuple(x.shape)}")
    if len({part.device for part in (x, residual, *vectors) if part is not None}) > 1:
        raise ValueError("norm: all tensors must be on one device")


def choose_largest(device, logits: Tensor) -> Tensor:
    """torch.argmax of float32 logits (..., v) over the last dimension -> (...) int64; of equal ones the first, and what
    is no number counts as the largest. Raises ValueError and kernels.cache.BuildError."""
    v = logits.shape[-1]
    if logits.dtype is not torch.float32 or not 0 < v < 2**31:
        raise ValueError(f"choose_largest: logits are {logits.dtype} {tuple(logits.shape)}; float32 (..., v) are "
                         "needed")
    out = torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    if out.numel():
        call = Call((logits.contiguous(),), (), (out,), (v,))
        device.launch(Program(SOURCE, KINDS[torch.float32]), "choose_largest", (out.numel(), 1), CHOICE_THREADS, call)
    return out
