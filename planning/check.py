"""Before anything is loaded: whether a run can fit at all, and if not, which flags would make it fit.

Only what is certain is counted: weights, the cache that the command is sure to allocate, what Python and torch take at
least. A run that passes may still be short of memory later; one that is refused cannot fit, or would read its weights
from the disk for every token without being asked to (--offload-memory-limit does that in order).
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass, replace
from pathlib import Path

from glm.checkpoint import find_shards
from planning import machine, memory, remedies
from planning.memory import cache_bytes, on_device
from planning.shapes import Setup, weights
from planning.stored import require_own_model
from planning.wanted import Use, config_of, looked_at, place_of, precision_of, setup_of
from runtime import resources
from runtime.errors import UserError

LEAST_PROCESS = 0.14e9  # of its own that a process with torch has; PROCESS of planning.memory, less what is mapped
LEAST_ADDRESSES = 0.6e9  # address space that Python, torch and their threads take
LEAST_CUDA = 0.25e9  # of a GPU that CUDA takes for itself
TOLERANCE = 0.97  # of what is counted: the constants and the free memory are not known to the byte


@dataclass(frozen=True)
class Room:
    """Bytes that are free: of this host, of this process's limits on addresses and data, and of the GPU that has least
    (device; None: the run is on the processor). ranks: of this host, which share `host`."""

    host: float
    addresses: float
    data: float
    device: float | None = None
    device_name: str = ""
    ranks: int = 1


@dataclass(frozen=True)
class Shortage:
    """Bytes needed where there are fewer. parts: what they are for."""

    where: str
    needed: float
    free: float
    parts: dict[str, float]


def require_fit(arguments: argparse.Namespace, purpose: str, use: Use, cpu_precision: str,
                has_flags: bool = True) -> None:
    """Raises UserError where the run that the arguments ask for cannot fit on this machine. Imports no torch.

    purpose: the command, for the message. cpu_precision: what this processor computes fastest. Under a launcher the
    first process of every host looks for all of them. has_flags: whether the command has generation's flags, which are
    then advised.
    """
    if getattr(arguments, "no_plan", False) or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    find_shards(arguments.load)  # whose faults are said before those of the shape
    lacking, ways = short_of(arguments, use, cpu_precision, resources.local_ranks(), has_flags)
    if lacking is not None:
        raise UserError(message(purpose, lacking, ways))


def short_of(arguments: argparse.Namespace, use: Use, cpu_precision: str, ranks: int,
             has_flags: bool = True) -> tuple[Shortage | None, list[str]]:
    """What this host is short of for so many ranks of a run (None: nothing), and the flags that would make it fit."""
    config = config_of(arguments)
    found = looked_at(arguments, config)
    kind, gpus = place_of(arguments, ranks)
    setup = setup_of(arguments, config, found, kind, precision_of(arguments, kind, gpus, cpu_precision), use)
    room = room_here(kind, gpus, ranks)
    lacking = shortage(setup, room)
    if lacking is not None and found is not None:
        require_own_model(found, config)
    if lacking is None or not has_flags:
        return lacking, []
    return lacking, remedies.find(setup, use, lambda tried: fits(tried, room), arguments.load, room.device is not None)


def require_model(checkpoint: Path, model: str | None, device: str, precision: str, purpose: str) -> None:
    """require_fit for a program that has no flags of its own that could mend it."""
    asked = argparse.Namespace(load=checkpoint, model=model, device=device, precision=precision)
    require_fit(asked, purpose, Use(), precision, has_flags=False)


def room_here(kind: str, gpus: list[machine.Gpu], ranks: int) -> Room:
    least = min(gpus, key=lambda gpu: gpu.free, default=None)
    if kind == "cuda" and least is None:  # a GPU that nobody tells anything of
        place = float("inf"), "the GPU"
    else:
        place = (least.free, least.name) if least else (None, "")
    return Room(machine.host_room(), resources.address_room(), resources.data_room(), *place, ranks)


def shortage(setup: Setup, room: Room) -> Shortage | None:
    """What is short, the worst first; None: nothing."""
    held, _, buffers = on_device(setup)
    cache = cache_bytes(setup)
    parts = {"weights": held + buffers, "keys and values": cache}
    if room.device is not None:
        return _lack(room.device_name, parts | {"CUDA": LEAST_CUDA}, room.device)
    mapped = sum(setup.run.bytes(weight) for weight in weights(setup) if setup.stays_in_file(weight))
    if buffers:
        mapped = 0.0
    own = {"weights": max(0.0, held + buffers - mapped), "keys and values": cache, "Python and torch": LEAST_PROCESS}
    ranks = {f"{name}, {room.ranks} processes" if room.ranks > 1 else name: room.ranks * size
             for name, size in own.items()}
    file = setup.source_bytes if setup.mapped else 0.0  # all of it is mapped, whatever is used of it
    space = own | {"the mapped file": file, "Python and torch": LEAST_ADDRESSES}
    # every pass reads all weights: mapped pages may go when memory is short, but then come from the disk each time
    pages = {"weights that stay in the file": min(room.ranks, setup.degree) * mapped}
    limit = "the limit on this process's {}"
    return (_lack("this machine", ranks | pages, room.host)
            or _lack(limit.format("address space"), space, room.addresses)
            or _lack(limit.format("data"), own, room.data))


def fits(setup: Setup, room: Room) -> bool:
    """Whether a run is expected to fit, with all that it will allocate: what is advised must hold."""
    context = max(1, setup.places // 2)
    expected = memory.plan(replace(setup, context=context, new_tokens=setup.new_tokens and setup.places - context))
    if room.device is not None:
        return expected.device <= room.device
    mapped = setup.source_bytes if setup.mapped else 0
    own = expected.host - expected.mapped
    return (room.ranks * own + min(room.ranks, setup.degree) * expected.mapped <= room.host
            and own + mapped + LEAST_ADDRESSES <= room.addresses
            and expected.host + LEAST_PROCESS <= room.data)


def _lack(where: str, parts: dict[str, float], free: float) -> Shortage | None:
    needed = sum(parts.values())
    return Shortage(where, needed, free, parts) if TOLERANCE * needed > free else None


def message(purpose: str, lacking: Shortage, ways: list[str]) -> str:
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in lacking.parts.items() if size >= 5e6)
    mend = (f"any of these makes it fit: {'; '.join(ways)}" if ways else
            "no flag makes it fit here; take a smaller model or a machine with more memory")
    return (f"{purpose} needs {lacking.needed / 1e9:.2f} GB at least ({parts}), but {lacking.where} has "
            f"{lacking.free / 1e9:.2f} GB free; {mend}. python -m glm plan tells more; --no-plan starts it all the "
            "same")
