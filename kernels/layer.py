"""What a layer computes, as values: its form, its tensors, and all layers of a model in plain torch.

Shapes: b batch, s sequence, h hidden, n heads, g heads of keys and values, d head size, i inner, r turned coordinates.
"""

from __future__ import annotations

from enum import IntEnum
from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from kernels import reference
from kernels.reference import Lengths, PackedWeight


class Rotary(IntEnum):
    """Which coordinates of queries and keys turn together. Numbered as in attention.h."""

    NONE = 0  # positions are learned
    HALVES = 1  # j and d/2 + j
    HALVES_2D = 2  # so within each half of a head, which turn by a position each
    PAIRS = 3  # 2j and 2j + 1 of the first r


class Activation(IntEnum):
    """What stands between the matrices of the MLP. Numbered as in pointwise.h."""

    GEGLU = 0  # reference.geglu
    GELU = 1  # reference.gelu, exact
    GELU_TANH = 2  # reference.gelu, approximate
    SWIGLU = 3  # reference.swiglu

    @property
    def is_gated(self) -> bool:
        return self in (Activation.GEGLU, Activation.SWIGLU)


class LayerForm(NamedTuple):
    """What the layers of a model compute with their tensors:

    a = norm1(x);  y = alpha * r + attention(a);  m = norm2(y);  x' = alpha * r' + mlp(m)

    where r and r' are x and y (pre-norm), or a and m. A norm without a bias is an RMS norm.
    """

    activation: Activation
    rotary: Rotary
    alpha: float  # of the residual
    epsilon: float  # of the norms
    is_pre_norm: bool  # the residual is what a norm is given; else what it gives
    is_by_heads: bool  # the rows of qkv are [q | k | v] head by head; else all of q, all of k, all of v


class LayerWeights(NamedTuple):
    """The tensors of one layer, in the order in which the compiled stack reads them; matrices may be packed."""

    norm1_weight: Tensor  # (h)
    norm1_bias: Tensor | None
    qkv_weight: Tensor | PackedWeight  # ((n + 2*g)*d, h)
    qkv_bias: Tensor | None
    dense_weight: Tensor | PackedWeight  # (h, n*d)
    dense_bias: Tensor | None
    norm2_weight: Tensor  # (h)
    norm2_bias: Tensor | None
    in_weight: Tensor | PackedWeight  # (2*i, h) where the activation is gated, else (i, h)
    in_bias: Tensor | None
    out_weight: Tensor | PackedWeight  # (h, i)
    out_bias: Tensor | None


def stack(layers: list[LayerWeights], final_norm: tuple[Tensor, Tensor | None], keys: list[Tensor],
          values: list[Tensor], form: LayerForm, hidden: Tensor, cosine: Tensor, sine: Tensor, start: int | Lengths,
          blocked: Tensor | None = None, operations: ModuleType = reference) -> Tensor:
    """All layers and the final norm: hidden (b, s, h) -> (b, s, h), what the compiled backends' one call for all
    layers computes. keys and values: of each layer (b, g, capacity, d); cosine and sine (b, s, r) are not read
    with learned positions; start and blocked as in reference.attend.

    operations: the backend whose operations are used.
    """
    ops = operations

    for w, *cached in zip(layers, keys, values, strict=True):
        a = normalised(hidden, w.norm1_weight, w.norm1_bias, form.epsilon, ops)
        context = attend(ops.linear(a, w.qkv_weight, w.qkv_bias), form, cosine, sine, *cached, start, blocked, ops)
        update = ops.linear(context, w.dense_weight, w.dense_bias)
        between = ops.scaled_add(hidden if form.is_pre_norm else a, update, form.alpha)
        m = normalised(between, w.norm2_weight, w.norm2_bias, form.epsilon, ops)
        inner = activated(ops.linear(m, w.in_weight, w.in_bias), form.activation, ops)
        update = ops.linear(inner, w.out_weight, w.out_bias)
        hidden = ops.scaled_add(between if form.is_pre_norm else m, update, form.alpha)
    return normalised(hidden, *final_norm, form.epsilon, ops)


def normalised(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float,
               operations: ModuleType = reference) -> Tensor:
    """(..., h) -> (..., h); without a bias the RMS norm."""
    if bias is None:
        return operations.rms_norm(x, weight, epsilon)
    return operations.layer_norm(x, weight, bias, epsilon)


def activated(x: Tensor, activation: Activation, operations: ModuleType = reference) -> Tensor:
    """(..., 2*i) where it is gated, else (..., i) -> (..., i)."""
    if activation is Activation.GEGLU:
        return operations.geglu(x)
    if activation is Activation.SWIGLU:
        return operations.swiglu(x)
    return operations.gelu(x, activation is Activation.GELU)


def attend(qkv: Tensor, form: LayerForm, cosine: Tensor, sine: Tensor, keys: Tensor, values: Tensor,
           start: int | Lengths, blocked: Tensor | None, ops: ModuleType) -> Tensor:
    """(b, s, (n + 2*g)*d) -> (b, s, n*d), the form's attention; the rest as in `stack`."""
    _, groups, _, size = keys.shape
    if form.rotary is Rotary.PAIRS:
        return ops.attend_groups(qkv, groups, size, cosine, sine, keys, values, start, blocked)
    if form.rotary is Rotary.NONE:
        cosine, sine = cosine.new_ones(*qkv.shape[:2], size), sine.new_zeros(*qkv.shape[:2], size)
    if not form.is_by_heads:
        qkv = by_heads(qkv, size)
    return ops.attend(qkv, cosine, sine, keys, values, start, blocked, form.rotary is Rotary.HALVES_2D)


def by_heads(qkv: Tensor, size: int) -> Tensor:
    """All of q, all of k, all of v (..., 3*n*d) -> [q | k | v] head by head; size is d."""
    return qkv.unflatten(-1, (3, -1, size)).transpose(-3, -2).flatten(-3)
