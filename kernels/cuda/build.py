"""Machine code of this folder's CUDA sources, compiled at first use and kept in kernels.cache's folder."""

import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from kernels import cache
from kernels.cuda import nvrtc

SOURCES = Path(__file__).parent
KINDS = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}  # Kind in device.h
OLDEST = 70  # compute capability 7.0: Volta


class Program(NamedTuple):
    """What is compiled as one: a source for one type of numbers, and where it is linear.cu for one of weights."""

    source: str  # a file of this folder
    kind: int  # of KINDS
    bits: int = 0  # of packed weights: 8 or 4

    def options(self, target: str) -> tuple[str, ...]:
        definitions = [f"-DGLM_BITS={self.bits}"] if self.bits else []
        return (f"--gpu-architecture={target}", "--std=c++17", *definitions, f"-DGLM_KIND={self.kind}")


def compiled(architecture: int, program: Program) -> bytes:
    """CUBIN or PTX for a device of this compute capability (90 for 9.0). Raises cache.BuildError with one line. Some
    seconds at first, then read from a file whose name is made of everything that decides its content."""
    if architecture < OLDEST:
        raise cache.BuildError(f"compute capability {OLDEST / 10} is needed; this device has {architecture / 10}")
    compiler = nvrtc.find()
    target, result = compiler.target(architecture)
    options, text = program.options(target), (SOURCES / program.source).read_text()
    name = f"cuda-{target}-{build_key(compiler.version, options, text)}.{result.lower()}"
    try:
        code = cache.kept(name)
    except cache.BuildError:  # said below
        code = None
    if code is None:
        code = compiler.compile(program.source, text, headers(), options, result)
        try:
            cache.keep(name, code)
        except cache.BuildError as error:  # it works, only slower at the next start
            print(f"kernels: cannot keep what was compiled: {error}", file=sys.stderr)
    return code


def headers() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(SOURCES.glob("*.h"))}


def build_key(version: str, options: tuple[str, ...], source: str) -> str:
    digest = hashlib.sha256("\0".join((version, *options, source)).encode())
    for name, text in headers().items():
        digest.update(f"\0{name}\0{text}".encode())
    return digest.hexdigest()[:20]
