"""Machine code of this folder's CUDA sources, compiled at first use and kept in kernels.cache's folder."""

import hashlib
import sys
from pathlib import Path

from kernels import cache
from kernels.cuda import nvrtc

SOURCES = Path(__file__).parent
MAIN = "linear.cu"
OLDEST = 70  # compute capability 7.0: Volta


def compiled(architecture: int, bits: int, kind: int) -> bytes:
    """CUBIN or PTX for a device of this compute capability (90 for 9.0), packed weights of `bits` and x of `kind`
    (linear.KINDS). Raises cache.BuildError with one line. Some seconds at first, then read from a file whose name
    is made of everything that decides its content."""
    if architecture < OLDEST:
        raise cache.BuildError(f"compute capability {OLDEST / 10} is needed; this device has {architecture / 10}")
    compiler = nvrtc.find()
    target, result = compiler.target(architecture)
    options = options_for(target, bits, kind)
    name = f"cuda-{target}-{build_key(compiler.version, options)}.{result.lower()}"
    try:
        code = cache.kept(name)
    except cache.BuildError:  # said below
        code = None
    if code is None:
        code = compiler.compile(MAIN, (SOURCES / MAIN).read_text(), headers(), options, result)
        try:
            cache.keep(name, code)
        except cache.BuildError as error:  # it works, only slower at the next start
            print(f"kernels: cannot keep what was compiled: {error}", file=sys.stderr)
    return code


def options_for(target: str, bits: int, kind: int) -> tuple[str, ...]:
    return (f"--gpu-architecture={target}", "--std=c++17", f"-DGLM_BITS={bits}", f"-DGLM_KIND={kind}")


def headers() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(SOURCES.glob("*.h"))}


def build_key(version: str, options: tuple[str, ...]) -> str:
    digest = hashlib.sha256("\0".join((version, *options, (SOURCES / MAIN).read_text())).encode())
    for name, text in headers().items():
        digest.update(f"\0{name}\0{text}".encode())
    return digest.hexdigest()[:20]
