"""What a step of training drops, as a function of seed, step, row and place: no state, so nothing has to be restored.

The same rows are dropped alike however a step's batch is cut for accumulation, and when a layer is computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.gradients import Drop
from runtime import parallel


@dataclass(frozen=True)
class Dropout:
    hidden_share: float  # of the embedding, and of what attention and MLP give
    attention_share: float  # of the probabilities of attention
    output_share: float  # of what a classification head reads
    seed: int
    step: int
    rows: Sequence[int] = ()  # numbers within the step of the rows of the batch
    prefix_share: float | None = None  # of a prefix; None: the hidden one

    def of(self, rows: Sequence[int]) -> Dropout:
        """For a part of the step's rows."""
        return replace(self, rows=tuple(rows))

    def hidden(self, x: Tensor, layer: int, site: str, width: int, places: Tensor | None = None) -> Tensor:
        """What attention or MLP gives; the arguments are those of `rows_of`."""
        return self.rows_of(x, self.hidden_share, f"{layer} {site}", width, places)

    def rows_of(self, x: Tensor, share: float, place: str, width: int, places: Tensor | None = None) -> Tensor:
        """x (b, s, h), s being width; or (n, h), the rows at these places out of b * s."""
        if not share:
            return x
        kept = self._kept(share, place, (width, x.shape[-1]), x.device)
        return Drop(kept.flatten(0, 1)[places] if x.dim() == 2 else kept, share).of(x)

    def attention(self, layer: int, heads: int, shape: tuple[int, int], device: torch.device) -> Drop | None:
        """Of probabilities (b, n, s, total), n the heads of this rank. heads: of all ranks; shape: (s, total)."""
        if not self.attention_share:
            return None
        own = heads // parallel.size()
        begin = parallel.rank() * own
        kept = self._kept(self.attention_share, f"{layer} probabilities", (heads, *shape), device, begin, begin + own)
        return Drop(kept, self.attention_share)

    def output(self, x: Tensor) -> Tensor:
        """(b, h), one hidden state for each row."""
        share = self.output_share
        return Drop(self._kept(share, "output", x.shape[1:], x.device), share).of(x) if share else x

    def prefix(self, x: Tensor) -> Tensor:
        """Keys and values of a prefix, which all rows share."""
        share = self.hidden_share if self.prefix_share is None else self.prefix_share
        return Drop(self._drawn("prefix", None, x.shape, x.device) >= share, share).of(x) if share else x

    def _kept(self, share: float, place: str, shape: Sequence[int], device: torch.device, begin: int = 0,
              end: int | None = None) -> Tensor:
        """(b, *shape) bool, False with the probability `share`; of the shape's first dimension from begin to end, so
        that a rank keeps no more than its own."""
        return torch.stack([self._drawn(place, row, shape, device)[begin:end] >= share for row in self.rows])

    def _drawn(self, place: str, row: int | None, shape: Sequence[int], device: torch.device) -> Tensor:
        """Row by row, so that a shorter one draws the beginning of what a longer one would."""
        text = f"{self.seed} {self.step} {place} {row}"
        number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")
        generator = torch.Generator(device=device).manual_seed(number)
        return torch.rand(tuple(shape), generator=generator, device=device)
