"""Large pages for tensors that are read from end to end for every token.

A tensor of its own gets a large page only where it fills one: of shape-335m in INT4, whose tensors take 0.5 to 3 MB,
30% did, and in bf16 70%. Tensors that are cut from one area one after another share their pages: 100%.
"""

from __future__ import annotations

import mmap
from math import prod
from typing import TYPE_CHECKING

from runtime.resources import HUGE_PAGE, advise_large, system_bytes

if TYPE_CHECKING:  # importing torch takes a second
    import torch

AREA = 64 << 20  # bytes taken from the system at a time; only what is written becomes memory
ALIGNMENT = 64  # bytes, a cache line


class LargePages:
    """Areas of host memory in pages of 2 MB. An area lives as long as a tensor that was cut from it."""

    def __init__(self):
        self._area, self._place = b"", 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.Tensor:
        """Like torch.empty, which it is on another device, with a storage of its own."""
        import torch

        if torch.device(device).type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        count = prod(shape)
        size = count * dtype.itemsize
        if size == 0:
            return torch.empty(shape, dtype=dtype)
        if self._place + size > len(self._area):
            self._area = mmap.mmap(-1, max(AREA, size) + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            whole = torch.frombuffer(self._area, dtype=torch.uint8)
            self._place = -whole.data_ptr() % HUGE_PAGE
            advise_large(whole.data_ptr(), len(self._area))
        tensor = torch.frombuffer(self._area, dtype=dtype, count=count, offset=self._place)
        self._place = -(-(self._place + size) // ALIGNMENT) * ALIGNMENT
        return tensor.view(shape)


def large_bytes() -> int | None:
    """Bytes of this process that lie in pages of 2 MB, of a file's aside; None where the system does not say."""
    return system_bytes("self/smaps_rollup", "AnonHugePages")
