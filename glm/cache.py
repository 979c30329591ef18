"""A preallocated cache of keys and values: one place per token, one row per sequence or beam."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class KVCache:
    """keys[layer] and values[layer] are (b, n, capacity, d), n the heads of this tensor-parallel rank.

    The first `length` places are filled.
    """

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    length: int = 0
    stack: object = None  # what GLM prepares at the first decoding step that fills this cache; False: cannot be

    @classmethod
    def allocate(cls, num_layers: int, batch: int, heads: int, capacity: int, head_size: int,
                 dtype: torch.dtype, device: torch.device | str) -> KVCache:
        def buffers() -> list[torch.Tensor]:
            return [torch.zeros(batch, heads, capacity, head_size, dtype=dtype, device=device)
                    for _ in range(num_layers)]
        return cls(buffers(), buffers())

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    @property
    def batch(self) -> int:
        return self.keys[0].shape[0]

    def select(self, rows: torch.Tensor) -> KVCache:
        """A new cache of the given rows (any number, repeats allowed): (rows,) int64."""
        return KVCache([k.index_select(0, rows) for k in self.keys],
                       [v.index_select(0, rows) for v in self.values], self.length)

    def part(self, rows: slice) -> KVCache:
        """These rows of this very cache, not a copy; what is written to them is not counted in `length` here."""
        return KVCache([k[rows] for k in self.keys], [v[rows] for v in self.values], self.length)

    def reorder(self, parents: torch.Tensor, start: int) -> None:
        """Row i becomes a copy of row parents[i], from place `start` on (before it the beams of a prompt agree)."""
        for buffer in (*self.keys, *self.values):
            filled = buffer[:, :, start:self.length]
            filled.copy_(filled.index_select(0, parents))
