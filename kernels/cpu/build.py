"""Compiles the C++ of this folder with the system's compiler, once per machine, and loads it through ctypes.

The library lies in kernels.cache's folder, under a name made of everything that decides its content: sources, flags,
compiler and processor. No torch headers are involved: it compiles in seconds.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from kernels import ISA
from kernels import cache as kernel_cache
from kernels.cache import BuildError, find_compiler
from runtime.resources import processor

SOURCES = Path(__file__).parent
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c")
INSTRUCTIONS = {
    "native": ("-march=native",),
    "avx512+bf16": (*AVX512, "-mavx512vbmi", "-mavx512vnni", "-mavx512bf16"),  # without AMX, as Zen 4
    "avx512": AVX512,
    "avx2": ("-mavx2", "-mfma", "-mf16c"),
    "generic": (),
}
OPTIMISED = "-O2"
OPENMP = "-fopenmp"
COMPILE_SECONDS = 600  # a compiler that hangs must not hang the model; a slow and busy machine takes its time


def load(flags: tuple[str, ...] | None = None) -> ctypes.CDLL:
    """The compiled library, from the cache or built now. `flags` fixes the compiler's flags (tests); by default
    those of instructions() with OpenMP, or without either where the compiler or the runtime does not have it, which is
    said on stderr. Raises BuildError with one line."""
    compiler = find_compiler()
    share_openmp_runtime()
    best = (OPTIMISED, *INSTRUCTIONS[instructions()])
    choices = {(*best, OPENMP): "", best: "for one thread", (OPTIMISED,): "for one thread, without vector instructions"}
    cause = None
    for choice, lost in ({flags: ""} if flags else choices).items():
        try:
            library = ctypes.CDLL(str(compiled(compiler, choice)))
        except (BuildError, OSError) as error:  # not compiled; or compiled, but GOMP_* is not found in this process
            cause = cause or error
        else:
            if lost:
                print(f"kernels: compiled {lost}, which is slower: {cause}", file=sys.stderr)
            return library
    raise cause if isinstance(cause, BuildError) else BuildError(f"the compiled library does not load: {cause}")


def instructions() -> str:
    """The key of INSTRUCTIONS to compile for: $GLM_CPU_ISA, else "native". Raises BuildError for another one."""
    chosen = os.environ.get(ISA) or "native"
    if chosen not in INSTRUCTIONS:
        raise BuildError(f"{ISA}={chosen}: must be one of {', '.join(INSTRUCTIONS)}")
    return chosen


def compiled(compiler: str, flags: tuple[str, ...]) -> Path:
    """The library built with these flags, compiled now if the cache lacks it."""
    name, folder = f"cpu-{build_key(compiler, flags)}.so", kernel_cache.own_folder()
    if kernel_cache.kept(name) is not None:
        return folder / name
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            library = f"{scratch}/kernels.so"
            command = [compiler, *flags, "-std=c++17", "-fPIC", "-fvisibility=hidden", "-w", "-c"]
            jobs = {f"{scratch}/{source.stem}.o": source for source in sorted(SOURCES.glob("*.cpp"))}
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda to: execute([*command, str(jobs[to]), "-o", to]), jobs))
            # Linked without OpenMP: its functions are to be found in the runtime that torch has loaded. A second
            # runtime in one process would keep a second team of threads spinning on the same cores.
            execute([compiler, "-shared", *jobs, "-o", library])
            return kernel_cache.keep(name, Path(library).read_bytes())
    except OSError as error:
        raise BuildError(f"cannot write the compiled library to {folder}: {error.strerror or error}") from error


def build_key(compiler: str, flags: tuple[str, ...]) -> str:
    """Hash of all that decides what the compiler makes."""
    digest = hashlib.sha256()
    for source in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update("\0".join([compiler_version(compiler), *flags, platform.machine(), processor_features()]).encode())
    return digest.hexdigest()[:20]


def processor_features() -> str:
    """The processor's instruction sets, as far as the system tells: a cache may be shared by unlike machines."""
    return processor("flags") or processor("Features") or platform.processor()


@cache
def compiler_version(compiler: str) -> str:
    return execute([compiler, "--version"])


def share_openmp_runtime() -> None:
    """Makes the symbols of the OpenMP runtime that torch brought visible to libraries loaded after it."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return  # not Linux: the variant without OpenMP is used unless the symbols are visible already
    for path in {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "/" in line}:
        if os.path.basename(path).startswith(("libgomp", "libiomp", "libomp")):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def execute(command: list[str]) -> str:
    """Output of a compiler's run; BuildError with the first line that tells what went wrong."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace",
                              timeout=COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        cause = next((line for line in lines if "error" in line), lines[0] if lines else f"status {done.returncode}")
        raise BuildError(f"{command[0]} failed: {cause}")
    return done.stdout
