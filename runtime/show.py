"""What programs show people: how far a long run is, durations, counted nouns, near names, tables."""

from __future__ import annotations

import difflib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from runtime.errors import printable

SECONDS_BETWEEN_LINES = 10.0
SECONDS_TO_JUDGE_BY = 60.0  # where units differ in length: before, a few of one kind would stand for all
LEAST_LIKENESS = 0.6  # of two spellings, from 0 to 1 (difflib)


class Progress:
    """How much of a long run is done, on standard error: a bar on a terminal, elsewhere a line now and then.

    A context manager; threads may share it. advance() as units are done, write() and say() for lines in between.
    total: units that are to be done. unit: their name, in the plural; "B": bytes, shown as GB.
    weight: what they cost together, by which the time left goes where units differ; None: all cost the same.
    kept: units that an earlier run has done. shown: False on all processes but one.
    left: the seconds left, where more is known of them than what the units cost; 0 where it is not yet.
    """

    def __init__(self, total: int, weight: int | None = None, kept: int = 0, shown: bool = True,
                 clock: Callable[[], float] = time.monotonic, unit: str = "items", title: str = "",
                 left: Callable[[], float] | None = None):
        self.total, self.weight, self.kept, self.shown = total, total if weight is None else weight, kept, shown
        self.unit, self.title, self._task, self._clock = unit, title, "", clock
        self._forecast = left
        self._judged_after = 0.0 if weight is None else SECONDS_TO_JUDGE_BY
        self._done = self._done_weight = self._ticks = 0
        self._begin = self._last_line = clock()
        self._lock, self._bar = threading.Lock(), None

    def __enter__(self) -> Progress:
        if self.shown and self.kept:
            there = f"{self.kept} of {self.kept + self.total}" if self.total else f"all {self.kept}"
            print(f"{there} answers are there from an earlier run", file=sys.stderr, flush=True)
        if self.shown and self.total and sys.stderr.isatty():
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

    def say(self, text: str) -> None:
        """Prints a line on standard error."""
        self.write(lambda: print(printable(text), file=sys.stderr, flush=True))

    def task(self, name: str) -> None:
        """Names what is being worked on from now on."""
        self._task = name
        self._update()

    def advance(self, units: int = 1, weight: int | None = None) -> None:
        """So many more units are done; weight: what they cost, as many units if None."""
        with self._lock:
            self._done += units
            self._done_weight += units if weight is None else weight
            self._update()
            if self._bar is None and self.shown and (now := self._clock()) - self._last_line >= SECONDS_BETWEEN_LINES:
                self._last_line = now
                print(self.line(), file=sys.stderr, flush=True)

    def skip(self, units: int, weight: int) -> None:
        """So many units need not be done any more."""
        self.total -= units
        self.weight -= weight
        self._update()

    def tick(self, what: str) -> None:
        """Counts one more of something smaller than a unit ("tokens"); the bar shows how many come in a second."""
        self._ticks += 1
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], ticks=f"{self._ticks / self._seconds():.0f} {what}/s")

    def line(self) -> str:
        """12/100 items, 3.4 items/s, 26 s left; Converting: 12.3 of 259.1 GB, 1.20 GB/s, 3 min 26 s left."""
        title = f"{self.title}: " if self.title else ""
        return title + ", ".join(filter(None, (self._amount(), self._left())))

    def _amount(self) -> str:
        rate = self._done / self._seconds()
        if self.unit == "B":
            return f"{self._done / 1e9:.1f} of {self.total / 1e9:.1f} GB, {rate / 1e9:.2f} GB/s"
        return f"{self._done}/{self.total} {self.unit}, {rate:.{1 if rate >= 0.1 else 3}f} {self.unit}/s"

    def _left(self) -> str:
        seconds = self._seconds()
        if seconds < self._judged_after:
            return ""
        known = 0.0 if self._forecast is None else self._forecast()
        return f"{duration(known or seconds * (self.weight - self._done_weight) / max(self._done_weight, 1))} left"

    def _seconds(self) -> float:
        return max(self._clock() - self._begin, 1e-9)

    def _update(self) -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], description=printable(self._task or self.title), total=self.weight,
                             completed=self._done_weight, amount=self._amount(), left=self._left())

    def _make_bar(self):
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=None),
                   *(TextColumn(f"{{task.fields[{field}]}}", markup=False) for field in ("amount", "ticks", "left")))
        bar = Bar(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False)
        bar.add_task(printable(self.title), total=self.weight, amount=self._amount(), ticks="", left="")
        return bar


def duration(seconds: float) -> str:
    """0.004 s, 8.2 s, 43 s, 2 min 05 s, 3 h 07 min."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s" if seconds >= 0.095 else f"{seconds:.1g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def counted(number: int, noun: str, ending: str = "s") -> str:
    """1 file, 3 files; ending: of the plural."""
    return f"{number} {noun}{ending if number != 1 else ''}"


def nearest(word: str, known: Iterable[str], least: float = LEAST_LIKENESS) -> str | None:
    """The known name that is spelt most like the word, small and capital letters alike; None: none is near.

    least: how alike they must be, from 0 to 1.
    """
    by_small_letters = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), by_small_letters, 1, least)
    return by_small_letters[close[0]] if close else None


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, title: str = "") -> str:
    """Lines of text: the title, the headings, a rule and the rows; a column is as wide as its widest cell.

    left: so many columns are aligned to the left, the others to the right.
    """
    lines = [list(columns), *map(list, rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    texts = ("  ".join(cell.ljust(width) if place < left else cell.rjust(width)
                       for place, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
             for line in lines)
    return "\n".join((*([title] if title else ()), *texts, ""))
