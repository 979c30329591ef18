"""Reading chosen tensors of a mapped checkpoint file again and again, past the system's page cache.

A model that is larger than memory would push itself out of the page cache before its first layer is needed again, so
the file is read directly (O_DIRECT) into memory of ours, several pieces at a time: one reader alone keeps no disk busy.
Direct reads begin and end at multiples of ALIGNMENT, in the file and in memory alike.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from kernels import CACHE_LINE
from runtime import resources
from runtime.errors import UserError
from runtime.mapped import GO_ON

ALIGNMENT = 4096  # of direct reads, for any disk
PIECE_BYTES = 4 << 20  # read at a time; so many readers of so much reached an NVMe disk's rate
READERS = 4
NEAR = ALIGNMENT  # tensors nearer than this in the file are read in one go, with what lies between


class Placed(NamedTuple):
    """Where a tensor lies in a buffer of bytes."""

    place: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Extent(NamedTuple):
    """`size` bytes at `offset` of the file, which go to `place` of the buffer."""

    offset: int
    size: int
    place: int


class FileLayout(NamedTuple):
    """What is read for some tensors, and where they lie in a buffer of `size` bytes afterwards."""

    extents: tuple[Extent, ...]
    tensors: dict[str, Placed]
    size: int


def packed_layout(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> tuple[dict[str, Placed], int]:
    """Name -> (shape, dtype): the tensors behind one another, each at a cache line, and how many bytes they take."""
    found, place = {}, 0
    for name, (shape, dtype) in tensors.items():
        found[name] = Placed(place, shape, dtype)
        place = _up(place + _bytes(found[name]), CACHE_LINE)
    return found, place


def file_layout(tensors: Mapping[str, tuple[int, tuple[int, ...], torch.dtype]]) -> FileLayout:
    """Name -> (offset in the file, shape, dtype): neighbours in one extent, the extents behind one another."""
    placed, extents, place = {}, [], 0
    begin = end = None
    for name, (offset, shape, dtype) in sorted(tensors.items(), key=lambda item: item[1][0]):
        if end is None or offset - end >= NEAR:
            if end is not None:
                extents.append(Extent(begin, _up(end - begin), place))
                place += extents[-1].size
            begin = end = offset // ALIGNMENT * ALIGNMENT
        placed[name] = Placed(place + offset - begin, shape, dtype)
        end = max(end, offset + _bytes(placed[name]))
    extents.append(Extent(begin, _up(end - begin), place))
    return FileLayout(tuple(extents), placed, place + extents[-1].size)


def views(buffer: torch.Tensor, layout: Mapping[str, Placed]) -> dict[str, torch.Tensor]:
    """The tensors in a buffer of bytes (uint8), which they share; one that begins at no multiple of its numbers' size
    is copied."""
    found = {}
    for name, at in layout.items():
        numbers = buffer[at.place:at.place + _bytes(at)]
        found[name] = (numbers.clone() if at.place % at.dtype.itemsize else numbers).view(at.dtype).view(at.shape)
    return found


def aligned_bytes(size: int, pinned: bool = False) -> torch.Tensor:
    """(size,) uint8 in host memory, at a multiple of ALIGNMENT; pinned: for copies to a GPU."""
    memory = torch.empty(size + ALIGNMENT, dtype=torch.uint8, pin_memory=pinned)
    if not pinned:
        resources.make_large(memory)
    begin = -memory.data_ptr() % ALIGNMENT
    return memory[begin:begin + size]


class LayerFile:
    """A checkpoint file that stays open while a model runs.

    Raises UserError, in one line, where the file cannot be read, or is no longer what it was when it was opened.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file, self._is_direct = _open(path)
        weakref.finalize(self, os.close, self._file)
        self._state = self._now()
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="layers")

    def start(self, layout: FileLayout, buffer: torch.Tensor) -> Callable[[], None]:
        """Begin to read into a buffer (aligned_bytes); the result waits until all is there, or raises UserError."""
        memory = memoryview(buffer.numpy())
        pieces = [Extent(extent.offset + at, min(PIECE_BYTES, extent.size - at), extent.place + at)
                  for extent in layout.extents for at in range(0, extent.size, PIECE_BYTES)]
        pending = [self._pool.submit(self._read, piece, memory) for piece in pieces]
        return lambda: self._finish(pending)

    def _finish(self, pending: list[Future]) -> None:
        failures = [failure for failure in (future.exception() for future in pending) if failure is not None]
        if self._now() != self._state:
            raise self._changed()
        for failure in failures:
            if isinstance(failure, OSError):
                raise UserError(f"{self.path} cannot be read any more ({failure.strerror}): look after its disk; "
                                f"{GO_ON}") from None
            raise failure

    def _read(self, piece: Extent, memory: memoryview) -> None:
        needed, done = min(piece.size, self._state[0] - piece.offset), 0  # the last page of a file is seldom whole
        while done < needed:
            count = os.preadv(self._file, [memory[piece.place + done:piece.place + piece.size]], piece.offset + done)
            if count == 0:
                raise self._changed()
            done += count
        if not self._is_direct:  # it would push out what is needed sooner
            os.posix_fadvise(self._file, piece.offset, piece.size, os.POSIX_FADV_DONTNEED)

    def _now(self) -> tuple[int, int]:
        state = os.fstat(self._file)
        return state.st_size, state.st_mtime_ns

    def _changed(self) -> UserError:
        return UserError(f"{self.path} was written to while it was in use: its layers do not belong together any more; "
                         f"{GO_ON}")


def _open(path: Path) -> tuple[int, bool]:
    """An open file, and whether it is read past the page cache; some file systems do not know how."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            os.preadv(file, [memoryview(aligned_bytes(ALIGNMENT).numpy())], 0)
            return file, True
        except OSError as error:
            os.close(file)
            if error.errno != errno.EINVAL:
                raise
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
    return os.open(path, os.O_RDONLY), False


def _bytes(tensor: Placed) -> int:
    count = tensor.dtype.itemsize
    for size in tensor.shape:
        count *= size
    return count


def _up(size: int, step: int = ALIGNMENT) -> int:
    return -(-size // step) * step
