"""Sums over tensor-parallel ranks that are processes of one host, in memory that they share (ranks.h).

The memory has no name: the first rank makes it, and the others open it through that one's entry in /proc, which the
system allows to processes of one user. So nothing is left behind, however they end.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import sys
import weakref
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_int, c_int32, c_size_t, c_void_p
from pathlib import Path

from torch import Tensor

from kernels.cpu.attention import address
from runtime.errors import attempt

SLOT_BYTES = 512 << 10  # what is put down at a time
STATE_BYTES = 64  # of a rank
TOKEN_BYTES = 16  # at the end of the memory, by which a rank knows that it has opened the right one
LEFT_OUT = 3  # of ranks.h's failures
FAILURES = {1: "ended while others waited for it", 2: "was waited for in vain: time-out",
            LEFT_OUT: "adds up something else: one of them has left out a sum"}
Exchange = Callable[[object], Sequence]  # gives every rank's object to all ranks, in their order


class Area(ctypes.Structure):
    """ranks.h's Ranks."""

    _fields_ = [("memory", c_void_p), ("rank", c_size_t), ("count", c_size_t), ("slot", c_size_t),
                ("processes", POINTER(c_int32)), ("handles", POINTER(c_int32)), ("patience", c_size_t)]


class Sums:
    """All ranks take part in each sum, in the same order and with the same shapes; all get the same bits."""

    def __init__(self, operators, memory: mmap.mmap, rank: int, processes: Sequence[int], patience: float):
        """memory: `size_of` bytes, zeros before the first sum. processes: by rank; patience: seconds."""
        self.types, library, self.processes, self.failure = operators.TYPES, operators.library, processes, 0
        handles = [-1 if other == rank else library.glm_handle_of_process(process)
                   for other, process in enumerate(processes)]
        self.kept = memory, (c_int32 * len(processes))(*processes), (c_int32 * len(handles))(*handles)
        weakref.finalize(self, close, handles)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.area = Area(begin, rank, len(processes), SLOT_BYTES, *self.kept[1:], int(patience))
        self.address = ctypes.addressof(self.area)
        self._add_up, self._gather = library.glm_add_up, library.glm_gather
        self._add_up.argtypes = [c_void_p, c_int, c_void_p, c_size_t]
        self._gather.argtypes = [c_void_p, c_void_p, c_size_t, c_size_t, c_void_p]

    def fits(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and x.dtype in self.types

    def sum(self, x: Tensor) -> Tensor:
        """Of a tensor that fits; in float32, rounded once. What x held is lost where it is contiguous."""
        self.check()
        x = x.contiguous()
        self.check(self._add_up(self.address, self.types[x.dtype], x.data_ptr(), x.numel()))
        return x

    def gathered(self, x: Tensor) -> Tensor | None:
        """The ranks' x (..., k) side by side -> (..., ranks * k); None where it is the library's to do."""
        *shape, columns = x.shape
        if not self.fits(x) or not 0 < columns * x.itemsize <= SLOT_BYTES:
            return None
        self.check()
        x, out = x.contiguous(), x.new_empty((*shape, self.area.count * columns))
        self.check(self._gather(self.address, x.data_ptr(), x.numel() // columns, columns * x.itemsize, address(out)))
        return out

    def check(self, code: int = 0) -> None:
        """Raises RuntimeError for what the C++ says of another rank, and again from then on: a rank that has missed a
        sum would add up others' parts of another one."""
        self.failure = self.failure or code
        if self.failure:
            rank, what = divmod(self.failure, 4)
            raise RuntimeError(f"process {self.processes[rank]} (tensor-parallel rank {rank}) {FAILURES[what]}")

    def leave_out(self) -> None:
        """This rank has missed a sum: there are no more."""
        self.failure = self.failure or 4 * self.area.rank + LEFT_OUT


def size_of(ranks: int) -> int:
    return ranks * (STATE_BYTES + 2 * SLOT_BYTES) + TOKEN_BYTES


def join(operators, rank: int, ranks: int, exchange: Exchange, patience: float) -> Sums | None:
    """Called by all ranks at a time. None, on all alike, where one has no operators or does not want to (None), where
    they are on several hosts or in several containers, or where one cannot share memory: the first rank says that on
    stderr."""
    shared, token, error = None, secrets.token_bytes(TOKEN_BYTES), None
    if rank == 0 and operators is not None:
        shared, error = attempt(lambda: made(operators.library, size_of(ranks), token), OSError)
    try:
        found = exchange((None if operators is None else place(), os.getpid(), shared, token, error))
        if None in (places := {where for where, *_ in found}) or len(places) > 1:
            return None
        memory, (_, process, number, token, error) = None, found[0]
        if error is None:
            memory, error = attempt(lambda: opened(process, number, size_of(ranks), token), OSError, ValueError)
        if errors := [each for each in exchange(error) if each]:
            if rank == 0:
                print(f"kernels: sums over ranks are left to torch's library: {errors[0]}", file=sys.stderr)
            return None
    finally:
        close([-1 if shared is None else shared])
    return Sums(operators, memory, rank, [process for _, process, *_ in found], patience)


def place() -> tuple[str, str] | None:
    """Equal for processes that see each other: of one start of the system, and of one container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def made(library: ctypes.CDLL, size: int, token: bytes) -> int:
    """Memory of zeros with the token at its end, as an open file."""
    number = library.glm_nameless_memory()
    if number < 0:
        raise OSError("the system has no memory to share")
    try:
        os.truncate(number, size)
        os.pwrite(number, token, size - TOKEN_BYTES)
    except OSError:
        os.close(number)
        raise
    return number


def opened(process: int, number: int, size: int, token: bytes) -> mmap.mmap:
    with open(f"/proc/{process}/fd/{number}", "r+b") as file:
        memory = mmap.mmap(file.fileno(), size)
    if memory[-TOKEN_BYTES:] != token:
        raise ValueError(f"what process {process} shares is not to be seen here")
    return memory


def close(files: Sequence[int]) -> None:
    for number in files:
        if number >= 0:
            os.close(number)
