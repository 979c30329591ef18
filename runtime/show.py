"""How far a run is, over everything there is to do, on standard error.

On a terminal a bar with items, items per second and the time left; elsewhere a line now and then. The time left goes by
the length of the items, not by their number, and is not guessed at from the first minute.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from runtime.errors import printable

SECONDS_BETWEEN_LINES = 10.0
SECONDS_TO_JUDGE_BY = 60.0  # before, a few items of one kind would stand for all


class Progress:
    """A context manager; advance() as items are answered, write() to say something in between.

    items, weight: all that is to be computed, in items and in tokens. kept: items that an earlier run has answered.
    shown: False on all processes but one.
    """

    def __init__(self, items: int, weight: int, kept: int = 0, shown: bool = True,
                 clock: Callable[[], float] = time.monotonic):
        self.items, self.weight, self.kept, self.shown, self._clock = items, weight, kept, shown, clock
        self.done_items = self.done_weight = 0
        self._begin = self._last_line = clock()
        self._bar = None

    def __enter__(self) -> Progress:
        if self.shown and self.kept:
            there = f"{self.kept} of {self.kept + self.items}" if self.items else f"all {self.kept}"
            print(f"{there} answers are there from an earlier run", file=sys.stderr, flush=True)
        if self.shown and self.items and sys.stderr.isatty():
            self._bar = self._make_bar()
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def write(self, say: Callable[[], None]) -> None:
        """Calls say(), which prints whole lines, with the bar out of its way."""
        if self._bar is None:
            say()
            return
        self._bar.stop()
        say()
        self._bar.start()

    def task(self, name: str) -> None:
        """What is being worked on from now on."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=printable(name))

    def advance(self, items: int, weight: int) -> None:
        self.done_items += items
        self.done_weight += weight
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.done_weight,
                             items=self._items_text(), left=self._left_text())
        elif self.shown:
            now = self._clock()
            if now - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = now
                print(self.line(), file=sys.stderr, flush=True)

    def skip(self, items: int, weight: int) -> None:
        """So much need not be computed any more."""
        self.items -= items
        self.weight -= weight
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=self.weight, items=self._items_text())

    def line(self) -> str:
        """12/100 items, 3.4 items/s, 26 s left"""
        left = self._left_text()
        return f"{self._items_text()}, {left}" if left else self._items_text()

    def _left_text(self) -> str:
        seconds = self._clock() - self._begin
        if seconds < SECONDS_TO_JUDGE_BY:
            return ""
        return f"{duration(seconds * (self.weight - self.done_weight) / max(self.done_weight, 1))} left"

    def _items_text(self) -> str:
        rate = self.done_items / max(self._clock() - self._begin, 1e-9)
        return f"{self.done_items}/{self.items} items, {rate:.1f} items/s"

    def _make_bar(self):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
                   TextColumn("{task.fields[items]}"), TextColumn("{task.fields[left]}"))
        bar = Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False,
                  speed_estimate_period=120)
        bar.add_task("", total=self.weight, items=self._items_text(), left="")
        return bar


def duration(seconds: float) -> str:
    """0.004 s, 8.2 s, 43 s, 2 min 05 s, 3 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s" if seconds >= 0.095 else f"{seconds:.1g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
