"""This machine, looked at without torch: its free memory, GPUs and fast precisions; and its rates, measured in under a
second."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import mmap
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from kernels import ISA
from planning.devices import Device
from planning.ranks import on_ranks
from planning.shapes import Setup, linears
from runtime import resources

BUSY = 1.5  # programs for every core
NVML = "libnvidia-ml.so.1"  # the driver's library
BF16_SINCE = (8, 0)  # compute capability; earlier ones emulate it
PRODUCTS = {"bf16": {"avx512_bf16", "amx_bf16"}, "fp16": {"avx512_fp16", "amx_fp16"}}  # one of the instructions will do
BUFFER, LEAST_BUFFER = 256 << 20, 1 << 20  # bytes that are read; the first is far more than caches hold
READINGS = 8
ROWS = 512  # of x in the products
LARGEST = 1 << 24  # weights of a product that is tried; larger ones are cut
BLOCK = 8 << 20  # bytes that are read from disk at a time
DISK_SECONDS, PRODUCT_SECONDS = 0.2, 0.25


def host_room() -> int:
    """Bytes that programs may still fill with data of their own: free memory, page cache and swap."""
    return resources.resident_room() + (resources.system_bytes("meminfo", "SwapFree") or 0)


def crowd(load: float, cores: int) -> str:
    """What to say where so many programs (the load average) want the processor at a time; "" where they have room."""
    return f"{load:.1f} programs want the {cores} cores at a time" if load > BUSY * cores else ""


@contextlib.contextmanager
def measured() -> Iterator[None]:
    """Around what is timed: warns afterwards where other programs ran, too."""
    crowded = crowd(os.getloadavg()[0], resources.cores())
    yield
    if crowded:
        print(f"warning: {crowded}: alone this machine is faster than it was measured now", file=sys.stderr)


@dataclass(frozen=True)
class Gpu:
    """One of this machine's."""

    name: str
    total: int  # bytes of its memory
    free: int  # bytes
    capability: tuple[int, int]  # compute capability


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def gpus() -> list[Gpu]:
    """Those that this process may use, in its order; none without a driver, or if torch is built without CUDA."""
    if not torch_has_cuda():
        return []
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return []
    if library.nvmlInit_v2():
        return []
    try:
        return [found for handle in _handles(library) if (found := _described(library, handle)) is not None]
    finally:
        library.nvmlShutdown()


def torch_has_cuda() -> bool:
    """Read from torch's files: importing it takes a second."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return False
    lines = resources.lines_of(Path(found.origin).with_name("version.py"))
    value = next((line.partition("=")[2] for line in lines if line.startswith("cuda")), "None")
    return "None" not in value


def _handles(library) -> list[ctypes.c_void_p]:
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    wanted = [str(number) for number in range(count.value)] if visible is None else visible.split(",")
    handles = []
    for word in map(str.strip, wanted):
        handle = ctypes.c_void_p()
        if word.isdigit():
            failed = library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(word)), ctypes.byref(handle))
        else:
            failed = library.nvmlDeviceGetHandleByUUID(word.encode(), ctypes.byref(handle))
        if failed:
            break  # as CUDA does: what follows a wrong one is not seen
        handles.append(handle)
    return handles


def _described(library, handle) -> Gpu | None:
    name, room, major, minor = ctypes.create_string_buffer(96), _Memory(), ctypes.c_int(), ctypes.c_int()
    if (library.nvmlDeviceGetName(handle, name, 96) or library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(room))
            or library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))):
        return None
    return Gpu(name.value.decode("utf-8", "replace"), room.total, room.free, (major.value, minor.value))


def instructions() -> set[str]:
    """Instruction sets of this processor by Linux's names, less those that GLM_CPU_ISA leaves out; none elsewhere."""
    found, chosen = set(resources.processor("flags").split()), os.environ.get(ISA, "native")
    if chosen != "native":
        found -= set().union(*PRODUCTS.values()) - ({"avx512_bf16"} if chosen.endswith("+bf16") else set())
    return found


def note_on(precision: str | None, device: str, known: Set[str]) -> str | None:
    """One line where the precision that was asked for is slow here. known: `instructions`; empty where unknown."""
    if device != "cpu" or precision not in PRODUCTS or not known or known & PRODUCTS[precision]:
        return None
    lacking = " or ".join(sorted(PRODUCTS[precision]))
    return (f"--{precision}: this processor has no products of 16-bit numbers ({lacking}), so it reads texts several "
            "times more slowly than with --fp32; for less memory there is --quantization-bit-width 8")


def default_device() -> str:
    """"cuda" where torch sees a GPU, else "cpu". Imports torch."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_precision(device: str) -> str:
    """bf16 where the device computes in it, else fp16 on a GPU (imports torch) and fp32 on a CPU; fp16 on devices of
    other kinds."""
    if device.startswith("cuda"):
        import torch

        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.partition(":")[0] != "cpu":
        return "fp16"
    return "bf16" if instructions() & PRODUCTS["bf16"] else "fp32"


def place_of(device: str | None, ranks: int) -> tuple[str, list[Gpu]]:
    """"cpu", or "cuda" and the GPUs that so many ranks of this host will use; none are known of a device of another
    kind. device: that of --device."""
    device = device or ""
    if device.partition(":")[0] not in ("", "cpu", "cuda"):
        return "cuda", []
    found = [] if device == "cpu" else gpus()
    if not device.startswith("cuda") and not found:
        return "cpu", []
    number = device.partition(":")[2]
    if number.isdigit():
        return "cuda", found[int(number):int(number) + 1]
    return "cuda", found[:ranks]


def fastest_precision(kind: str, gpus: Sequence[Gpu], cpu_precision: str) -> str:
    """As default_precision, without torch. cpu_precision: that of this processor."""
    if kind == "cuda":
        return "bf16" if not gpus or gpus[0].capability >= BF16_SINCE else "fp16"
    return cpu_precision


def host(setup: Setup, weights: float) -> Device:
    """This machine's processor as each of the setup's ranks has it, measured by some layers of the model. weights:
    bytes that a step reads: small ones stay in the processor's caches. Imports torch."""
    with measured():
        whole = processor(replace(setup, degree=1), weights)
        share = whole.bandwidth / setup.degree
        rates = {precision: rate / setup.degree for precision, rate in whole.rates.items()}
        return replace(whole, bandwidth=share, rates=rates, link=share, peer=share, trial=on_ranks(setup))


def processor(setup: Setup, weights: float) -> Device:
    """This machine's processor as one process alone has it, with the rate of the setup's products."""
    precision, read = setup.run.precision, bandwidth(weights)
    rate = matrix_rate(precision, [(weight.rows, weight.columns) for weight in linears(setup)])
    return Device("cpu", "this machine's processor", "cpu", host_room(), read, {precision: rate}, read, read,
                  "measured now")


def bandwidth(size: float) -> float:
    """Bytes a second at which all threads together read `size` bytes again and again, by the compiled kernels' loop."""
    import torch

    import kernels

    compiled = kernels.compiled()
    count = int(min(BUFFER, max(LEAST_BUFFER, size))) // 64 * 64
    buffer = torch.zeros(count, dtype=torch.uint8)
    read = (lambda: compiled.read(buffer)) if compiled else (lambda: buffer.view(torch.float32).sum())
    read()
    return count / median(seconds_of(read) for _ in range(READINGS))


def matrix_rate(precision: str, shapes: Sequence[tuple[int, int]]) -> float:
    """Operations a second of torch's products of ROWS rows with weights of these shapes (n, k)."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    operations = seconds = 0.0
    with torch.inference_mode():
        for n, k in shapes:
            n, k = min(n, LARGEST // 1024), min(k, 4096)
            x, weight = torch.ones(ROWS, k, dtype=dtype), torch.ones(n, k, dtype=dtype)

            def product(x=x, weight=weight):
                torch.nn.functional.linear(x, weight)

            product()
            found, end = [], time.perf_counter() + PRODUCT_SECONDS / len(shapes)
            while not found or (time.perf_counter() < end and len(found) < 20):
                found.append(seconds_of(product))
            operations += 2.0 * ROWS * n * k
            seconds += median(found)
    return operations / seconds


def disk_rate(file: Path) -> float | None:
    """Bytes a second that come from the disk of a file, past the page cache; None where this cannot be told."""
    size = file.stat().st_size
    if size < 2 * BLOCK or not hasattr(os, "O_DIRECT"):
        return None
    try:
        handle = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # a file system that knows no direct reading
        return None
    total, begin = 0, time.perf_counter()
    with mmap.mmap(-1, BLOCK) as buffer:
        try:
            while total < size - BLOCK and time.perf_counter() - begin < DISK_SECONDS:
                total += os.preadv(handle, [buffer], total)
        except OSError:
            return None
        finally:
            os.close(handle)
    return total / (time.perf_counter() - begin)


def seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
