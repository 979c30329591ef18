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
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_int, c_size_t, c_void_p
from pathlib import Path

from torch import Tensor

from kernels.cpu.attention import address

SLOT_BYTES = 512 << 10  # what is put down at a time
STATE_BYTES = 64  # of a rank
PATIENCE = 1800  # seconds that a rank waits for another one that is there, as torch's collectives do
TOKEN_BYTES = 16  # at the end of the memory, by which a rank knows that it has opened the right one
Exchange = Callable[[object], Sequence]  # gives every rank's object to all ranks, in their order


class Area(ctypes.Structure):
    """ranks.h's Ranks."""

    _fields_ = [("memory", c_void_p), ("rank", c_size_t), ("count", c_size_t), ("slot", c_size_t),
                ("processes", POINTER(c_int)), ("patience", c_size_t)]


class Sums:
    """All ranks take part in each sum, in the same order and with the same shapes; all get the same bits."""

    def __init__(self, operators, memory: mmap.mmap, rank: int, processes: Sequence[int], patience: int = PATIENCE):
        """memory: `size_of` bytes, zeros before the first sum. processes: a handle of each rank's process
        (os.pidfd_open); -1: none, so that its end is not noticed."""
        self.types, library = operators.TYPES, operators.library
        self.kept = memory, (c_int * len(processes))(*processes)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.area = Area(begin, rank, len(processes), SLOT_BYTES, self.kept[1], patience)
        self.address = ctypes.addressof(self.area)
        self._add_up, self._gather = library.glm_add_up, library.glm_gather
        self._add_up.argtypes = [c_void_p, c_int, c_void_p, c_size_t]
        self._gather.argtypes = [c_void_p, c_void_p, c_size_t, c_size_t, c_void_p]

    def fits(self, x: Tensor) -> bool:
        return x.device.type == "cpu" and x.dtype in self.types

    def sum(self, x: Tensor) -> Tensor:
        """Of a tensor that fits; in float32, rounded once. What x held is lost where it is contiguous."""
        x = x.contiguous()
        self.check(self._add_up(self.address, self.types[x.dtype], x.data_ptr(), x.numel()))
        return x

    def gathered(self, x: Tensor) -> Tensor | None:
        """The ranks' x (..., k) side by side -> (..., ranks * k); None where it is the library's to do."""
        *shape, columns = x.shape
        if not self.fits(x) or not 0 < columns * x.itemsize <= SLOT_BYTES:
            return None
        x, out = x.contiguous(), x.new_empty((*shape, self.area.count * columns))
        self.check(self._gather(self.address, x.data_ptr(), x.numel() // columns, columns * x.itemsize, address(out)))
        return out

    def check(self, code: int) -> None:
        """Raises RuntimeError for what the C++ says of another rank."""
        if code:
            rank, what = divmod(code, 4)
            raise RuntimeError(f"rank {rank} " + (
                "ended while others waited for it" if what == 1
                else f"was waited for in vain: {self.area.patience} s, time-out"))


def size_of(ranks: int) -> int:
    return ranks * (STATE_BYTES + 2 * SLOT_BYTES) + TOKEN_BYTES


def join(operators, rank: int, ranks: int, exchange: Exchange) -> Sums | None:
    """Called by all ranks at a time. None, on all alike, where one has no compiled operators (None), where they are on
    several hosts or in several containers, or where one cannot share memory: the first rank says that on stderr."""
    shared, token, error = None, secrets.token_bytes(TOKEN_BYTES), None
    if rank == 0 and operators is not None:
        shared, error = attempt(lambda: made(size_of(ranks), token))
    found = exchange((None if operators is None else place(), os.getpid(), shared, token, error))
    error = found[0][-1]
    if None in (places := {where for where, *_ in found}) or len(places) > 1 or error:
        say(rank, error)
        return None
    _, process, number, token, _ = found[0]
    memory, error = attempt(lambda: opened(process, number, size_of(ranks), token))
    errors = [each for each in exchange(error) if each]
    if shared is not None:
        os.close(shared)
    if errors:
        say(rank, errors[0])
        return None
    return Sums(operators, memory, rank, [handle_of(process) for _, process, *_ in found])


def say(rank: int, error: str | None) -> None:
    if rank == 0 and error:
        print(f"kernels: sums over ranks are left to torch's library: {error}", file=sys.stderr)


def attempt(work: Callable[[], object]) -> tuple[object, str | None]:
    """The result, or the line of what went wrong."""
    try:
        return work(), None
    except (OSError, ValueError, AttributeError) as error:  # AttributeError: another system than Linux
        return None, str(error)


def place() -> tuple[str, str] | None:
    """Equal for processes that see each other: of one start of the system, and of one container."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def made(size: int, token: bytes) -> int:
    """Memory of zeros with the token at its end, as an open file."""
    number = os.memfd_create("sums-of-ranks")
    os.truncate(number, size)
    os.pwrite(number, token, size - TOKEN_BYTES)
    return number


def opened(process: int, number: int, size: int, token: bytes) -> mmap.mmap:
    with open(f"/proc/{process}/fd/{number}", "r+b") as file:
        memory = mmap.mmap(file.fileno(), size)
    if memory[-TOKEN_BYTES:] != token:
        raise ValueError(f"what process {process} shares is not to be seen here")
    return memory


def handle_of(process: int) -> int:
    try:
        return os.pidfd_open(process)
    except (OSError, AttributeError):  # before Linux 5.3
        return -1
