"""The quantised linear layer, and putting it in the place of a model's linears."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch

import kernels
from kernels.reference import PackedWeight


class Scheme(NamedTuple):
    """How one weight is quantised."""

    bits: int  # 8 or 4
    group_size: int | None = None  # columns that share a scale; None: a whole row


class QuantizedLinear(torch.nn.Module):
    """x (..., k) -> (..., n) with a packed weight (kernels/packing.py); for the part of a rank as for the whole.

    Has the parameters of the files: weight (int8), weight_scale (n,) or (n, groups), bias (n). What tensor-parallel
    ranks exchange is the model's business, as with its other linears.
    """

    def __init__(self, rows: int, columns: int, scheme: Scheme, dtype: torch.dtype, device: torch.device | str) -> None:
        super().__init__()
        self.bits, self.group_size = scheme
        groups = () if scheme.group_size is None else (columns // scheme.group_size,)

        def parameter(*shape: int, of: torch.dtype) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(shape, dtype=of, device=device), requires_grad=False)

        self.weight = parameter(rows, columns * self.bits // 8, of=torch.int8)
        self.weight_scale = parameter(rows, *groups, of=torch.float16)
        self.bias = parameter(rows, of=dtype)

    @property
    def packed(self) -> PackedWeight:
        return PackedWeight(self.weight, self.weight_scale, self.bits, self.group_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.weight_only_linear(x, *self.packed[:2], self.bias, *self.packed[2:])

    def extra_repr(self) -> str:
        rows, columns = self.packed.shape
        return f"{columns} -> {rows}, bits={self.bits}, group_size={self.group_size}"


def weight_of(linear: torch.nn.Module) -> torch.Tensor | PackedWeight:
    """What kernels' `linear` takes as the weight of a linear layer, quantised or not."""
    return linear.packed if isinstance(linear, QuantizedLinear) else linear.weight


def quantization_of(model: torch.nn.Module) -> str | None:
    """How a model is quantised, in words ("INT4, groups of 128 columns"); None: not at all."""
    schemes = {(layer.bits, layer.group_size) for layer in model.modules() if isinstance(layer, QuantizedLinear)}
    if not schemes:
        return None
    bits, sizes = {bits for bits, _ in schemes}, {size for _, size in schemes}
    groups = " or ".join(map(str, sorted(sizes - {None})))
    rows = " or whole rows" if groups and None in sizes else ""
    return f"INT{bits.pop()}" + (f", groups of {groups} columns{rows}" if groups else "")


def quantize_model(model: torch.nn.Module, schemes: Mapping[str, Scheme]) -> None:
    """Put empty QuantizedLinears in the place of a model's linears, on the same device.

    schemes: for the name of each weight to be replaced its scheme.
    """
    for name, scheme in schemes.items():
        path, _, attribute = name.removesuffix(".weight").rpartition(".")
        parent = model.get_submodule(path)
        linear = getattr(parent, attribute)
        rows, columns = linear.weight.shape
        setattr(parent, attribute, QuantizedLinear(rows, columns, scheme, linear.bias.dtype, linear.weight.device))
