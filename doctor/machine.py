"""This host, without torch: memory and disk, limits of the system, the compiler, the port of a run on several hosts."""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from doctor.finding import Finding, error, warning
from kernels.cache import BuildError, cache_folder, find_compiler
from planning.machine import crowd
from runtime.resources import cores, free_host_memory, group_folders

GB = 1e9
LEAST_DISK = 1.0  # GB that results, samples and compiled kernels never need together
LEAST_SHARED = 1.0  # GB of /dev/shm for NCCL's buffers; containers have 0.064 unless told otherwise
FILES_OF_A_PROCESS, FILES_PER_RANK = 256, 32  # descriptors of Python, torch and files; sockets to each other rank
NVIDIA, DISPLAYS = "0x10de", ("0x0300", "0x0302")  # PCI vendor, and classes of graphics processors


@dataclass(frozen=True)
class Folder:
    """A place that is written to."""

    path: str
    free: int  # bytes
    why: str = ""  # what stops a file from being written there


@dataclass(frozen=True)
class Machine:
    """What this host has."""

    host: str
    cores: int  # that a process may use
    free_memory: int  # bytes that a process may still take
    open_files: int  # that a process may have
    shared: int | None  # bytes of /dev/shm; None: there is none
    working: Folder  # where results go
    cache: Folder  # of compiled kernels
    compiler: str | None  # path of the C++ compiler
    port: int  # where ranks meet
    port_fault: str  # why nothing can listen there; "": it can
    nvidia: int  # NVIDIA GPUs that the system knows of, with or without a driver
    quota: float | None = None  # cores whose time control groups allow; None: all
    threads: int | None = None  # OMP_NUM_THREADS, where it is set
    load: float = 0.0  # programs that wanted a core at a time during the last minute

    @property
    def builds_kernels(self) -> bool:
        """Whether nothing here stands in the way of compiling the kernels of the CPU."""
        return self.compiler is not None and not self.cache.why


def look(environment: Mapping[str, str], port: int) -> Machine:
    return Machine(socket.gethostname(), cores(), free_host_memory(), resource.getrlimit(resource.RLIMIT_NOFILE)[0],
                   look_for_shared(Path("/dev/shm")), look_at_folder(Path.cwd()),
                   folder_for_kernels(environment), compiler_of(environment), port, try_port(port),
                   count_nvidia(Path("/")), cpu_quota(), thread_count(environment), os.getloadavg()[0])


def cpu_quota() -> float | None:
    """The least of what the control groups above this process allow, in cores."""
    shares = []
    for folder, is_second in group_folders("cpu"):
        names = ("cpu.max",) if is_second else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            quota, period = map(int, " ".join((folder / name).read_text() for name in names).split())
            if quota > 0 and period > 0:
                shares.append(quota / period)
    return min(shares, default=None)


def thread_count(environment: Mapping[str, str]) -> int | None:
    value = environment.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(value) if value.isdecimal() and int(value) else None


def folder_for_kernels(environment: Mapping[str, str]) -> Folder:
    """Where compiled kernels are kept."""
    try:
        return look_at_folder(cache_folder(environment))
    except BuildError as fault:
        return Folder("~/.cache/glm-kernels", 0, str(fault).partition(";")[0])


def compiler_of(environment: Mapping[str, str]) -> str | None:
    with contextlib.suppress(BuildError):
        return find_compiler(environment)
    return None


def look_at_folder(path: Path) -> Folder:
    """Really writes a file there, or in the nearest folder above that exists, where it would be made."""
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        free = shutil.disk_usage(there).free
        with tempfile.NamedTemporaryFile(dir=there, prefix=".doctor-") as file:
            file.write(bytes(65536))
            file.flush()
            os.fsync(file.fileno())
        return Folder(str(path), free)
    except OSError as failure:
        free = shutil.disk_usage(there).free if there.exists() else 0
        return Folder(str(path), free, failure.strerror or str(failure))


def look_for_shared(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(path).total
    return None


def try_port(port: int) -> str:
    try:
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("", port))
            listening.listen(1)
    except OSError as failure:
        return failure.strerror or str(failure)
    return ""


def count_nvidia(root: Path) -> int:
    """From the driver's list, else from the PCI bus, where they stand without a driver, too."""
    driven = list((root / "proc/driver/nvidia/gpus").glob("*"))
    if driven:
        return len(driven)
    found = 0
    for vendor in (root / "sys/bus/pci/devices").glob("*/vendor"):
        with contextlib.suppress(OSError):
            kind = (vendor.parent / "class").read_text()[:6]
            found += vendor.read_text().strip() == NVIDIA and kind in DISPLAYS
    return found


def check(machine: Machine, where: str, processes: int = 1, world: int = 1, uses_gpus: bool = False,
          needs_port: bool = False) -> Iterator[Finding]:
    """processes: of the run on this host; world: on all. needs_port: this is the first of several hosts."""
    yield from check_folders(machine, where)
    if not uses_gpus:
        yield from check_processor(machine, where)
    if machine.compiler is None and not uses_gpus:
        yield warning("compiler", where, "there is no C++ compiler ($CXX, c++, g++, clang++): the CPU runs torch's own "
                      "operators, several times slower", "sudo apt install g++")
    need = FILES_OF_A_PROCESS + FILES_PER_RANK * world
    if world > 1 and 0 <= machine.open_files < need:
        yield warning("open-files", where, f"a process may open {machine.open_files} files, and {world} ranks need "
                      f"about {need}", f"ulimit -n {need}")
    if uses_gpus and processes > 1 and machine.shared is not None and machine.shared < LEAST_SHARED * GB:
        yield warning("shared-memory", where, f"/dev/shm has {machine.shared / GB:.2f} GB; NCCL's ranks share buffers "
                      f"there and fail when it is full", "sudo mount -o remount,size=4g /dev/shm (a container: docker "
                      "run --shm-size=4g)")
    if needs_port and machine.port_fault:
        yield error("port", where, f"port {machine.port}, where the ranks would meet, cannot be used: "
                    f"{machine.port_fault}", f"export MASTER_PORT={machine.port + 1}")


def check_processor(machine: Machine, where: str) -> Iterator[Finding]:
    """Threads that wait for one another at every step, while one of them has no core, are slower than a single one."""
    threads = machine.threads or machine.cores
    allowed = max(1, int(machine.quota)) if machine.quota else threads
    if threads > allowed:
        yield warning("cpu-quota", where, f"{threads} threads would share the time of {machine.quota:g} cores, all "
                      "that the control group allows: they wait for one another", f"export OMP_NUM_THREADS={allowed}")
    elif threads > 1 and (crowded := crowd(machine.load, machine.cores)):
        yield warning("busy", where, f"{crowded}: threads that wait for one another become many times slower",
                      "export OMP_NUM_THREADS=1, or wait until the others have ended: top")


def check_folders(machine: Machine, where: str) -> Iterator[Finding]:
    working, cache = machine.working, machine.cache
    if working.why:
        yield warning("working-folder", where, f"nothing can be written in {working.path}, where results go unless "
                      f"told otherwise: {working.why}",
                      "give --output DIR (evaluation) or --output-path DIR (generation)")
    elif working.free < LEAST_DISK * GB:
        yield warning("disk", where, f"{working.path}, where results go unless told otherwise, has "
                      f"{working.free / GB:.2f} GB left", f"df -h {shlex.quote(working.path)}, and make room or give "
                      "--output DIR")
    if cache.why:
        yield warning("kernel-cache", where, f"compiled kernels cannot be kept in {cache.path}: {cache.why}; they are "
                      "built anew at every start, or not at all", "export GLM_KERNEL_CACHE=/a/folder/of/yours")

