"""Advice to the system on the pages of a mapped file: what to read now, what to let go."""

import ctypes
import mmap
import sys

from torch import Tensor

MADV_DONTNEED, MADV_POPULATE_READ = 4, 22  # Linux; the second since 5.14, and not in Python's mmap


def read_now(tensor: Tensor) -> None:
    """Have the pages behind a contiguous tensor in a mapped file read now, in one go."""
    begin = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    _advise(begin, _end(tensor), MADV_POPULATE_READ)


def let_go(tensor: Tensor) -> None:
    """Give back the memory of the pages that are wholly its own; they are read again when they are used."""
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    _advise(begin, _end(tensor), MADV_DONTNEED)


def _end(tensor: Tensor) -> int:
    return (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE


def _advise(begin: int, end: int, advice: int) -> None:
    """Only advice: where the system does not know it, pages are read when they are used and go when memory is short."""
    if sys.platform == "linux" and end > begin:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)
