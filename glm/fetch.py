"""Layers of a checkpoint's files brought into memory again and again, past the system's page cache, and to a GPU.

A model that is larger than memory would push itself out of the page cache before its first layer is needed again, so
files are read directly (O_DIRECT) into memory of ours, several pieces at a time: one reader alone keeps no disk busy.
Direct reads begin and end at multiples of ALIGNMENT, in the file and in memory alike. A buffer of bytes holds one layer
at a time; a layout says where in it the tensors lie.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from glm.checkpoint import Entry
from kernels import CACHE_LINE
from runtime import resources
from runtime.errors import UserError
from runtime.mapped import GO_ON

ALIGNMENT = 4096  # of direct reads, for any disk
DIRECT = getattr(os, "O_DIRECT", 0)  # 0: a system that has none
PIECE_BYTES = 4 << 20  # read at a time; so many readers of so much reached an NVMe disk's rate
READERS = 4
NEAR = ALIGNMENT  # tensors nearer than this in the file are read in one go, with what lies between


class Placed(NamedTuple):
    """Where a tensor lies in a buffer of bytes."""

    place: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Extent(NamedTuple):
    """`size` bytes at `offset` of a file, which go to `place` of the buffer."""

    file: Path
    offset: int
    size: int
    place: int


class Layout(NamedTuple):
    """Where tensors lie in a buffer of `size` bytes, and what is read to have them there."""

    tensors: dict[str, Placed]
    size: int
    extents: tuple[Extent, ...] = ()


Layouts = Mapping[int, Layout]  # of each streamed layer


def packed_layout(tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> Layout:
    """Name -> (shape, dtype): the tensors behind one another, each at a cache line."""
    found, place = {}, 0
    for name, (shape, dtype) in tensors.items():
        found[name] = Placed(place, shape, dtype)
        place = _up(place + _bytes(found[name]), CACHE_LINE)
    return Layout(found, place)


def file_layout(entries: Mapping[str, Entry]) -> Layout:
    """As the tensors lie in their files: neighbours in one extent, the extents behind one another."""
    placed, extents, size = {}, [], 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][:2]):
        if entry.stride is not None:
            raise UserError(f"{entry.file}: the numbers of {name} do not lie one after another, so its layer cannot be "
                            "read while the model runs; save it contiguous, or leave --offload-memory-limit away")
        last = extents[-1] if extents else None
        if last is None or entry.file != last.file or entry.offset - last.offset - last.size >= NEAR:
            size += _up(last.size) if last else 0
            last = Extent(entry.file, entry.offset // ALIGNMENT * ALIGNMENT, 0, size)
            extents.append(last)
        placed[name] = Placed(size + entry.offset - last.offset, entry.shape, getattr(torch, entry.dtype))
        extents[-1] = last._replace(size=max(last.size, entry.offset + entry.bytes - last.offset))
    extents = [extent._replace(size=_up(extent.size)) for extent in extents]
    return Layout(placed, size + (extents[-1].size if extents else 0), tuple(extents))


def views(buffer: torch.Tensor, tensors: Mapping[str, Placed]) -> dict[str, torch.Tensor]:
    """The tensors in a buffer of bytes (uint8), which they share; one that begins at no multiple of its numbers' size
    is copied."""
    found = {}
    for name, at in tensors.items():
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


def pinned_bytes(size: int) -> int:
    """What aligned_bytes of pinned memory takes: torch rounds it up to a power of two."""
    return 1 << (size + ALIGNMENT - 1).bit_length()


class LayerFiles:
    """Files of a checkpoint that stay open while a model runs.

    Raises UserError, in one line, where one cannot be read, or is no longer what it was when it was opened.
    """

    def __init__(self, inodes: Mapping[Path, int]):
        """inodes: of the files of which the tensors' places are known."""
        self._files = {path: _open(path) for path in inodes}
        for path, (number, _) in self._files.items():
            weakref.finalize(self, os.close, number)
            if os.fstat(number).st_ino != inodes[path]:
                raise _changed(path)
        self._states = {path: self._state(path) for path in self._files}
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="layers")

    def start(self, layout: Layout, buffer: torch.Tensor) -> Callable[[], None]:
        """Begin to read into a buffer (aligned_bytes); the result waits until all is there, or raises UserError."""
        memory = memoryview(buffer.numpy())
        pieces = [Extent(file, offset + at, min(PIECE_BYTES, size - at), place + at)
                  for file, offset, size, place in layout.extents for at in range(0, size, PIECE_BYTES)]
        pending = [(piece.file, self._pool.submit(self._read, piece, memory)) for piece in pieces]
        return lambda: self._finish(pending)

    def _finish(self, pending: list[tuple[Path, Future]]) -> None:
        failures = [(path, failure) for path, future in pending if (failure := future.exception()) is not None]
        for path in {path for path, _ in pending}:
            if self._state(path) != self._states[path]:
                raise _changed(path)
        for path, failure in failures:
            if isinstance(failure, OSError):
                raise UserError(f"{path} cannot be read any more ({failure.strerror}): look after its disk; "
                                f"{GO_ON}") from None
            raise failure

    def _read(self, piece: Extent, memory: memoryview) -> None:
        file, is_direct = self._files[piece.file]
        done, needed = 0, min(piece.size, self._states[piece.file][0] - piece.offset)  # a last page is seldom whole
        while done < needed:
            count = os.preadv(file, [memory[piece.place + done:piece.place + piece.size]], piece.offset + done)
            if count == 0:
                raise _changed(piece.file)
            done += count
        if not is_direct and hasattr(os, "posix_fadvise"):  # it would push out what is needed sooner
            os.posix_fadvise(file, piece.offset, piece.size, os.POSIX_FADV_DONTNEED)

    def _state(self, path: Path) -> tuple[int, int]:
        found = os.fstat(self._files[path][0])
        return found.st_size, found.st_mtime_ns


def _changed(path: Path) -> UserError:
    return UserError(f"{path} was written to while it was in use: its layers do not belong together any more; {GO_ON}")


def _open(path: Path) -> tuple[int, bool]:
    """An open file, and whether it is read past the page cache; some file systems do not know how."""
    try:
        file = os.open(path, os.O_RDONLY | DIRECT)
        try:
            os.preadv(file, [memoryview(aligned_bytes(ALIGNMENT).numpy())], 0)
            return file, bool(DIRECT)
        except OSError as error:
            os.close(file)
            if error.errno != errno.EINVAL:
                raise
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
    return os.open(path, os.O_RDONLY), False


class Fetch:
    """Brings layers into slots, each a buffer of bytes on the device."""

    def __init__(self, layouts: Layouts, buffers: Sequence[torch.Tensor]):
        self.layouts, self.buffers = layouts, buffers

    def weights(self, layer: int, slot: int) -> dict[str, torch.Tensor]:
        """The tensors that are this layer's while it is in this slot."""
        return views(self.buffers[slot], self.layouts[layer].tensors)

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        """Begin to bring a layer; what is returned waits until it is there, or raises UserError, each time again."""
        raise NotImplementedError

    def release(self, slot: int) -> None:
        """What was asked of the device so far is the last use of this slot's layer."""


class FromFile(Fetch):
    """Read into host memory, as they are in the file."""

    def __init__(self, files: LayerFiles, layouts: Layouts, buffers: Sequence[torch.Tensor]):
        super().__init__(layouts, buffers)
        self._files = files

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        return self._files.start(self.layouts[layer], self.buffers[slot])


class Converted(Fetch):
    """In another precision in the file than in the run: read into a buffer, and converted from there into the slot."""

    def __init__(self, near: FromFile, layouts: Layouts, buffers: Sequence[torch.Tensor]):
        """near: reads layers into its only slot."""
        super().__init__(layouts, buffers)
        self._near, self._worker = near, ThreadPoolExecutor(1, thread_name_prefix="conversion")

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        return self._worker.submit(self._bring, layer, slot).result

    def _bring(self, layer: int, slot: int) -> None:
        self._near.start(layer, 0)()
        sources = self._near.weights(layer, 0)
        for name, tensor in self.weights(layer, slot).items():
            tensor.copy_(sources[name])


class Uploaded(Fetch):
    """Copied to a GPU, on a CUDA stream of their own, from pinned host memory."""

    def __init__(self, layouts: Layouts, buffers: Sequence[torch.Tensor], host: Mapping[int, torch.Tensor],
                 device: torch.device):
        """host: the bytes of each layer, pinned."""
        super().__init__(layouts, buffers)
        self._host, self._device = host, device
        self._copies = torch.cuda.Stream(device)
        self._copies.wait_stream(torch.cuda.current_stream(device))  # which has made the buffers
        self._ready = [torch.cuda.Event() for _ in buffers]
        self._free = [torch.cuda.Event() for _ in buffers]  # nobody waits for one that was never recorded

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        source = self._host[layer]
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._free[slot])
            self.buffers[slot][:source.numel()].copy_(source, non_blocking=True)
            self._ready[slot].record(self._copies)
        return lambda: torch.cuda.current_stream(self._device).wait_event(self._ready[slot])

    def release(self, slot: int) -> None:
        self._free[slot].record(torch.cuda.current_stream(self._device))


class ReadAndUploaded(Uploaded):
    """For a GPU where host memory is short, too: each layer is read from the file before it is copied."""

    def __init__(self, near: Fetch, buffers: Sequence[torch.Tensor], device: torch.device):
        """near: brings layers into its only slot, which is pinned."""
        super().__init__(near.layouts, buffers, dict.fromkeys(near.layouts, near.buffers[0]), device)
        self._near = near
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="upload")

    def start(self, layer: int, slot: int) -> Callable[[], None]:
        copied = self._worker.submit(self._bring, layer, slot)
        return lambda: copied.result()()

    def _bring(self, layer: int, slot: int) -> Callable[[], None]:
        self._near.start(layer, 0)()
        wait = super().start(layer, slot)
        self._ready[slot].synchronize()  # the only slot is needed for the next layer
        return wait


def _bytes(tensor: Placed) -> int:
    return torch.Size(tensor.shape).numel() * tensor.dtype.itemsize


def _up(size: int, step: int = ALIGNMENT) -> int:
    return -(-size // step) * step
