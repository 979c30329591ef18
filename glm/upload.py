"""Weights on their way from a mapped file to a GPU: read into pinned memory a piece at a time, while earlier pieces are
copied.

A copy straight from a mapped file goes through small pinned buffers of the driver's, page fault by page fault, and
nothing is read meanwhile. Here host memory holds a ring of pieces, whatever the size of a tensor, and the host waits
only for a piece whose copy is still under way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

PIECE_BYTES = 64 << 20  # a power of two, to which torch would round pinned memory up
PIECES = 3  # one is read, one is copied, one waits for its copy


class Upload:
    """Copies to one GPU, in the order of its stream of the moment."""

    def __init__(self, device: torch.device, buffers: Iterable[Tensor], events: Iterable):
        """buffers: of pinned bytes, all of one size, each with an event of its own."""
        self.device, self._ring = device, deque(zip(buffers, events, strict=True))
        self._size = self._ring[0][0].numel()

    @classmethod
    def to(cls, device: torch.device) -> Upload | None:
        """None for a device that is none of CUDA's."""
        if device.type != "cuda":
            return None
        return cls(device, [torch.empty(PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(PIECES)],
                   [torch.cuda.Event() for _ in range(PIECES)])

    def copied(self, source: Tensor) -> Tensor:
        """A tensor of the host on the device, contiguous, in its own dtype."""
        place = torch.empty(source.shape, dtype=source.dtype, device=self.device)
        self.copy(source, place)
        return place

    def copy(self, source: Tensor, place: Tensor) -> None:
        """Fill `place`, on the device, with a tensor of the host, in place's dtype: converted there, not on the host.
        The source has been read on return, and may go."""
        if source.dim() == 0:
            source, place = source[None], place[None]
        step = self._size // max(1, source.element_size() * source[:1].numel())  # rows of a piece
        if step == 0 or source.numel() == 0:
            place.copy_(source)
            return
        for part, target in zip(source.split(step), place.split(step), strict=True):
            self._copy_piece(part, target)

    def _copy_piece(self, part: Tensor, target: Tensor) -> None:
        buffer, copied = self._ring[0]
        self._ring.rotate(-1)
        copied.synchronize()  # of what the buffer held before; at once where that was nothing
        staged = buffer[:part.numel() * part.element_size()].view(part.dtype).view(part.shape)
        staged.copy_(part)
        if part.dtype is not target.dtype:
            staged = staged.to(self.device, non_blocking=True)
        target.copy_(staged, non_blocking=True)
        copied.record(torch.cuda.current_stream(self.device))
