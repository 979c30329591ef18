"""The linear of a layer: plain or packed weight, bias, its part on a tensor-parallel rank, and what adapts it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType

import torch
from torch import Tensor

from glm.spec import Cut
from kernels.reference import PackedWeight
from quantization.functional import Scheme
from runtime import parallel


class Linear(torch.nn.Module):
    """x (..., k) -> (..., n) of x's dtype; k and n are those of this rank's part.

    Holds the parameters of the files: weight (n, k) and, in most models, bias (n); packed, weight (int8) and
    weight_scale, (n,) or (n, groups), with the layout of kernels/packing.py. Cut by rows, each rank computes some of
    the outputs; cut by columns, each sees some of the inputs, and their results are summed over the ranks.

    adapters: modules that add to the result, by the same x and the backend's operations, before the sum over ranks: an
    adapter of a linear that is cut by columns sees this rank's inputs, too.
    """

    def __init__(self, shape: tuple[int, int], cut: Cut, dtype: torch.dtype, device: torch.device | str = "meta",
                 has_bias: bool = True):
        """shape: (n, k) of this rank's part."""
        super().__init__()
        rows, columns = shape
        self.cut, self.is_split = cut, parallel.is_started() and parallel.size() > 1
        self.scheme: Scheme | None = None
        self.row_parts = 1  # each of which was quantised by itself: that gives other numbers than a whole row
        self.weight = torch.nn.Parameter(torch.empty(rows, columns, dtype=dtype, device=device))
        self.bias = torch.nn.Parameter(torch.empty(rows, dtype=dtype, device=device)) if has_bias else None
        self.adapters = torch.nn.ModuleDict()

    @property
    def operand(self) -> Tensor | PackedWeight:
        """What the kernels' ``linear`` takes as the weight."""
        return self.weight if self.scheme is None else PackedWeight(self.weight, self.weight_scale, *self.scheme)

    def forward(self, x: Tensor, operations: ModuleType) -> Tensor:
        if not self.is_split:
            return self.product(x, operations, self.bias)
        if self.cut is Cut.ROWS:
            return self.product(parallel.copy(x), operations, self.bias)
        output = parallel.reduce(self.product(x, operations))
        return output if self.bias is None else output + self.bias

    def product(self, x: Tensor, operations: ModuleType, bias: Tensor | None = None) -> Tensor:
        """This rank's own part of the result, before anything is exchanged."""
        output = operations.linear(x, self.operand, bias)
        for adapter in self.adapters.values():
            output = adapter(output, x, operations)
        return output

    def pack(self, scheme: Scheme) -> None:
        """Put empty packed parameters in the place of the weight, on the same device."""
        rows, columns = self.weight.shape
        groups = () if scheme.group_size is None else (columns // scheme.group_size,)

        def parameter(*shape: int, dtype: torch.dtype) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.empty(shape, dtype=dtype, device=self.weight.device), requires_grad=False)

        self.scheme = scheme
        self.weight_scale = parameter(rows, *groups, dtype=torch.float16)
        self.weight = parameter(rows, columns * scheme.bits // 8, dtype=torch.int8)

    def extra_repr(self) -> str:
        rows, columns = self.operand.shape
        return f"{columns} -> {rows}, {self.cut.value}, {self.scheme or self.weight.dtype}"


def linears(model: torch.nn.Module) -> Iterator[tuple[str, Linear]]:
    """The linears of a model with their names, in the order of the layers."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Linear))


def pack_linears(model: torch.nn.Module, schemes: Mapping[str, Scheme], ranks: int = 1) -> None:
    """Pack those whose weight is named, each by its scheme. ranks: that quantise their own parts."""
    for name, scheme in schemes.items():
        linear = model.get_submodule(name.removesuffix(".weight"))
        linear.pack(scheme)
        linear.row_parts = ranks if linear.cut is Cut.COLUMNS and scheme.group_size is None else 1


def quantization_of(model: torch.nn.Module) -> str | None:
    """How a model is quantised, in words ("INT4, groups of 128 columns"), all that its numbers depend on beside the
    weights; None: not at all."""
    parts = max((linear.row_parts for _, linear in linears(model)), default=1)
    schemes = {linear.scheme for _, linear in linears(model)} - {None}
    if not schemes:
        return None
    bits, sizes = {scheme.bits for scheme in schemes}, {scheme.group_size for scheme in schemes}
    groups = " or ".join(map(str, sorted(sizes - {None})))
    rows = " or whole rows" if groups and None in sizes else ""
    return f"INT{bits.pop()}" + (f", groups of {groups} columns{rows}" if groups else "") + (
        f", rows in {parts} parts" if parts > 1 else "")
