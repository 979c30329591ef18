"""A device for kernels.cuda without a GPU: the same sources, compiled for the processor (cuda_emulator.h)."""

import ctypes
import fcntl
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from kernels.cuda import build
from kernels.cuda.build import Program
from kernels.cuda.driver import LARGEST_SHARED, Call, spanned
from tests.kernel_cases import run_folder

HERE = Path(__file__).resolve().parent
POISON = 0x7E  # in every byte of an output: not a number
READ, WRITE = 1, 2  # Use in cuda_emulator.h


class Buffer(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_uint64), ("size", ctypes.c_uint64), ("uses", ctypes.c_uint32))


def shared_folder(tmp_path_factory) -> Path:
    """Where a run of the tests keeps what it has compiled; skips the test that asks for it without g++."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    folder = run_folder(tmp_path_factory) / "emulator"
    folder.mkdir(exist_ok=True)
    return folder


@cache
def library(folder: Path, program: Program) -> ctypes.CDLL:
    """Compiled in some seconds, once in a run of the tests."""
    compiler = shutil.which("g++")
    path = folder / f"emulator_{program.source}_{program.bits}_{program.kind}.so"
    command = [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror",
               "-Wno-unknown-pragmas", *program.options("")[2:], f"-I{HERE}", "-x", "c++",
               str(build.SOURCES / program.source), "-o", str(path)]
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(path))
    loaded.emulate.restype = ctypes.c_char_p
    return loaded


class Emulator:
    """Takes the place of driver.Device for tensors of the processor; remembers what it was asked to run."""

    def __init__(self, folder: Path, has_tensor_cores: bool = True, processors: int = 4, backwards: bool = False):
        self.folder, self.has_tensor_cores, self.processors = folder, has_tensor_cores, processors
        self.backwards = backwards  # the last block first
        self.launched: list[str] = []

    def launch(self, program: Program, name: str, grid: tuple[int, int], threads: int, call: Call,
               shared_bytes: int = 0) -> None:
        self.launched.append(name)
        buffers = [Buffer(tensor.data_ptr(), spanned(tensor), uses)
                   for tensors, uses in ((call.reads, READ), (call.changes, READ | WRITE), (call.writes, WRITE))
                   for tensor in tensors if tensor is not None]
        for buffer in buffers:
            if buffer.uses == WRITE:
                ctypes.memset(buffer.begin, POISON, buffer.size)
        assert shared_bytes <= LARGEST_SHARED
        self.execute(program, name, grid, threads, call.packed(), buffers, shared_bytes)

    def execute(self, program: Program, name: str, grid: tuple[int, int], threads: int, arguments: bytes,
                buffers: list[Buffer], shared_bytes: int) -> None:
        """buffers: all memory that the kernel may use."""
        loaded = library(self.folder, program)
        kernel = ctypes.cast(getattr(loaded, name), ctypes.c_void_p)
        problem = loaded.emulate(kernel, *grid, threads, arguments, len(arguments), (Buffer * len(buffers))(*buffers),
                                 len(buffers), shared_bytes, self.backwards)
        assert not problem, f"{name}: {problem.decode()}"
