"""CUDA C++ to machine code without a compiler on the machine: NVIDIA's run-time compilation library, through ctypes.

Torch's CUDA wheels bring the library (packages nvidia-cuda-nvrtc, nvidia-cuda-nvrtc-cu12); a CUDA toolkit has it, too.
"""

import ctypes
import os
import re
import sys
from collections.abc import Iterator, Mapping
from ctypes import byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch

from kernels.cache import BuildError

PROCESS_MAPS = Path("/proc/self/maps")


class Compiler:
    """One loaded library. Raises OSError where it cannot be loaded, BuildError where it does not work."""

    def __init__(self, path: str):
        for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")):  # opened by name at the first program
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.path = path
        self.library = ctypes.CDLL(path)
        self.library.nvrtcGetErrorString.restype = c_char_p
        major, minor, count = c_int(), c_int(), c_int()
        self.call("nvrtcVersion", byref(major), byref(minor))
        self.version = f"{major.value}.{minor.value}"
        self.call("nvrtcGetNumSupportedArchs", byref(count))
        known = (c_int * count.value)()
        self.call("nvrtcGetSupportedArchs", known)
        self.architectures = sorted(known)  # 75 for sm_75, ...

    def call(self, name: str, *arguments) -> None:
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            raise BuildError(f"{name} of {self.path} failed: {self.library.nvrtcGetErrorString(status).decode()}")

    def target(self, architecture: int) -> tuple[str, str]:
        """For a device of compute capability 8.6 (86): what to compile for, and what comes out: ("sm_86", "CUBIN"), or
        ("compute_...", "PTX"), which the driver translates, for a device younger than the library."""
        if architecture in self.architectures:
            return f"sm_{architecture}", "CUBIN"
        if architecture > self.architectures[-1]:
            return f"compute_{self.architectures[-1]}", "PTX"
        older = [known for known in self.architectures if known < architecture and known // 10 == architecture // 10]
        if older:  # code of the same major number runs on a later minor number
            return f"sm_{older[-1]}", "CUBIN"
        raise BuildError(f"NVRTC {self.version} compiles for compute capability {self.architectures[0] / 10} and "
                         f"later; this device has {architecture / 10}")

    def compile(self, name: str, source: str, headers: Mapping[str, str], options: tuple[str, ...], kind: str) -> bytes:
        """The CUBIN or PTX (`kind`) of a source. Raises BuildError with the first error's line."""
        program = c_void_p()
        contents = (c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        names = (c_char_p * len(headers))(*(header.encode() for header in headers))
        self.call("nvrtcCreateProgram", byref(program), source.encode(), name.encode(), len(headers), contents, names)
        try:
            arguments = (c_char_p * len(options))(*(option.encode() for option in options))
            if self.library.nvrtcCompileProgram(program, len(options), arguments) != 0:
                log = self.read(program, "nvrtcGetProgramLog").rstrip(b"\0").decode(errors="replace")
                lines = log.strip().splitlines() or ["no reason given"]
                raise BuildError("NVRTC failed: " + next((line for line in lines if "error" in line), lines[0]))
            return self.read(program, f"nvrtcGet{kind}")
        finally:
            self.library.nvrtcDestroyProgram(byref(program))

    def read(self, program: c_void_p, name: str) -> bytes:
        size = c_size_t()
        self.call(f"{name}Size", program, byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(name, program, buffer)
        return buffer.raw


@cache
def find() -> Compiler:
    """The library of this process, of torch's packages or of the system, in this order. Raises BuildError."""
    failures = []
    for path in candidates():
        try:
            return Compiler(path)
        except (OSError, AttributeError, BuildError) as error:
            if "/" in path:
                failures.append(str(error))
    raise BuildError(failures[0] if failures else "NVRTC (libnvrtc.so) is not found; torch's CUDA packages bring it: "
                     "pip install nvidia-cuda-nvrtc")


def candidates() -> Iterator[str]:
    """Paths and, in the end, bare names to look for, the best first."""
    yield from loaded_libraries()
    for folder in sys.path:
        yield from found_in(Path(folder) / "nvidia", "*/lib/libnvrtc.so*")
        yield from found_in(Path(folder) / "torch" / "lib", "libnvrtc*.so*")
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), sys.prefix, "/usr/local/cuda"):
        if root:
            yield from found_in(Path(root), "lib*/libnvrtc.so*")
    yield from ("libnvrtc.so", *(f"libnvrtc.so.{version}" for version in ("14", "13", "12", "11.2")))


def loaded_libraries() -> list[str]:
    try:
        lines = PROCESS_MAPS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "libnvrtc" in line}
    return sorted(path for path in paths if is_library(path))


def found_in(folder: Path, pattern: str) -> list[str]:
    """Those of torch's CUDA version first, since the driver may be too old for a later one's code; then the newest."""
    major = (torch.version.cuda or "").split(".")[0]

    def preference(path: str) -> tuple:
        version = re.findall(r"\d+", os.path.basename(path).partition(".so")[2])
        return version[:1] == [major], [int(number) for number in version]

    return sorted((str(path) for path in folder.glob(pattern) if is_library(path.name)), key=preference, reverse=True)


def is_library(path: str) -> bool:
    """libnvrtc.so.13 or torch's libnvrtc-672ee683.so.11.2; not libnvrtc-builtins.so, nor libnvrtc.alt.so."""
    return re.fullmatch(r"libnvrtc(-[0-9a-f]{8})?\.so[.\d]*", os.path.basename(path)) is not None
