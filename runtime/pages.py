"""Advice to the system on the pages behind tensors: what to read now, what to let go, which should be large."""

import ctypes
import mmap
import sys

from torch import Tensor

# Linux; the last since 5.14, and not in Python's mmap
MADV_DONTNEED, MADV_HUGEPAGE, MADV_POPULATE_READ = 4, 14, 22
HUGE_PAGE = 2 << 20


def read_now(tensor: Tensor) -> None:
    """Have the pages behind a contiguous tensor in a mapped file read now, in one go."""
    begin = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    _advise(begin, _end(tensor), MADV_POPULATE_READ)


def let_go(tensor: Tensor) -> None:
    """Give back the memory of the pages that are wholly its own; they are read again when they are used."""
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    _advise(begin, _end(tensor), MADV_DONTNEED)


def make_large(tensor: Tensor) -> Tensor:
    """The tensor, whose memory has not been written to yet: it shall come in pages of 2 MB, as a mapped file has them.
    With pages of 4 KB a reading loop over 1 GB was a fifth slower (30 and 25 GB/s)."""
    if tensor.device.type == "cpu":
        begin = -(-tensor.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        _advise(begin, (tensor.data_ptr() + tensor.nbytes) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
    return tensor


def _end(tensor: Tensor) -> int:
    return (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE


def _advise(begin: int, end: int, advice: int) -> None:
    """Only advice: where the system does not know it, pages are read when they are used and go when memory is short."""
    if sys.platform == "linux" and end > begin:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)
