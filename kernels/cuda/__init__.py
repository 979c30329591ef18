"""The backend for CUDA devices: kernels.reference's operations, without gradients.

Our own kernels (linear.cu, step.cu) compute weight-only linear layers, norms, and attention of one new token a row over
a cache; torch's serve the rest. They are compiled at their first use by the library that torch brings for it
(nvrtc.py), and launched through the driver (driver.py). $GLM_CUDA_KERNELS=no leaves everything to torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

from kernels import CUDA_KERNELS, reference
from kernels.cache import BuildError
from kernels.cuda import attention, build, driver, linear, norms
from kernels.cuda.expansion import Expansions
from kernels.cuda.linear import NOTHING, End
from kernels.cuda.reduce import Ranks
from kernels.layer import Rotary, normalised
from kernels.reference import Lengths

Result = TypeVar("Result")


class Operators:
    """kernels.reference's functions. `find` gives a tensor's device, which launches kernels (driver.Device)."""

    head = staticmethod(reference.head)
    log_sums = staticmethod(reference.log_sums)
    scaled_add = staticmethod(reference.scaled_add)
    geglu = staticmethod(reference.geglu)
    gelu = staticmethod(reference.gelu)
    swiglu = staticmethod(reference.swiglu)

    def __init__(self, find: driver.Finder = driver.find):
        self.find, self.workspaces = find, attention.Workspaces()
        self._expansions: dict[torch.device, Expansions] = {}
        self.failure: str | None = None  # why there are no compiled kernels, once that is known
        if os.environ.get(CUDA_KERNELS) == "no":
            self.failure = f"{CUDA_KERNELS} is no"

    def linear(self, x: Tensor, weight: Tensor | reference.PackedWeight, bias: Tensor | None = None,
               end: End = NOTHING) -> Tensor:
        """With what stands at its end, in one kernel and rounded once where there is one."""
        if isinstance(weight, reference.PackedWeight):
            return self.weight_only_linear(x, weight.weight, weight.scale, bias, weight.bits, weight.group_size, end)
        return end.of(reference.linear(x, weight, bias))

    def weight_only_linear(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, bits: int = 8,
                           group_size: int | None = None, end: End = NOTHING,
                           expansions: Expansions | None = None) -> Tensor:
        """float32 goes to the reference; so does everything where the kernels cannot be compiled, which is said once
        on standard error."""
        def in_torch() -> Tensor:
            return end.of(reference.weight_only_linear(x, weight, scale, bias, bits, group_size))

        if x.dtype not in build.KINDS or x.dtype.itemsize != 2:
            return in_torch()
        return self._first(lambda: linear.weight_only_linear(self.find(x.device), x, weight, scale, bias, bits,
                                                             group_size, end, expansions), in_torch)

    def expanding(self, on: torch.device) -> Expanding:
        """These operations, for one pass over weights that are all on this device and stay as they are."""
        if on not in self._expansions:
            self._expansions[on] = Expansions(on)
        return Expanding(self, self._expansions[on])

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
        return self._norm(x, weight, bias, epsilon, lambda: reference.layer_norm(x, weight, bias, epsilon))

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return self._norm(x, weight, None, epsilon, lambda: reference.rms_norm(x, weight, epsilon))

    def residual_layer_norm(self, residual: Tensor, update: Tensor, alpha: float, weight: Tensor, bias: Tensor,
                            epsilon: float) -> Tensor:
        return self._norm(
            update, weight, bias, epsilon,
            lambda: reference.residual_layer_norm(residual, update, alpha, weight, bias, epsilon), residual, alpha)

    def norm_of_sum(self, update: Tensor, ranks: Ranks, added: Tensor | None, residual: Tensor, alpha: float,
                    weight: Tensor, bias: Tensor | None, epsilon: float,
                    keeps_sum: bool) -> tuple[Tensor | None, Tensor]:
        """Of every rank's update, added + alpha * residual: their sum, where it is kept, and its norm; all (..., h) but
        the bias `added` of the product before, (h)."""
        @cache  # a library adds up in place, so that a second time is not the same
        def whole() -> Tensor:
            return ranks.total(update)

        def in_torch() -> tuple[Tensor, Tensor]:
            total = reference.scaled_add(residual, whole() if added is None else whole() + added, alpha)
            return total, normalised(total, weight, bias, epsilon)

        def compiled() -> tuple[Tensor | None, Tensor]:
            device, total = self.find(update.device), torch.empty_like(update) if keeps_sum else None
            if is_small:
                return total, ranks.small.norm(update, weight, bias, epsilon, residual, alpha, added, total)
            return total, norms.norm(device, whole(), weight, bias, epsilon, residual, alpha, added, total)

        is_small = ranks.small is not None and ranks.small.fits_norm(update, weight, bias, added)
        return self._first(compiled, in_torch) if norms.fits(update, weight, bias, added) else in_torch()

    def _norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, in_torch: Callable[[], Tensor],
              residual: Tensor | None = None, alpha: float = 1.0) -> Tensor:
        if not norms.fits(x, weight, bias):
            return in_torch()
        return self._first(lambda: norms.norm(self.find(x.device), x, weight, bias, epsilon, residual, alpha), in_torch)

    def attend(self, qkv: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor | None = None,
               values: Tensor | None = None, start: int | Lengths = 0, blocked: Tensor | None = None,
               positions_2d: bool = False, places: Tensor | None = None) -> Tensor:
        rotary = Rotary.HALVES_2D if positions_2d else Rotary.HALVES
        return reference.wanted(self._attend(
            qkv, rotary, True, cosine, sine, keys, values, start, blocked,
            lambda: reference.attend(qkv, cosine, sine, keys, values, start, blocked, positions_2d)), places)

    def attend_groups(self, qkv: Tensor, groups: int, size: int, cosine: Tensor, sine: Tensor,
                      keys: Tensor | None = None, values: Tensor | None = None, start: int | Lengths = 0,
                      blocked: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        return reference.wanted(self._attend(
            qkv, Rotary.PAIRS, False, cosine, sine, keys, values, start, blocked,
            lambda: reference.attend_groups(qkv, groups, size, cosine, sine, keys, values, start, blocked)), places)

    def _attend(self, qkv: Tensor, rotary: Rotary, is_by_heads: bool, cosine: Tensor, sine: Tensor,
                keys: Tensor | None, values: Tensor | None, start: int | Lengths, blocked: Tensor | None,
                in_torch: Callable[[], Tensor]) -> Tensor:
        b, s, width = qkv.shape
        if s != 1 or keys is None or values is None or blocked is not None or qkv.dtype is not keys.dtype:
            return in_torch()
        _, g, capacity, d = keys.shape
        n = width // d - 2 * g
        if b == 0 or not attention.fits(keys, n, b):
            return in_torch()
        at = start if isinstance(start, Lengths) else Lengths(torch.full((b,), start, device=qkv.device), start)
        cosine, sine = cosine.float().contiguous(), sine.float().contiguous()

        def compiled() -> Tensor:
            device = self.find(qkv.device)
            workspace = self.workspaces.find(device, qkv, b, n, g, d, capacity)
            return attention.decode_attention(device, qkv, keys, values, at.each, rotary, is_by_heads, cosine, sine,
                                              shared=at.shared, workspace=workspace)

        return self._first(compiled, in_torch)

    def _first(self, compiled: Callable[[], Result], in_torch: Callable[[], Result]) -> Result:
        """By our kernels, or where they cannot be compiled, which is said once on standard error, by torch's."""
        if self.failure is None:
            try:
                return compiled()
            except BuildError as error:
                self.failure = str(error)
                print(f"kernels: torch's own operators are used for quantised weights and in decoding, which are "
                      f"slower: {error}", file=sys.stderr)
        return in_torch()


class Expanding:
    """Operators that expand packed weights ahead of their products."""

    def __init__(self, operators: Operators, expansions: Expansions):
        self.operators, self.expansions = operators, expansions
        expansions.begin()

    def linear(self, x: Tensor, weight: Tensor | reference.PackedWeight, bias: Tensor | None = None) -> Tensor:
        if not isinstance(weight, reference.PackedWeight):
            return self.operators.linear(x, weight, bias)
        return self.operators.weight_only_linear(x, weight.weight, weight.scale, bias, weight.bits, weight.group_size,
                                                 expansions=self.expansions)

    def __getattr__(self, name: str):
        return getattr(self.operators, name)


@cache
def operators() -> Operators:
    return Operators()
