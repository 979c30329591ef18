"""Whether the other processes of a run are still there: each tells all others so every second, by UDP.

A thread of its own sends and listens, so a process is heard however long it computes. It falls silent when it is killed
or stopped (SIGSTOP), or when its machine or network is gone. After a silence of the limit all others end with exit code
2, and the first of them says which process it was. A process that was never heard, because the network lets no datagram
through, is not watched: the time-outs of torch's collectives are then all there is.
"""

from __future__ import annotations

import math
import os
import platform
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from runtime.errors import UserError

LIMIT, LIMIT_SECONDS = "GLM_RANK_TIMEOUT", 60.0  # how long another process may be silent: the variable, its default
BEAT_SECONDS = 1.0  # between two datagrams, at most; a tenth of a short limit
QUIET_BEATS = 3  # lost in a row make a process gone whose connection broke
_BEAT = struct.Struct("!16sIQ?")  # the run's token, rank, steps, whether it leaves
GO_ON = "what is finished is kept: start again (python -m generation: with --resume)"


def limit_seconds() -> float:
    text = os.environ.get(LIMIT) or str(LIMIT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise UserError(f"{LIMIT}={text}: must be a number of seconds, 0 to wait for ever")
    return seconds


class Lost(UserError):
    """Another process is gone. is_mine_to_say: this one is the first of those that are left."""

    def __init__(self, message: str, is_mine_to_say: bool):
        super().__init__(message)
        self.is_mine_to_say = is_mine_to_say


class Place(NamedTuple):
    """Where a process listens, and by what a user knows it."""

    address: str
    port: int
    host: str
    process: int  # its id


class _Other:
    """What is known of another process."""

    def __init__(self, place: Place):
        self.place = place
        self.silent: float | None = None  # seconds since it was heard; None: it never was
        self.steps = 0  # its collectives
        self.has_left = False


class Watch:
    """One process's side. steps: collectives so far, counted by their callers. give_up(lost) ends the process."""

    def __init__(self, limit_seconds: float, give_up: Callable[[Lost], None]):
        self.limit, self.give_up, self.steps = limit_seconds, give_up, 0
        self.beat = min(BEAT_SECONDS, limit_seconds / 10)
        self._socket: socket.socket | None = None
        self._others: dict[int, _Other] = {}
        self._stopping = threading.Event()

    def place(self, towards: str) -> Place:
        """Begin to listen on the interface that leads to `towards`, a host that all processes know."""
        family, *_, address = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # sends nothing
            own = probe.getsockname()[0]
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.bind((own, 0))
        self._socket.setblocking(False)
        return Place(own, self._socket.getsockname()[1], platform.node(), os.getpid())

    def start(self, token: bytes, rank: int, places: Sequence[Place]) -> None:
        """token: 16 bytes that are this run's alone. places: of all processes, by rank."""
        self.rank, self._token = rank, token
        self._others = {other: _Other(place) for other, place in enumerate(places) if other != rank}
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """This process leaves; the others shall not miss it."""
        self._stopping.set()
        if self._others:
            self._socket.sendto(b"", self._socket.getsockname())  # wakes the thread
            self._thread.join()
            self._send(leaves=True)
        if self._socket is not None:
            self._socket.close()

    def lost(self, error: BaseException) -> Lost | None:
        """The process behind an error of a collective; takes seconds. None: no other than this one."""
        if not self._others:
            return None
        time.sleep((QUIET_BEATS + 1) * self.beat)
        if found := self._missing(QUIET_BEATS * self.beat):
            return found
        if left := {rank for rank, other in self._others.items() if other.has_left}:
            names = self._names(left)
            return Lost(f"{names} ended before the others; {GO_ON}", self.rank == 0)
        behind = {rank for rank, other in self._others.items() if other.steps < self.steps}
        if behind and re.search("tim(ed|e)[ -]?out", str(error), re.IGNORECASE):
            least = min(self._others[rank].steps for rank in behind)
            names = self._names({rank for rank in behind if self._others[rank].steps == least})
            return Lost(f"{names} did not come to where the others waited for it (time-out); {GO_ON}", self.rank == 0)
        return None

    def _missing(self, seconds: float) -> Lost | None:
        gone = {rank for rank, other in self._others.items()
                if other.silent is not None and not other.has_left and other.silent >= seconds}
        if not gone:
            return None
        # after a shorter silence already another process will not be the one to speak
        silent = {rank for rank, other in self._others.items()
                  if other.silent is not None and other.silent >= QUIET_BEATS * self.beat}
        first = min({self.rank, *self._others} - silent)
        longest = max(self._others[rank].silent for rank in gone)
        return Lost(f"{self._names(gone)} has not been heard of for {longest:.1f} s: ended, stopped or hanging, or "
                    f"its machine or network is gone; {GO_ON}", self.rank == first)

    def _names(self, ranks: set[int]) -> str:
        places = {rank: self._others[rank].place for rank in sorted(ranks)}
        return ", ".join(f"rank {rank} (process {place.process} on host {place.host})"
                         for rank, place in places.items())

    def _run(self) -> None:
        before = due = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            if now >= due:
                # while this process itself was stopped it heard no other: that time does not count
                passed, before, due = min(now - before, 2 * self.beat), now, now + self.beat
                for other in self._others.values():
                    other.silent = None if other.silent is None else other.silent + passed
                self._listen()
                self._send(leaves=False)
                if missing := self._missing(self.limit):
                    self.give_up(missing)
            select.select([self._socket], [], [], max(0.0, due - time.monotonic()))
            self._listen()

    def _send(self, leaves: bool) -> None:
        beat = _BEAT.pack(self._token, self.rank, self.steps, leaves)
        for other in self._others.values():
            try:
                self._socket.sendto(beat, (other.place.address, other.place.port))
            except OSError:  # the other has ended, or the network is down: its silence will tell
                continue

    def _listen(self) -> None:
        while True:
            try:
                data = self._socket.recv(64)
            except BlockingIOError:
                return
            except OSError:  # an earlier datagram was not received
                continue
            if len(data) != _BEAT.size:
                continue
            token, rank, steps, leaves = _BEAT.unpack(data)
            if token == self._token and rank in self._others:
                other = self._others[rank]
                other.silent, other.steps, other.has_left = 0.0, steps, other.has_left or leaves
