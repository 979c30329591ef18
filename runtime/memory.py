"""How much memory this process may still take: of the machine, under its control groups and limits, or of a GPU."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
UNLIMITED = 1 << 60  # what version 1 writes where nothing is limited is a little less than 2^63


def free_memory(device: str) -> int:
    """Bytes that are free on "cpu" or on a GPU ("cuda", "cuda:N"; imports torch)."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return free_host_memory()


def free_host_memory() -> int:
    """Bytes of host memory that this process may still take: the least of what the machine has free and of what every
    control group above the process and its own limits (address space, data) leave. Page cache counts as free."""
    return max(0, min(resident_room(), address_room(), data_room()))


def resident_room() -> int:
    """Bytes that the machine and the control groups leave; what is read through a mapped file needs none of it."""
    return max(0, min(_machine_free(), *_group_rooms()))


def address_room() -> int:
    """Bytes of address space that the process's own limit leaves (RLIMIT_AS); mapped files and libraries take some."""
    return _process_room(resource.RLIMIT_AS, "VmSize")


def data_room() -> int:
    """Bytes of its own data that the process's limit leaves (RLIMIT_DATA)."""
    return _process_room(resource.RLIMIT_DATA, "VmData")


def local_ranks() -> int:
    """Processes of a run that share this host's memory, as their launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _machine_free() -> int:
    free = system_bytes("meminfo", "MemAvailable")
    return UNLIMITED if free is None else free  # no Linux: nobody knows


def system_bytes(file: str, name: str) -> int | None:
    """A figure that /proc tells in kB, such as MemAvailable of meminfo; None where it does not."""
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


def _group_rooms() -> list[int]:
    """What the memory controllers leave."""
    rooms = [UNLIMITED]
    for folder, is_second in group_folders("memory"):
        limit, usage, cache = (("memory.max", "memory.current", "file") if is_second else
                               ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"))
        most, used = _number(folder / limit), _number(folder / usage)
        if most is not None and used is not None and most < UNLIMITED:
            rooms.append(most - used + _statistic(folder / "memory.stat", cache))
    return rooms


def _process_room(limit: int, name: str) -> int:
    """name: of what /proc/self/status says is used of it."""
    most = resource.getrlimit(limit)[0]
    if sys.platform != "linux" or most == resource.RLIM_INFINITY:
        return UNLIMITED
    return max(0, most - (system_bytes("self/status", name) or 0))


def lines_of(path: Path) -> list[str]:
    """None at all where the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _number(path: Path) -> int | None:
    words = lines_of(path)
    return int(words[0]) if words and words[0].isdigit() else None


def _statistic(path: Path, name: str) -> int:
    return next((int(line.split()[1]) for line in lines_of(path) if line.startswith(f"{name} ")), 0)
