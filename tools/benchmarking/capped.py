"""Running a function in a process whose memory is limited by the system."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import UserError
from runtime.resources import GROUPS


def run_capped(function: Callable, arguments: tuple, cap: int | None):
    """function(*arguments) in a new process that may take `cap` bytes, page cache included (None: no limit) -> its
    result and the bytes that the group took at most (None without a limit).

    Raises UserError where no control group can be made, or where the system ends the process.
    """
    with _group(cap) as group:
        context = multiprocessing.get_context("spawn")
        receiving, sending = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(sending, group, function, arguments))
        process.start()
        sending.close()
        try:
            result = receiving.recv()
        except EOFError:
            process.join()
            raise UserError(f"the process ended with exit code {process.exitcode}"
                            + (f"; {cap / 1e9:g} GB are too little memory for it" if cap else "")) from None
        process.join()
        if isinstance(result, UserError):
            raise result
        return result, _peak(group)


def _child(connection, group: Path | None, function: Callable, arguments: tuple) -> None:
    if group is not None:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        connection.send(function(*arguments))
    except UserError as error:
        connection.send(error)


@contextmanager
def _group(cap: int | None) -> Iterator[Path | None]:
    """A control group of its own, version 1 or 2, gone afterwards."""
    if cap is None:
        yield None
        return
    old = (GROUPS / "memory" / "memory.limit_in_bytes").is_file()
    group = (GROUPS / "memory" if old else GROUPS) / f"glm_benchmark_{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(cap))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        raise UserError(f"no control group {group} with limited memory can be made ({error.strerror}): run as root on "
                        "a machine that gives its memory controller, or leave --room away") from None
    try:
        yield group
    finally:
        group.rmdir()


def _peak(group: Path | None) -> int | None:
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        if group is not None and (group / name).is_file():
            return int((group / name).read_text())
    return None
