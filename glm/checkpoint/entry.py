"""Where tensors lie in files: what the readers of all formats give, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SIZES = {  # bytes of a number, by torch's names of the dtypes
    "bool": 1, "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "uint16": 2, "int16": 2, "float16": 2, "bfloat16": 2,
    "uint32": 4, "int32": 4, "float32": 4,
    "uint64": 8, "int64": 8, "float64": 8, "complex64": 8,
    "complex128": 16,
}  # fmt: skip


class Entry(NamedTuple):
    """A tensor in a file."""

    file: Path
    offset: int  # bytes before its first number
    dtype: str  # a key of SIZES
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None  # in numbers; None: they lie one after another, row by row
    crc32: int | None = None  # of its bytes, where the file holds a checksum of them alone

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of its numbers, which may lie apart (`span`)."""
        return self.numel * SIZES[self.dtype]

    @property
    def span(self) -> int:
        """Bytes from its first number to the end of its last one."""
        return span(self.shape, self.stride or row_major(self.shape)) * SIZES[self.dtype]


class Region(NamedTuple):
    """A stretch of a file."""

    name: str  # of the first tensor that lies in it, or of the part of the format that it is
    start: int
    bytes: int
    crc32: int  # of its bytes, as the file says; 0: it holds no checksum of them


class FileIndex(NamedTuple):
    """One file of a checkpoint, of which only the header was read."""

    path: Path
    content: Mapping  # what it holds, with entries for tensors; of values that are no tensors only what kind they are
    regions: tuple[Region, ...]  # the numbers of its tensors, by their places; none overlap
    structure: tuple[Region, ...] = ()  # other stretches that have a checksum
    identity: str = ""  # tells files of unlike content apart; "": nothing in the header does


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stride of numbers that lie one after another."""
    return tuple(math.prod(shape[axis + 1:]) for axis in range(len(shape)))


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Numbers from the first to the last one of a tensor, both included; 0: it is empty."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if math.prod(shape) else 0


def is_row_major(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a stride says what row_major says, but for axes along which nothing moves."""
    return not math.prod(shape) or all(size == 1 or step == wanted for size, step, wanted in
                                       zip(shape, stride, row_major(shape), strict=True))
