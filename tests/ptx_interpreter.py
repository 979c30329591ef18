"""A device for kernels.cuda without a GPU: the PTX that nvcc makes of its sources, interpreted (ptx_warp.py).

Beside numbers it finds what cuda_emulator.h cannot see: wrong inline assembler, fragments, divergence where lanes must
meet, races in shared memory between barriers.
"""

import ctypes
import fcntl
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from kernels.cuda import build
from kernels.cuda.build import Program
from tests.cuda_emulator import READ, WRITE, Buffer, Emulator
from tests.ptx_arithmetic import Fault
from tests.ptx_warp import Warp

STATEMENT = re.compile(r"(?:@(!?)([%\w]+)\s+)?(\S+)\s*(.*)", re.S)
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


class Kernel(NamedTuple):
    code: list[tuple[str, list[str], tuple[bool, str] | None]]  # operation, operands, predicate
    labels: dict[str, int]  # the instruction behind each
    shared: dict[str, int]  # where each array begins; the one whose size the launch says is the last
    shared_bytes: int  # without that one


@cache
def kernels(folder: Path, program: Program) -> dict[str, str]:
    """The text of every kernel's body by name; compiled once in a run of the tests. Skips the test without nvcc."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    path = folder / f"{program.source}_{program.bits}_{program.kind}.ptx"
    command = ["nvcc", "-ptx", *program.options("compute_80"), "-o", str(path), str(build.SOURCES / program.source)]
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    text = re.sub(r"//[^\n]*", "", path.read_text())
    outside, *entries = re.split(r"\.visible \.entry ", text)
    # the array whose size a launch says, and those of functions that several kernels call
    outside = "".join(re.findall(r"^(?:\.extern )?\.shared [^;]+;", outside, re.MULTILINE))
    return {entry[:entry.index("(")]: outside + entry[entry.index("{") + 1:entry.rindex("}")] for entry in entries}


@cache
def parsed(folder: Path, program: Program, name: str) -> Kernel:
    code, labels, shared, size = [], {}, {}, 0
    for statement in kernels(folder, program)[name].split(";"):
        statement = statement.strip()
        while found := re.match(r"(\$\w+):\s*|[{}]\s*", statement):
            if found[1]:
                labels[found[1]] = len(code)
            statement = statement[found.end():]
        if dynamic := re.match(r"\.extern \.shared \.align \d+ \.b8 (\w+)\[\]", statement):
            shared[dynamic[1]] = None
        elif array := re.match(r"\.shared \.align (\d+) \.[a-z](\d+) (\w+)(?:\[(\d+)\])?", statement):
            size += -size % int(array[1])
            shared[array[3]], size = size, size + int(array[2]) // 8 * int(array[4] or 1)
        elif statement and not statement.startswith("."):
            inverted, predicate, operation, operands = STATEMENT.match(statement).groups()
            code.append((operation, [re.sub(r"\s+", "", operand) for operand in OPERAND.findall(operands)],
                         (inverted == "!", predicate) if predicate else None))
    size += -size % 16
    return Kernel(code, labels, {array: size if at is None else at for array, at in shared.items()}, size)


def holds(buffer: Buffer, place: int, count: int) -> bool:
    return buffer.begin <= place and place + count <= buffer.begin + buffer.size


class Block:
    """The threads that share memory and barriers. written: the output's places that some block has written."""

    def __init__(self, kernel: Kernel, grid, place, threads: int, arguments: bytes, buffers, written: set[int],
                 shared_bytes: int):
        self.kernel, self.grid, self.place, self.threads, self.arguments = kernel, grid, place, threads, arguments
        self.buffers, self.written = buffers, written
        self.shared, self.epoch = bytearray(kernel.shared_bytes + shared_bytes), 0  # epoch: barriers so far
        self.writers, self.readers = {}, {}  # by a word of shared memory: the last thread and its epoch
        self.conflicts = 0
        self.under_way = set()  # words that an asynchronous copy writes to
        self.warps = [Warp(self, index) for index in range(threads // 32)]

    def read(self, place: int, count: int, is_shared: bool, thread: int, is_constant: bool = False) -> bytes:
        self.check(place, count, is_shared)
        if not is_shared:
            uses = [buffer.uses for buffer in self.buffers if buffer.uses & READ and holds(buffer, place, count)]
            if not uses or (is_constant and READ not in uses):
                raise Fault(f"{count} bytes are read outside of the inputs" if not uses else
                            "memory that is written is read as constant")
            return ctypes.string_at(place, count)
        for word in range(place, place + count, 4):
            if word in self.under_way:
                raise Fault("shared memory is read before its copy has been waited for")
            if word not in self.writers:
                raise Fault("shared memory is read that nobody has written")
            if self.is_race(self.writers[word], thread):
                raise Fault("shared memory is read behind a write, and no barrier lies between")
            self.readers[word] = (thread, self.epoch)
        return bytes(self.shared[place:place + count])

    def write(self, place: int, raw: bytes, is_shared: bool, thread: int) -> None:
        self.check(place, len(raw), is_shared)
        if not is_shared:
            uses = [buffer.uses for buffer in self.buffers if buffer.uses & WRITE and holds(buffer, place, len(raw))]
            if not uses:
                raise Fault(f"{len(raw)} bytes are written outside of the output")
            if WRITE in uses:
                places = set(range(place, place + len(raw), 2))
                if places & self.written:
                    raise Fault("a place of the output is written twice")
                self.written |= places
            ctypes.memmove(place, raw, len(raw))
            return
        self.claim(place, len(raw), thread)
        self.shared[place:place + len(raw)] = raw

    def copy(self, place: int, raw: bytes, thread: int) -> None:
        """An asynchronous one, until `arrive`. The bytes are there at once; who looks at them before is told."""
        self.check(place, len(raw), True)
        self.claim(place, len(raw), thread)
        self.under_way |= set(range(place, place + len(raw), 4))
        self.shared[place:place + len(raw)] = raw

    def arrive(self, place: int, count: int, thread: int) -> None:
        for word in range(place, place + count, 4):
            self.under_way.discard(word)
            self.writers[word] = (thread, self.epoch)

    def claim(self, place: int, count: int, thread: int) -> None:
        for word in range(place, place + count, 4):
            others = any(word in known and self.is_race(known[word], thread) for known in (self.writers, self.readers))
            if others or word in self.under_way:
                raise Fault("shared memory is written in which another thread is at work")
            self.writers[word] = (thread, self.epoch)

    def count_conflicts(self, places, acting) -> None:
        """Of 16-byte accesses, eight lanes at a time: to one bank, but not to one place."""
        for first in range(0, 32, 8):
            pieces = {int(place) // 16 for place in places[first:first + 8][acting[first:first + 8]]}
            self.conflicts += len(pieces) - len({piece % 8 for piece in pieces})

    def check(self, place: int, count: int, is_shared: bool) -> None:
        if place % count:
            raise Fault(f"{count} bytes at {place:#x}, which is no multiple")
        if is_shared and place > len(self.shared) - count:
            raise Fault("beyond the shared memory")

    def is_race(self, last: tuple[int, int], thread: int) -> bool:
        return last[1] == self.epoch and last[0] != thread

    def run(self) -> None:
        while any(warp.alive.any() for warp in self.warps):
            for warp in self.warps:
                while warp.alive.any() and not warp.waits:
                    warp.step()
            if len({bool(warp.waits) for warp in self.warps}) > 1:
                raise Fault("some warps have ended, others wait at a barrier")
            for warp in self.warps:
                warp.waits = False
            self.epoch += 1


class Interpreter(Emulator):
    """An emulator that knows the kernels as PTX; conflicts: of lanes that wait for each other at a bank."""

    conflicts = 0

    def execute(self, program, name, grid, threads, arguments, buffers, shared_bytes):
        kernel, written = parsed(self.folder, program, name), set()
        with np.errstate(all="ignore"):
            places = list(np.ndindex(*grid))
            for place in reversed(places) if self.backwards else places:
                block = Block(kernel, grid, place, threads, arguments, buffers, written, shared_bytes)
                block.run()
                self.conflicts += block.conflicts
        produced = sum(buffer.size // 2 for buffer in buffers if buffer.uses == WRITE)
        assert len(written) == produced, f"{name}: {produced - len(written)} outputs are not written"
