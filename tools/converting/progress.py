"""How many bytes of a long work are done, on standard error: a bar on a terminal, a line now and then elsewhere."""

import sys
import threading
import time
from collections.abc import Callable

SECONDS_BETWEEN_LINES = 10.0


class ByteProgress:
    """A context manager; advance(bytes) may be called by several threads."""

    def __init__(self, total: int, title: str, clock: Callable[[], float] = time.monotonic):
        self._total, self._title, self._clock = total, title, clock
        self._done, self._begin, self._lock, self._bar = 0, clock(), threading.Lock(), None
        self._last_line = self._begin

    def __enter__(self) -> "ByteProgress":
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit="B", unit_scale=True, desc=self._title, leave=False)
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
            elif (now := self._clock()) - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = now
                print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """Converting: 12.3 of 259.1 GB, 1.20 GB/s, 206 s left"""
        seconds = max(self._clock() - self._begin, 1e-9)
        rate = max(self._done / seconds, 1e-9)
        return (f"{self._title}: {self._done / 1e9:.1f} of {self._total / 1e9:.1f} GB, {rate / 1e9:.2f} GB/s, "
                f"{max(self._total - self._done, 0) / rate:.0f} s left")
