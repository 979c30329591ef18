"""Low-rank adapters of linears (LoRA, Hu et al. 2022): y = W x + b + (alpha / r) B A x, with A (r, k) and B (n, r).

A linear of queries, keys and values may have three pairs, whose outputs are those of q, of k and of v. How they make
the linear's rows is the layout: "heads", [q | k | v] head by head, or "stacked", all of q, all of k, all of v.

On tensor-parallel ranks every rank holds whole matrices and uses its part of them; their gradients are summed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from glm import spec
from glm.linear import Linear, linears
from glm.spec import Cut
from kernels.layer import by_heads
from runtime import parallel
from runtime.errors import UserError

if TYPE_CHECKING:
    from glm.config import ModelConfig
    from glm.dropout import Dropout

NAME = "lora"  # in Linear.adapters
HEADS = "heads"  # a layout; the other is "stacked"
Pairs = Sequence[tuple[Tensor, Tensor]]  # A (r, k), B (n, r) of whole linears


@dataclass(frozen=True)
class Lora:
    """What a file of adapters says."""

    pairs: Mapping[str, Pairs]  # by the linear's name in the model
    scale: float  # alpha / r
    layout: str | None = None  # None: as the rows of the family's queries, keys and values lie
    dropout: float = 0.0  # share of x, in training


class LowRank(torch.nn.Module):
    """What is added to the output (..., n) of a linear, by its x (..., k); k and n are those of this rank's part."""

    def __init__(self, pairs: Pairs, scale: float, order: Tensor | None, columns: Tensor | None, dropout: float = 0.0,
                 place: str = "") -> None:
        """order: which rows of the pairs' outputs, one below the other, are this rank's; columns: which inputs are;
        None: all, as they are. place: names the linear to what is dropped."""
        super().__init__()
        self.matrix_A = torch.nn.ParameterList([first for first, _ in pairs])
        self.matrix_B = torch.nn.ParameterList([second for _, second in pairs])
        self.scale, self.dropout, self.place = scale, dropout, place
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self._dropping: tuple[Dropout, int, Tensor] | None = None

    def dropping(self, dropout: Dropout | None, width: int, places: Tensor) -> None:
        """What is dropped in the pass that follows, and when its layers are computed again: of rows of so many tokens,
        in the last layer at the wanted places alone."""
        self._dropping = None if dropout is None or not self.dropout else (dropout, width, places)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A (R, k) and B (n, R) of this rank, R the sum of the pairs' ranks: B A is what the adapter adds."""
        firsts, seconds = list(self.matrix_A), list(self.matrix_B)
        if parallel.is_started() and parallel.size() > 1:
            firsts, seconds = ([parallel.copy(each) for each in all_of] for all_of in (firsts, seconds))
        first = torch.cat(firsts)
        second = self.scale * (seconds[0] if len(seconds) == 1 else torch.block_diag(*seconds))
        return (first if self.columns is None else first[:, self.columns],
                second if self.order is None else second[self.order])

    def forward(self, output: Tensor, x: Tensor, operations: ModuleType) -> Tensor:
        """The linear's output (..., n), which nothing else uses, with this adapter's: in place where it learns."""
        inner, second = self._inner(x, operations)
        is_alike = inner.dtype is second.dtype is output.dtype and output.is_contiguous()
        if not (is_alike and torch.is_grad_enabled() and inner.requires_grad):
            return output + operations.linear(inner, second)
        output.view(-1, output.shape[-1]).addmm_(inner.flatten(0, -2), second.t())
        return output

    def _inner(self, x: Tensor, operations: ModuleType) -> tuple[Tensor, Tensor]:
        """A x (..., R), and B."""
        first, second = (each.to(x.dtype) for each in self.matrices())
        if self._dropping is None:
            inner = operations.linear(x, first)
        else:
            ranks = [each.shape[0] for each in self.matrix_A]
            inner = torch.cat([operations.linear(self._dropped(x, number), part)
                               for number, part in enumerate(first.split(ranks))], dim=-1)
        return inner, second

    def _dropped(self, x: Tensor, number: int) -> Tensor:
        dropout, width, places = self._dropping
        return dropout.rows_of(x, self.dropout, f"{self.place} {number}", width, places)


def attach(model: torch.nn.Module, lora: Lora, source: str) -> None:
    """Put the adapters into a model's linears. UserError where a name or a shape is not the model's."""
    found = dict(linears(model))
    if unknown := sorted(set(lora.pairs) - set(found)):
        raise UserError(f"{source}: adapts {unknown[0]}, which the model does not have: it was made for another one")
    for name, pairs in lora.pairs.items():
        linear = found[name]
        linear.adapters[NAME] = _made(model.config, name, linear, pairs, lora, source)


def _made(config: ModelConfig, name: str, linear: Linear, pairs: Pairs, lora: Lora, source: str) -> LowRank:
    order = _checked_order(config, name, pairs, lora, source)
    degree, device = (parallel.size() if parallel.is_started() else 1), linear.weight.device
    inputs = None
    if degree > 1:
        own = torch.cat([torch.arange(piece.start, piece.stop) for piece in spec.slices_of(
            f"{name}.weight", config, 1, degree, parallel.rank())])
        if linear.cut is Cut.COLUMNS:
            inputs = own
        else:
            order = own if order is None else order[own]
    on_device = [(torch.nn.Parameter(first.to(device)), torch.nn.Parameter(second.to(device)))
                 for first, second in pairs]
    made = LowRank(on_device, lora.scale, order, inputs, lora.dropout, name).to(device)
    return made.requires_grad_(False)


def product(config: ModelConfig, lora: Lora, name: str, source: str) -> Tensor:
    """(n, k) float32: what is added to the weight of a whole linear. UserError as in `attach`."""
    order = _checked_order(config, name, lora.pairs[name], lora, source)
    pairs = [(first.float(), second.float()) for first, second in lora.pairs[name]]
    found = torch.cat([lora.scale * (second @ first) for first, second in pairs])
    return found if order is None else found[order]


def _checked_order(config: ModelConfig, name: str, pairs: Pairs, lora: Lora, source: str) -> Tensor | None:
    rows, columns = shape_of(name, config)
    heights = [second.shape[0] for _, second in pairs]
    if sum(heights) != rows or any(first.shape[1] != columns or second.shape[1] != first.shape[0]
                                   for first, second in pairs):
        shapes = ", ".join(f"{tuple(a.shape)} and {tuple(b.shape)}" for a, b in pairs)
        raise UserError(f"{source}: the pairs of {name} are {shapes}, but it has {rows} outputs and {columns} "
                        "inputs: they were made for another model")
    return order_of(name, len(pairs), heights, config, lora.layout)


def shape_of(name: str, config: ModelConfig) -> tuple[int, int]:
    """(rows, columns) of a linear in the whole model."""
    return spec.linears(config)[spec.place_of(f"{name}.weight")[1]]


def order_of(name: str, count: int, heights: Sequence[int], config: ModelConfig, layout: str | None) -> Tensor | None:
    """For each row of a linear with so many pairs, which of their outputs it is, one below the other; None: as they
    are."""
    is_by_heads = _is_by_heads(config) if layout is None else layout == HEADS
    if count != 3 or not is_by_heads or len(set(heights)) > 1 or heights[0] % config.num_attention_heads:
        return None
    return by_heads(torch.arange(sum(heights)), heights[0] // config.num_attention_heads)


def _is_by_heads(config: ModelConfig) -> bool:
    return config.table.lines[f"{spec.QKV}.weight"].shape[0] == "qkv"


def fresh(config: ModelConfig, rank: int, alpha: float, names: Iterable[str], seed: int, is_split: bool = False,
          dropout: float = 0.0) -> Lora:
    """Adapters that change nothing yet: A uniform up to 1 / sqrt(k), B zero; a function of the seed.

    names: of a layer's linears (glm.spec.LINEARS) or their last parts. is_split: three pairs for queries, keys, values.
    """
    layer = spec.linears(config)
    chosen = [name for name in layer if name in names or name.rpartition(".")[2] in names]
    known = {part for name in layer for part in (name, name.rpartition(".")[2])}
    if wrong := [name for name in names if name not in known]:
        raise UserError(f"there is no linear {wrong[0]} to adapt; there are "
                        f"{', '.join(name.rpartition('.')[2] for name in layer)}")
    generator, pairs = torch.Generator().manual_seed(seed), {}
    for number in range(config.num_layers):
        for name in chosen:
            rows, columns = layer[name]
            keys = config.key_value_heads * config.head_size
            heights = [rows - 2 * keys, keys, keys] if is_split and name == spec.QKV else [rows]
            pairs[spec.in_layer(number, name)] = [
                ((2 * torch.rand(rank, columns, generator=generator) - 1) / math.sqrt(columns),
                 torch.zeros(height, rank)) for height in heights]
    return Lora(pairs, alpha / rank, None, dropout)
