"""A device for kernels.cuda without a GPU: the same sources, compiled for the processor (cuda_emulator.h)."""

import ctypes
import fcntl
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from kernels.cuda import build
from kernels.cuda.linear import ARGUMENTS

HERE = Path(__file__).resolve().parent
POISON = 0x7E7E  # in every 16-bit place of an output: not a number


class Buffer(ctypes.Structure):
    _fields_ = (("begin", ctypes.c_uint64), ("size", ctypes.c_uint64), ("writable", ctypes.c_uint32))


def shared_folder(tmp_path_factory) -> Path:
    """Where a run of the tests keeps what it has compiled; skips the test that asks for it without g++."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # the folder of all workers
        folder = folder.parent
    folder /= "emulator"
    folder.mkdir(exist_ok=True)
    return folder


@cache
def library(folder: Path, bits: int, kind: int) -> ctypes.CDLL:
    """Compiled in some seconds, once in a run of the tests."""
    compiler = shutil.which("g++")
    path = folder / f"emulator_{bits}_{kind}.so"
    command = [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Werror",
               "-Wno-unknown-pragmas", f"-DGLM_BITS={bits}", f"-DGLM_KIND={kind}", f"-I{HERE}", "-x", "c++",
               str(build.SOURCES / build.MAIN), "-o", str(path)]
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

    def __init__(self, folder: Path, has_tensor_cores: bool = True, processors: int = 4):
        self.folder, self.has_tensor_cores, self.processors = folder, has_tensor_cores, processors
        self.launched: list[str] = []

    def launch(self, bits: int, kind: int, name: str, grid: tuple[int, int], threads: int, arguments: bytes) -> None:
        self.launched.append(name)
        x, weight, scale, bias, out, m, n, k, groups, _, _, scale_kind, _ = ARGUMENTS.unpack(arguments)
        produced = n * k if name.startswith("dequantize") else 1 if name == "read_all" else m * n
        read = m * 16 if name == "read_all" else m * k * 2
        scales = n * max(groups, 1) * (4 if scale_kind == 2 else 2)
        sizes = ((x, read), (weight, n * k * bits // 8), (scale, scales), (bias, n * 2 if bias else 0))
        buffers = [*(Buffer(begin, size, False) for begin, size in sizes), Buffer(out, produced * 2, True)]
        ctypes.memset(out, POISON & 0xFF, produced * 2)
        self.execute(bits, kind, name, grid, threads, arguments, buffers)

    def execute(self, bits: int, kind: int, name: str, grid: tuple[int, int], threads: int, arguments: bytes,
                buffers: list[Buffer]) -> None:
        """buffers: all memory that the kernel may use, the output last."""
        loaded = library(self.folder, bits, kind)
        kernel = ctypes.cast(getattr(loaded, name), ctypes.c_void_p)
        problem = loaded.emulate(kernel, *grid, threads, arguments, (Buffer * len(buffers))(*buffers), len(buffers))
        assert not problem, f"{name}: {problem.decode()}"
