"""All layers of a decoding step on a GPU: kernels.layer.stack with what stands between the products in their ends.

Seven kernels a layer where ours are used: norm, qkv, attention, dense, norm, in, out. What changes from step to step is
read from tensors (the rows' lengths, positions, tokens), so that a step can be recorded (graph.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.cuda.linear import End
from kernels.layer import LayerForm, LayerWeights, attend, normalised
from kernels.reference import Lengths

if TYPE_CHECKING:
    from kernels.cuda import Operators


class Stack:
    """For one model and one cache: layers and final_norm as kernels.layer.stack takes them; keys and values of each
    layer (rows, g, capacity, d), of which a step of b rows uses the first b."""

    def __init__(self, operators: Operators, layers: list[LayerWeights], final_norm: tuple[Tensor, Tensor | None],
                 keys: list[Tensor], values: list[Tensor], form: LayerForm):
        self.operators, self.layers, self.final_norm, self.form = operators, layers, final_norm, form
        self.keys, self.values = keys, values

    def step(self, hidden: Tensor, cosine: Tensor, sine: Tensor, start: int | Lengths,
             blocked: Tensor | None = None) -> Tensor:
        """hidden (b, 1, h), cosine and sine (b, 1, r) float32, blocked None or bool (b, 1, start + 1)
        -> (b, 1, h) after the final norm; keys and values are written at place `start`, of each row its own under
        Lengths."""
        ops, form, b = self.operators, self.form, hidden.shape[0]
        if ops.failure is None and blocked is None and not isinstance(start, Lengths):  # once for all layers
            start = Lengths(torch.full((b,), start, device=hidden.device), start)
        for w, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            a = normalised(hidden, w.norm1_weight, w.norm1_bias, form.epsilon, ops)
            qkv = ops.linear(a, w.qkv_weight, w.qkv_bias)
            context = attend(qkv, form, cosine, sine, keys[:b], values[:b], start, blocked, ops)
            residual = hidden if form.is_pre_norm else a
            between = ops.linear(context, w.dense_weight, w.dense_bias, End(None, residual, form.alpha))
            m = normalised(between, w.norm2_weight, w.norm2_bias, form.epsilon, ops)
            inner = ops.linear(m, w.in_weight, w.in_bias, End(form.activation))
            residual = between if form.is_pre_norm else m
            hidden = ops.linear(inner, w.out_weight, w.out_bias, End(None, residual, form.alpha))
        return normalised(hidden, *self.final_norm, form.epsilon, ops)
