"""Where the processes of a run find one another: a store that the first one serves at MASTER_ADDR and MASTER_PORT.

torch's own way waits inside C++, where neither Ctrl-C nor SIGTERM is heard, and listens on all of the machine's
addresses. This one waits in Python, and listens at MASTER_ADDR alone where that is one of this machine's.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from runtime.errors import UserError

if TYPE_CHECKING:  # scripts/launch.py takes only a name from here
    import torch

STORE_SOCKET = "GLM_STORE_SOCKET"  # scripts/launch.py: the socket, held open for the first rank, at which all meet
FIRST_PROCESS = "GLM_FIRST_PROCESS"  # scripts/launch.py: the first rank's process, for the others
_HERE = "here"  # key of the store: how many have come
_PAUSE_SECONDS = 0.05
T = TypeVar("T")


def meet(rank: int, world: int, seconds: float) -> torch.distributed.Store:
    """The store of all processes, once all have come. Raises UserError where they have not after so many seconds."""
    import torch

    address, port = _place(world)
    end = time.monotonic() + seconds
    if rank and STORE_SOCKET not in os.environ:
        _wait(lambda: _answers(address, port), end,
              f"the first process cannot be reached at {address}, port {port} (MASTER_ADDR, MASTER_PORT)")
    listening = None
    if not rank:
        listening = int(os.environ[STORE_SOCKET]) if STORE_SOCKET in os.environ else listening_at(address, port)
    try:
        store = _heard(rank, lambda: torch.distributed.TCPStore(
            address, port, world, rank == 0, datetime.timedelta(seconds=seconds), wait_for_workers=False,
            master_listen_fd=listening))
        store.add(_HERE, 1)
        _wait(lambda: store.add(_HERE, 0) >= world, end, f"not all of {world} processes (WORLD_SIZE) have come")
    except RuntimeError as error:  # the port is taken; the first process has ended
        raise UserError(f"the processes cannot meet at {address}, port {port} (MASTER_ADDR, MASTER_PORT): "
                        f"{str(error).partition(chr(10))[0]}") from None
    return store


def _place(world: int) -> tuple[str, int]:
    try:
        return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError):
        raise UserError(f"WORLD_SIZE says that there are {world} processes, but MASTER_ADDR or MASTER_PORT does not say"
                        " where they meet; start them with scripts/launch.py or torchrun") from None


def listening_at(address: str, port: int) -> int | None:
    """Number of a socket that listens at this address alone. None, for all addresses, where it is a name, which may
    stand for another address here than elsewhere, or is not this machine's (as behind a router)."""
    with contextlib.suppress(OSError, ValueError):
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=1024).detach()
    return None


def _heard(rank: int, connect: Callable[[], T]) -> T:
    """connect(), in a thread of its own: at a socket that is held open the others wait until the first process serves,
    in C++, where no signal is heard, and for as long as they may where it has ended. Then RuntimeError."""
    found: list = []

    def work() -> None:
        try:
            found.append((connect(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    first = os.environ.get(FIRST_PROCESS) if rank else None
    while thread.is_alive():
        thread.join(_PAUSE_SECONDS)
        if not found and first and _has_ended(int(first)):
            raise RuntimeError("the first process has ended")
    store, error = found[0]
    if error is not None:
        raise error
    return store


def _has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return isinstance(error, ProcessLookupError)
    return False


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except OSError:
        return False
    return True


def _wait(is_so: Callable[[], bool], end: float, otherwise: str) -> None:
    """Ends as soon as it is so; signals are heard meanwhile. Raises UserError at the end of the time."""
    while not is_so():
        if time.monotonic() > end:
            raise UserError(f"{otherwise}; start as many processes as WORLD_SIZE says, each with its own RANK")
        time.sleep(_PAUSE_SECONDS)
