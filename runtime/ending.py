"""How a program ends that does not end well: one line on standard error, and an exit code that says which it was."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping

from runtime.errors import UserError, printable

FAILED, INTERRUPTED, TERMINATED = 2, 130, 143
FORESEEN = (UserError, OSError, RuntimeError, KeyboardInterrupt)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an exception: files are closed as after Ctrl-C."""


def listen(numbers: Iterable[int], handler: Callable) -> dict[int, object]:
    """Installs a handler for these signals and returns what was there before, by signal; `unlisten` puts it back.

    A signal that is ignored stays so: nohup asks for it (SIGHUP), and a shell for what it runs in the background
    (SIGINT). Nothing is installed outside the main thread: whoever runs us there has handlers of his own.
    """
    before = {}
    with contextlib.suppress(ValueError):
        for number in numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    return before


def unlisten(before: Mapping[int, object]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """SIGTERM raises Terminated while the block runs, once: a second one does not disturb what is being closed."""
    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = listen([signal.SIGTERM], stop)
    try:
        yield
    finally:
        unlisten(before)


class Asked:
    """For work in steps that must not be cut in two: Ctrl-C and SIGTERM are noted while the block runs, and `check`,
    called between two steps, raises what came. A second Ctrl-C does not wait for the step's end."""

    def __init__(self):
        self._came: KeyboardInterrupt | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Asked:
        self._before = listen([signal.SIGINT, signal.SIGTERM], self._note)
        return self

    def __exit__(self, *_) -> None:
        unlisten(self._before)

    def __bool__(self) -> bool:
        return self._came is not None

    def _note(self, number: int, _) -> None:
        if self._came is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._came = self._came or (Terminated() if number == signal.SIGTERM else KeyboardInterrupt())

    def check(self) -> None:
        if self._came is not None:
            raise self._came


def ended(error: BaseException, go_on: str = "") -> int:
    """Says what ended the program, on the first of its processes, and gives its exit code.

    error: one of FORESEEN. go_on: how to go on after an interruption or a failure of the system, if there is a way.
    What is no mistake of the user's and no fault of the system is raised again.
    """
    speaks = os.environ.get("RANK", "0") == "0"
    then = f"; {go_on}" if go_on else ""
    if isinstance(error, KeyboardInterrupt):
        if speaks:
            print(printable(f"interrupted{then}"), file=sys.stderr)
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    if isinstance(error, OSError):
        message = printable(f"{error.filename}: {error.strerror}{then}" if error.filename else f"{error}{then}")
    elif isinstance(error, UserError):
        message = str(error)
    else:
        try:
            with terminating():
                lost = sys.modules["runtime.parallel"].lost(error) if "runtime.parallel" in sys.modules else None
        except KeyboardInterrupt as interrupt:
            return ended(interrupt, go_on)
        if lost is None:
            raise error
        message, speaks = str(lost), lost.is_mine_to_say
    if speaks:
        print(f"error: {message}", file=sys.stderr)
    return FAILED
