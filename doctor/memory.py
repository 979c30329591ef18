"""Free memory against what the configured model takes: planning's arithmetic, with which every load begins, too."""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from doctor.finding import Finding, error
from doctor.machine import GB
from planning.check import Use, short_of
from planning.machine import default_precision
from runtime.errors import UserError


@dataclass(frozen=True)
class Shortage:
    """Bytes that the weights of this host's processes take at least, where fewer are free; where: what has too few.
    ways: the flags that would make it fit."""

    where: str
    needed: float
    free: float
    processes: int
    ways: tuple[str, ...]


def look(arguments: argparse.Namespace, degree: int, processes: int) -> Shortage | None:
    """None where the model fits, or where its shape is not known, which is another finding. Imports no torch."""
    arguments = copy.copy(arguments)
    arguments.model_parallel_size = degree
    try:
        lacking, ways = short_of(arguments, Use(), default_precision("cpu"), processes)
    except UserError:
        return None
    if lacking is None:
        return None
    return Shortage(lacking.where, lacking.needed, lacking.free, processes, tuple(ways))


def check(lacking: Shortage | None, where: str) -> Iterator[Finding]:
    if lacking is None:
        return
    whose = f" by {lacking.processes} processes" if lacking.processes > 1 and lacking.where == "this machine" else ""
    if "limit" in lacking.where:
        ways = ("ulimit -v unlimited -d unlimited", *lacking.ways)
    else:
        ways = lacking.ways or ("a smaller model, or a machine with more memory",)
    plan = f"{shlex.quote(sys.executable)} -m glm plan tells more"
    yield error("memory", where, f"the configured model does not fit: {lacking.needed / GB:.2f} GB are needed{whose}, "
                f"{lacking.where} has {lacking.free / GB:.2f} GB free",
                f"{'; or '.join(ways)} ({plan})")
