"""All layers of a decoding step on a GPU: kernels.layer.stack with what stands between the products in their ends.

Seven kernels a layer where ours are used: norm, qkv, attention, dense, norm, in, out. Under tensor parallelism a sum
over the ranks stands behind dense and out, and bias, residual and norm behind it are one kernel; where reduce.py adds
up, the sum is that kernel's, too. What changes from step to step is read from tensors (the rows' lengths, positions,
tokens), so that a step can be recorded (graph.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kernels.cuda.linear import End
from kernels.cuda.reduce import Ranks
from kernels.layer import LayerForm, LayerWeights, attend, normalised
from kernels.reference import Lengths

if TYPE_CHECKING:
    from kernels.cuda import Operators

Norm = tuple[Tensor, Tensor | None]  # weight (h) and bias (h); an RMS norm has none


class Stack:
    """For one model and one cache: layers and final_norm as kernels.layer.stack takes them; keys and values of each
    layer (rows, g, capacity, d), of which a step of b rows uses the first b. ranks: where each holds a part of all
    layers."""

    def __init__(self, operators: Operators, layers: list[LayerWeights], final_norm: Norm, keys: list[Tensor],
                 values: list[Tensor], form: LayerForm, ranks: Ranks | None = None):
        self.operators, self.layers, self.form, self.ranks = operators, layers, form, ranks
        self.keys, self.values = keys, values
        self.norms = [*((w.norm1_weight, w.norm1_bias) for w in layers), final_norm]

    def reads(self, tokens: int) -> bool:
        """Passes over several tokens a row are walked, layer by layer: their products are long."""
        return False

    def step(self, hidden: Tensor, cosine: Tensor, sine: Tensor, start: int | Lengths,
             blocked: Tensor | None = None) -> Tensor:
        """hidden (b, 1, h), cosine and sine (b, 1, r) float32, blocked None or bool (b, 1, start + 1)
        -> (b, 1, h) after the final norm; keys and values are written at place `start`, of each row its own under
        Lengths."""
        ops, form, b = self.operators, self.form, hidden.shape[0]
        if ops.failure is None and blocked is None and not isinstance(start, Lengths):  # once for all layers
            start = Lengths(torch.full((b,), start, device=hidden.device), start)
        a = normalised(hidden, *self.norms[0], form.epsilon, ops)
        for w, keys, values, norm in zip(self.layers, self.keys, self.values, self.norms[1:], strict=True):
            qkv = ops.linear(a, w.qkv_weight, w.qkv_bias)
            context = attend(qkv, form, cosine, sine, keys[:b], values[:b], start, blocked, ops)
            residual = hidden if form.is_pre_norm else a
            between, m = self._after(context, w.dense_weight, w.dense_bias, residual, (w.norm2_weight, w.norm2_bias))
            inner = ops.linear(m, w.in_weight, w.in_bias, End(form.activation))
            hidden, a = self._after(inner, w.out_weight, w.out_bias, between if form.is_pre_norm else m, norm)
        return a

    def _after(self, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor,
               norm: Norm) -> tuple[Tensor | None, Tensor]:
        """A product with its bias and the residual, and the norm of that. Only a pre-norm layer needs the first."""
        ops, form = self.operators, self.form
        if self.ranks is None:
            total = ops.linear(x, weight, bias, End(None, residual, form.alpha))
            return total, normalised(total, *norm, form.epsilon, ops)
        return ops.norm_of_sum(ops.linear(x, weight), self.ranks, bias, residual, form.alpha, *norm, form.epsilon,
                               form.is_pre_norm)
