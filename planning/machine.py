"""What this machine has: memory that is free, and its GPUs, asked of the driver's library without torch."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime import resources

BUSY = 1.5  # programs for every core
NVML = "libnvidia-ml.so.1"
BF16_SINCE = (8, 0)  # compute capability; earlier ones emulate it


@dataclass(frozen=True)
class Gpu:
    """bytes: of its memory, and what of it is free."""

    name: str
    total: int
    free: int
    capability: tuple[int, int]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def host_room() -> int:
    """Bytes that programs may still fill with data of their own: free memory, page cache and swap."""
    return resources.resident_room() + (resources.system_bytes("meminfo", "SwapFree") or 0)


def crowd(load: float, cores: int) -> str:
    """What is to be said where so many programs want the processor at a time (the load average); "": nothing."""
    return f"{load:.1f} programs want the {cores} cores at a time" if load > BUSY * cores else ""


@contextlib.contextmanager
def measured() -> Iterator[None]:
    """Around what is timed: a warning behind it where other programs ran, too."""
    crowded = crowd(os.getloadavg()[0], resources.cores())
    yield
    if crowded:
        print(f"warning: {crowded}: alone this machine is faster than it was measured now", file=sys.stderr)


def gpus() -> list[Gpu]:
    """Those that this process may use, in its order; none where there is no driver, or torch is built without CUDA."""
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
