"""Server-sent events, to a client that may read slowly or be gone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

SLOW_SECONDS = 60.0  # a client that takes nothing for so long is cut off
STREAM_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                  (b"x-accel-buffering", b"no")]


class Stream:
    """Server-sent events."""

    def __init__(self, send: Callable, headers: dict[str, str]):
        self._send = send
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def begin(self) -> None:
        await self._send({"type": "http.response.start", "status": 200, "headers": STREAM_HEADERS + self._headers})

    async def send(self, data: bytes, more: bool = True) -> None:
        try:
            await asyncio.wait_for(self._send({"type": "http.response.body", "body": data, "more_body": more}),
                                   SLOW_SECONDS)
        except asyncio.TimeoutError:
            raise ConnectionAbortedError("the client reads nothing") from None

    async def events(self, events: list[dict]) -> None:
        if events:
            await self.send(b"".join(b"data: " + json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
                                     + b"\n\n" for event in events))

    async def end(self, events: list[dict]) -> None:
        await self.events(events)
        await self.send(b"data: [DONE]\n\n", more=False)

    async def close(self) -> None:
        await self.send(b"", more=False)
