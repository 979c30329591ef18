"""The process: its port, its model, its signals, its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.errors import UserError
from serving.app import CUT, Server
from serving.guard import Guard

KEEP_ALIVE_SECONDS, BACKLOG, CLOSING_SECONDS, POLL_SECONDS = 30, 1024, 2, 0.05
CUT_OFF = 1  # exit code: answers were cut off, or the engine failed
_LATE = (b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
         b'{"error": {"message": "the request did not arrive in time (--read-timeout)", "type": "timeout_error", '
         b'"param": null, "code": "request_incomplete"}}')


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; the port is taken before anything slow begins. Raises UserError where it cannot be."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen at {host}, port {port}: {getattr(error, 'strerror', None) or error}; name "
                        "another one with --port (0: a free one)") from None


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Protocol(H11Protocol):
    """A client that does not finish the head of its request is answered 408 and cut off."""

    read_seconds = 30.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.read_seconds, self._late)

    def data_received(self, data: bytes) -> None:
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._timer = self.loop.call_later(self.read_seconds, self._late)
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()

    def connection_lost(self, error) -> None:
        self._stop()
        super().connection_lost(error)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.write(_LATE)
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        """Signals are ours: uvicorn would raise them again at its end."""
        yield


@dataclass
class Process:
    """A server from its first to its last second.

    load: makes the model and starts the engine, in a thread, and is given
    what the engine delivers to; it may raise UserError. say: prints the one line."""

    server: Server
    guard: Guard
    listener: socket.socket
    load: Callable[[Callable], None]
    say: Callable[[str], None]
    drain_seconds: float
    code: int = 0
    _failure: BaseException | None = None
    _signal: int | None = None

    def run(self) -> int:
        """The exit code. Raises what loading raised."""
        asyncio.run(self._run())
        if self._failure is not None:
            raise self._failure
        return self.code

    async def _run(self) -> None:
        self.loop = loop = asyncio.get_running_loop()
        self._ending = asyncio.Event()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self.end, number)
        protocol = type("Protocol", (_Protocol,), {"read_seconds": self.server.limits.read_seconds})
        self._uvicorn = _Uvicorn(uvicorn.Config(
            self.guard, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=CLOSING_SECONDS))
        threading.Thread(target=self._load, args=(loop,), name="loading", daemon=True).start()
        ending = asyncio.ensure_future(self._end())
        await self._uvicorn.serve(sockets=[self.listener])
        ending.cancel()
        if self.server.engine is not None:
            self.server.engine.end()
            await asyncio.to_thread(self.server.engine.join, CLOSING_SECONDS)

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        def deliver(news: list) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._deliver, news)

        try:
            self.load(deliver)
            loop.call_soon_threadsafe(self._loaded)
        except BaseException as error:
            self._failure = error
            loop.call_soon_threadsafe(self._ending.set)

    def _loaded(self) -> None:
        if self.server.status == "loading":
            self.server.status = "ok"
            self.say(address(self.listener))

    def _deliver(self, news: list) -> None:
        self.server.deliver(news)
        if self.server.status == "failed":
            failure = self.server.engine.failure
            self.code, self._failure = CUT_OFF, failure if isinstance(failure, UserError) else None
            self._ending.set()

    def end(self, number: int = signal.SIGTERM) -> None:
        """In the event loop: begin to end, as at this signal; at once, where it has begun already."""
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        if self.server.status != "failed":
            self.server.status = "draining"
            self.code = 0 if number == signal.SIGTERM else 128 + number
        self._ending.set()

    async def _end(self) -> None:
        """Waits for a reason to end, then for what is in flight."""
        await self._ending.wait()
        loop = asyncio.get_running_loop()
        end = loop.time() + (self.drain_seconds if self.server.status == "draining" else 0)
        while self.server.in_flight and loop.time() < end:
            await asyncio.sleep(POLL_SECONDS)
        if self.server.in_flight:
            self.code = CUT_OFF
            for job in self.server.in_flight:
                job.mailbox.put_nowait(CUT)
            await asyncio.sleep(POLL_SECONDS)
        self._uvicorn.should_exit = True
