"""A preallocated cache of keys and values: one place per token, one row per sequence or beam."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.reference import Lengths


@dataclass
class KVCache:
    """keys[layer] and values[layer] are (b, n, capacity, d), n the heads of this tensor-parallel rank."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    length: int | Lengths = 0  # filled places, of all rows or of each of the first ones, which alone are in use then
    stack: object = None  # what GLM prepares at the first decoding step that fills this cache; False: cannot be

    @classmethod
    def allocate(cls, num_layers: int, batch: int, heads: int, capacity: int, head_size: int,
                 dtype: torch.dtype, device: torch.device | str, is_clear: bool = True) -> KVCache:
        """is_clear: filled with zeros; else rows have to be cleared before they are used."""
        make = torch.zeros if is_clear else torch.empty

        def buffers() -> list[torch.Tensor]:
            return [make(batch, heads, capacity, head_size, dtype=dtype, device=device) for _ in range(num_layers)]
        return cls(buffers(), buffers())

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    @property
    def batch(self) -> int:
        return self.keys[0].shape[0]

    def part(self, rows: slice) -> KVCache:
        """These rows of this very cache, not a copy, as empty ones; what is written to them is not counted here."""
        return KVCache([k[rows] for k in self.keys], [v[rows] for v in self.values])

    def clear(self, rows: slice, start: int = 0) -> None:
        """Zeros from place `start` on: what is masked still meets a weight of 0, which NaN would survive."""
        for buffer in (*self.keys, *self.values):
            buffer[rows, :, start:] = 0

    def advance(self, count: int) -> None:
        """So many more places are filled, in every row that is in use."""
        if isinstance(self.length, Lengths):
            self.length.each.add_(count)
            self.length = self.length._replace(longest=self.length.longest + count)
        else:
            self.length += count

    def take_over(self, other: KVCache, rows: int, places: int) -> None:
        """Copy the first rows and places of a smaller cache."""
        for mine, theirs in zip(self.keys + self.values, other.keys + other.values, strict=True):
            mine[:rows, :, :places] = theirs[:rows, :, :places]

    def copy_rows(self, sources: torch.Tensor, targets: slice) -> None:
        """The rows `targets` become copies of the rows `sources` (rows,) int64, all of which lie before them."""
        for buffer in (*self.keys, *self.values):
            torch.index_select(buffer[:targets.start], 0, sources, out=buffer[targets])

    def move_rows(self, sources: torch.Tensor, targets: torch.Tensor, length: int) -> None:
        """Row targets[i] becomes a copy of row sources[i], in the first `length` places; both (rows,) int64."""
        for buffer in (*self.keys, *self.values):
            part = buffer[:, :, :length]
            part.index_copy_(0, targets, part.index_select(0, sources))

    def exchange(self, rows: torch.Tensor, sources: torch.Tensor, places: torch.Tensor) -> None:
        """Row rows[i] takes places[i] from row sources[i], as it was before; (r,), (r,), (r, w) int64."""
        for buffer in (*self.keys, *self.values):
            buffer[rows[:, None], :, places] = buffer[sources[:, None], :, places]
