"""Operations with gradients of their own: less is kept for the backward pass, and nothing is copied, or filled with
zeros, that is written anyway.

What is cheap is computed again: a GELU, a layer norm. Shapes: b batch, s sequence, n heads, d head size, i inner.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def halves(x: Tensor, positions_2d: bool) -> list[tuple[Tensor, Tensor]]:
    """What turns together in (..., d), as views: j and d/2 + j; in 2D so within each half of d."""
    parts = x.chunk(4 if positions_2d else 2, dim=-1)
    return [(parts[index], parts[index + 1]) for index in range(0, len(parts), 2)]


def turn(x: Tensor, cosine: Tensor, sine: Tensor, positions_2d: bool, out: Tensor) -> None:
    """x * cosine + rotate_half(x) * sine, written to out; all broadcast to (..., d)."""
    torch.mul(x, cosine, out=out)
    for (first, second), (to_first, to_second), (sine1, sine2) in zip(
            *(halves(each, positions_2d) for each in (x, out, sine)), strict=True):
        to_first.addcmul_(second, sine1, value=-1)
        to_second.addcmul_(first, sine2)


def turn_back(gradient: Tensor, cosine: Tensor, sine: Tensor, positions_2d: bool, out: Tensor) -> None:
    """The gradient of `turn`'s x, from that of its result; written to out."""
    torch.mul(gradient, cosine, out=out)
    for (first, second), (to_first, to_second), (sine1, sine2) in zip(
            *(halves(each, positions_2d) for each in (gradient, out, sine)), strict=True):
        to_first.addcmul_(second, sine2)
        to_second.addcmul_(first, sine1, value=-1)


class Turned(torch.autograd.Function):
    """qkv (b, s, n, 3, d), cosine and sine (b, s, d), even (b, s) bool or None -> q, k, v (b, s, n, d), of which q and
    k are turned, and q is zero where `even` says so: all scores are equal there. They lie in one tensor as before;
    nothing else is kept, and qkv may go."""

    @staticmethod
    def forward(qkv: Tensor, cosine: Tensor, sine: Tensor, positions_2d: bool,
                even: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        out = torch.empty_like(qkv)
        turn(qkv[..., :2, :], _beside_heads(cosine, qkv), _beside_heads(sine, qkv), positions_2d, out[..., :2, :])
        out[..., 2, :] = qkv[..., 2, :]
        query, key, value = out.unbind(-2)
        if even is not None:
            query.masked_fill_(even[..., None, None], 0.0)
        return query, key, value

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, cosine, sine, ctx.positions_2d, even = inputs
        ctx.save_for_backward(cosine, sine, even)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine, even = ctx.saved_tensors
        out = gradients[0].new_empty((*gradients[0].shape[:-1], 3, gradients[0].shape[-1]))
        cosine, sine = (_beside_heads(each, out)[..., 0, :] for each in (cosine, sine))
        for number, gradient in enumerate(gradients[:2]):
            turn_back(gradient, cosine, sine, ctx.positions_2d, out[..., number, :])
        if even is not None:
            out[..., 0, :].masked_fill_(even[..., None, None], 0.0)
        out[..., 2, :] = gradients[2]
        return out, None, None, None, None


def _beside_heads(angles: Tensor, like: Tensor) -> Tensor:
    return angles[:, :, None, None].to(like.dtype)


class Geglu(torch.autograd.Function):
    """x (..., 2i) = halves (x1, x2) -> x1 * gelu(x2) (..., i). Keeps x alone."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return F.gelu(gate).mul_(value)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        out = torch.empty_like(x)
        (value, gate), (to_value, to_gate) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
        torch.mul(F.gelu(gate), gradient, out=to_value)
        to_gate.copy_(torch.ops.aten.gelu_backward(gradient * value, gate))
        return out


class Dropped(torch.autograd.Function):
    """x where `kept` (bool, of its shape) says so, divided by 1 - share, else 0. Keeps `kept`, a byte a value."""

    @staticmethod
    def forward(x: Tensor, kept: Tensor, share: float) -> Tensor:
        return x * (kept.to(x.dtype) / (1.0 - share))

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _, kept, ctx.share = inputs
        ctx.save_for_backward(kept)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return Dropped.forward(gradient, *ctx.saved_tensors, ctx.share), None, None


class Drop(NamedTuple):
    """What training drops of some values."""

    kept: Tensor  # bool, of their shape
    share: float  # that is not kept

    def of(self, x: Tensor) -> Tensor:
        return Dropped.apply(x, *self)


def made_again(x: Tensor, make: Callable[[], Tensor]) -> AbstractContextManager:
    """Within it, operations that keep x for their gradients keep `make` instead, which gives x again."""
    if not x.requires_grad:
        return nullcontext()
    place, size, dtype = x.data_ptr(), x.numel(), x.dtype

    def pack(tensor: Tensor) -> Tensor | torch.Size:
        is_x = tensor.data_ptr() == place and tensor.numel() == size and tensor.dtype is dtype
        return tensor.shape if is_x else tensor

    def unpack(kept: Tensor | torch.Size) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return make().view(kept)

    return saved_tensors_hooks(pack, unpack)
