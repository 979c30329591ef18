"""What this process may take of its machine: memory and cores, under control groups and limits; and the pages behind
tensors: what to read now, what to give back, which should be large."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing torch takes a second
    from torch import Tensor

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # bytes; version 1 writes a little less than 2^63 where nothing is limited
MADV_DONTNEED, MADV_HUGEPAGE, MADV_POPULATE_READ = 4, 14, 22  # Linux; the last since 5.14, and not in Python's mmap
HUGE_PAGE = 2 << 20  # bytes


def free_memory(device: str) -> int:
    """Bytes that are free on "cpu" or another device of torch ("cuda:1", "xpu"; imports torch); the host's where the
    device does not say, or has none of its own ("mps")."""
    if device != "cpu":
        import torch

        module = torch.get_device_module(device.partition(":")[0])
        if hasattr(module, "mem_get_info"):
            return module.mem_get_info(device)[0]
    return free_host_memory()


def unusable(device: str) -> str | None:
    """Why torch cannot compute on a device, in its own words; None: it can. Imports torch."""
    import torch

    try:
        torch.ones(2, device=device).sum().item()
    except Exception as error:  # of many kinds: not built in, no driver, no such number, none that holds numbers
        return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return None


def free_host_memory() -> int:
    """Bytes of host memory that this process may still take: the least of what the machine has free and of what every
    control group above the process and its own limits (address space, data) leave. Page cache counts as free."""
    return max(0, min(resident_room(), address_room(), data_room()))


def resident_room() -> int:
    """Bytes that the machine and the control groups leave; a file that is read through a mapping needs none of it."""
    return max(0, min(_machine_free(), *_group_rooms()))


def address_room() -> int:
    """Bytes of address space that the process's own limit leaves (RLIMIT_AS); mapped files and libraries take some."""
    return _process_room(resource.RLIMIT_AS, "VmSize")


def data_room() -> int:
    """Bytes of its own data that the process's limit leaves (RLIMIT_DATA)."""
    return _process_room(resource.RLIMIT_DATA, "VmData")


def local_ranks() -> int:
    """Processes of a run that share this host's memory, by their launcher's word."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor(name: str) -> str:
    """What /proc/cpuinfo says of the first processor under a name ("flags", on ARM "Features"; "model name"); "" where
    it says nothing."""
    return next((line.partition(":")[2].strip() for line in lines_of(Path("/proc/cpuinfo"))
                 if line.partition(":")[0].strip() == name), "")


def system_bytes(file: str, name: str) -> int | None:
    """A figure that /proc gives in kB, such as MemAvailable of meminfo; None where it does not."""
    return next((int(line.split()[1]) * 1024 for line in lines_of(Path("/proc", file))
                 if line.startswith(f"{name}:")), None)


def group_folders(controller: str) -> Iterator[tuple[Path, bool]]:
    """The control groups that this process is in, from its own up to the root, and whether each is of version 2."""
    for line in lines_of(OWN_GROUPS):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = GROUPS / controller if controllers else GROUPS
        folder = base / path.lstrip("/")
        if not folder.is_dir():
            folder = base  # inside a container the group's own path is often its root
        while folder.is_relative_to(base):
            yield folder, not controllers
            folder = folder.parent


def lines_of(path: Path) -> list[str]:
    """Lines of a text file of the system; none where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _machine_free() -> int:
    free = system_bytes("meminfo", "MemAvailable")
    return UNLIMITED if free is None else free  # not Linux: unknown


def _group_rooms() -> list[int]:
    """Bytes that each memory controller leaves."""
    rooms = [UNLIMITED]
    for folder, is_second in group_folders("memory"):
        limit, usage, cache = (("memory.max", "memory.current", "file") if is_second else
                               ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"))
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None and most < UNLIMITED:
            rooms.append(most - used + _statistic(folder / "memory.stat", cache))
    return rooms


def _process_room(limit: int, name: str) -> int:
    """name: the entry of /proc/self/status that says how much is used."""
    most = resource.getrlimit(limit)[0]
    if sys.platform != "linux" or most == resource.RLIM_INFINITY:
        return UNLIMITED
    return max(0, most - (system_bytes("self/status", name) or 0))


def _number(path: Path) -> int | None:
    words = lines_of(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _statistic(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in lines_of(path) if line.startswith(f"{name} ")), 0)


def read_now(tensor: Tensor) -> None:
    """Have the pages behind a contiguous tensor in a mapped file read now, in one go."""
    begin = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    _advise(begin, _end(tensor), MADV_POPULATE_READ)


def let_go(tensor: Tensor) -> None:
    """Give back the memory of the pages that hold nothing but this tensor; they are read again when they are used."""
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    _advise(begin, _end(tensor), MADV_DONTNEED)


def give_back_freed() -> None:
    """What the C library (glibc) keeps of freed memory between pieces that are in use, which it does not find again for
    tensors of the same size."""
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def make_large(tensor: Tensor) -> Tensor:
    """The tensor, whose memory has not been written to yet, in pages of 2 MB, as a mapped file has them. With pages of
    4 KB a reading loop over 1 GB was a fifth slower (30 and 25 GB/s)."""
    if tensor.device.type == "cpu":
        advise_large(tensor.data_ptr(), tensor.nbytes)
    return tensor


def advise_large(address: int, size: int) -> None:
    """The same for all whole pages of 2 MB in a range of bytes."""
    _advise(-(-address // HUGE_PAGE) * HUGE_PAGE, (address + size) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)


def _end(tensor: Tensor) -> int:
    return (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // mmap.PAGESIZE * mmap.PAGESIZE


def _advise(begin: int, end: int, advice: int) -> None:
    """Only advice: without it pages are read when they are used and dropped when memory is short."""
    if sys.platform == "linux" and end > begin:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), advice)
