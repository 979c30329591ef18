"""A preallocated cache of keys and values: one place per token, one row per sequence or beam."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernels.reference import Lengths
from runtime.resources import make_large


@dataclass
class KVCache:
    """keys[layer] and values[layer] are (b, n, prefix + capacity, d), n the heads of this tensor-parallel rank: views
    of one tensor, so that rows are moved in one operation. Places and lengths count tokens, behind the prefix."""

    whole: torch.Tensor  # (2, layers, b, n, prefix + capacity, d)
    length: int | Lengths = 0  # filled places, of all rows or of each of the first ones, which alone are in use then
    stack: object = None  # what GLM prepares at the first pass in one call that fills this cache; False: cannot be
    prefix: int = 0  # places in front, alike in all rows, which every token sees

    def __post_init__(self):
        self.keys, self.values = (list(half) for half in self.whole)

    @classmethod
    def allocate(cls, num_layers: int, batch: int, heads: int, capacity: int, head_size: int, dtype: torch.dtype,
                 device: torch.device | str, is_clear: bool = True, prefix: torch.Tensor | None = None) -> KVCache:
        """is_clear: filled with zeros; else rows have to be cleared before they are used. prefix: (layers, 2, k, n, d),
        what stands in front of every row."""
        length = 0 if prefix is None else prefix.shape[2]
        whole = make_large(torch.empty(2, num_layers, batch, heads, length + capacity, head_size, dtype=dtype,
                                       device=device))
        if is_clear:  # only now: pages that have been written to stay small
            whole.zero_()
        if prefix is not None:
            whole[..., :length, :] = prefix.permute(1, 0, 3, 2, 4)[:, :, None]
        return cls(whole, prefix=length)

    @property
    def buffer(self) -> torch.Tensor:
        """(2, layers, b, n, capacity, d), the tokens' places."""
        return self.whole[..., self.prefix:, :]

    @property
    def start(self) -> int | Lengths:
        """Filled places with those of the prefix: where the kernels go on."""
        length, prefix = self.length, self.prefix
        if not isinstance(length, Lengths):
            return length + prefix
        if not prefix:
            return length
        shared = length.shared and length.shared._replace(lengths=length.shared.lengths + prefix)
        return Lengths(length.each + prefix, length.longest + prefix, shared)

    @property
    def capacity(self) -> int:
        return self.whole.shape[4] - self.prefix

    @property
    def batch(self) -> int:
        return self.whole.shape[2]

    def part(self, rows: slice) -> KVCache:
        """These rows of this very cache, not a copy, as empty ones; what is written to them is not counted here."""
        return KVCache(self.whole[:, :, rows], prefix=self.prefix)

    def clear(self, rows: slice, start: int = 0) -> None:
        """Zeros from place `start` on: what is masked still meets a weight of 0, which NaN would survive."""
        self.buffer[:, :, rows, :, start:] = 0

    def advance(self, count: int) -> None:
        """So many more places are filled, in every row that is in use."""
        if isinstance(self.length, Lengths):
            self.length.each.add_(count)
            self.length = self.length._replace(longest=self.length.longest + count)
        else:
            self.length += count

    def take_over(self, other: KVCache, rows: int, places: int) -> None:
        """Copy the first rows and places of a smaller cache."""
        self.buffer[:, :, :rows, :, :places] = other.buffer[:, :, :rows, :, :places]

    def copy_row(self, source: int, targets: slice) -> None:
        """The rows `targets` become copies of another row."""
        self.buffer[:, :, targets] = self.buffer[:, :, source:source + 1]

    def move_rows(self, sources: torch.Tensor, targets: torch.Tensor, length: int) -> None:
        """Row targets[i] becomes a copy of row sources[i], in the first `length` places; both (rows,) int64."""
        part = self.buffer[..., :length, :]
        part.index_copy_(2, targets, part.index_select(2, sources))

    def exchange(self, moves: Sequence[tuple[int, int, int, int]]) -> None:
        """For each (row, source, start, end): the row takes these places from the source, as they were before."""
        changing = {row for row, *_ in moves}
        taken = [self.buffer[:, :, source, :, start:end] for _, source, start, end in moves]
        taken = [part.clone() if move[1] in changing else part for part, move in zip(taken, moves, strict=True)]
        for part, (row, _, start, end) in zip(taken, moves, strict=True):
            self.buffer[:, :, row, :, start:end] = part
