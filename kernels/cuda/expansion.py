"""Packed weights expanded for the library's product on a stream of their own: one multiplies, the next is expanded.

Nothing that a pass computes goes into a weight, so it may be expanded as soon as there is a place for it. There are
two, and the host is ahead of the device where there are many rows: it asks for a product long before the one before has
ended. Expanding is bound by memory and the product by arithmetic, so together they take less than in turn.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PLACES = 2  # planning/memory.py counts them


class Expansions:
    """For products on one GPU, one after the other, of weights that stay as they are from `begin` on."""

    def __init__(self, device: torch.device):
        self.device, self.side = device, torch.cuda.Stream(device, priority=-1)  # its few blocks come first
        self._turn, self._has_begun = 0, False
        self._memory: list[Tensor | None] = [None] * PLACES
        self._ends: list[torch.cuda.Event | None] = [None] * PLACES  # of the products that have read these places last

    def begin(self) -> None:
        """A pass over weights that the current stream may have written to so far, or waited for."""
        self._has_begun = False

    def product(self, count: int, dtype: torch.dtype, expand: Callable[[Tensor], None],
                multiply: Callable[[Tensor], Tensor]) -> Tensor:
        """expand: fills `count` values of dtype, with kernels on torch's current stream; multiply: reads them."""
        place, current = self._turn, torch.cuda.current_stream(self.device)
        self._turn = (place + 1) % PLACES
        weight = self._place(place, count, dtype, current)
        if not self._has_begun:
            self.side.wait_stream(current)
            self._has_begun = True
        with torch.cuda.stream(self.side):
            if self._ends[place] is not None:
                self.side.wait_event(self._ends[place])
            expand(weight)
        current.wait_stream(self.side)
        result = multiply(weight)
        self._ends[place] = current.record_event()
        return result

    def _place(self, place: int, count: int, dtype: torch.dtype, current: torch.cuda.Stream) -> Tensor:
        """Layers ask for the same sizes in the same order, so that a place keeps its memory after the first one."""
        held = self._memory[place]
        if held is None or held.numel() < count * dtype.itemsize:
            if self._ends[place] is not None:
                current.wait_event(self._ends[place])  # torch gives the old memory to others of this stream
            held = self._memory[place] = None
            held = self._memory[place] = torch.empty(count * dtype.itemsize, dtype=torch.uint8, device=self.device)
            self.side.wait_stream(current)  # and others' to us
        return held[:count * dtype.itemsize].view(dtype)
