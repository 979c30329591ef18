"""What surrounds the work of every program: UTF-8 whatever the locale says, standard streams that may be closed, full
or read by nobody without disturbing the work, and an exit code that says how it ended."""

from __future__ import annotations

import codecs
import errno
import io
import locale
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from runtime.ending import FAILED, FORESEEN, ended
from runtime.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
_UTF8, _UNKNOWN = "utf-8", "ascii"  # ASCII is what the locale C says, which says nothing of the terminal


class Outlet(io.FileIO):
    """A descriptor to print to, for as long as it takes what is printed: that it does not is no error of the work.

    failure: why it took no more, None as long as it does.
    """

    failure: OSError | None = None

    def write(self, data) -> int:
        if self.failure is None:
            try:
                return super().write(data)
            except BlockingIOError:
                raise
            except OSError as error:
                self.failure = error
        return len(data)


def is_first_rank() -> bool:
    """Whether this process is the one that talks; known before there is a process group."""
    return os.environ.get("RANK", "0") == "0"


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a program's main function, and ends the process with its exit code; 2 where standard output took no more for
    another reason than that nobody reads it."""
    restart_in_utf8()
    open_streams()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are pages, below which our line would be lost
    try:
        code = main()
    except SystemExit as end:
        code = end.code
    except ModuleNotFoundError as error:
        code = ended(not_installed(error))
    except FORESEEN as error:
        code = ended(error)
    finally:
        if "runtime.parallel" in sys.modules:
            sys.modules["runtime.parallel"].stop()
    sys.exit(settled(code))


def not_installed(error: ModuleNotFoundError) -> Exception:
    """What to tell of a module that is not there: of others' packages how to get them; one of ours is our own fault."""
    package = (error.name or "").partition(".")[0]
    if not package or (REPOSITORY / package).exists():
        return error
    made = REPOSITORY / ".venv" / "bin" / "python"
    is_other = made.is_file() and os.path.realpath(sys.prefix) != os.path.realpath(made.parent.parent)
    mend = f"start it with {made}" if is_other else f"{sys.executable} -m pip install -r {REPOSITORY}/requirements.txt"
    return UserError(f"{package} is not installed for this Python, {sys.executable}; {mend}")


def restart_in_utf8() -> None:
    """Starts the program again in Python's UTF-8 mode where the locale has another encoding: names of files, arguments
    and what is printed are then the same whatever the locale; so they are in the processes that it starts."""
    if sys.getfilesystemencoding() != _UTF8 and sys.executable:
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]],
                  {**os.environ, "PYTHONUTF8": "1"})


def open_streams() -> None:
    """Gives the program standard streams that raise no error; says so where a terminal is not of UTF-8."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file opened would have this number, and receive what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding=_UTF8)  # noqa: SIM115 (open as long as the program runs)
    sys.stdin.reconfigure(encoding=encoding_of(sys.stdin), errors="surrogateescape")  # bytes of no text get a message
    sys.stdout = outlet(1, sys.stdout, "replace")
    sys.stderr = outlet(2, sys.stderr, "backslashreplace")
    foreign = {encoding_of(stream) for stream in (sys.stdin, sys.stdout) if stream.isatty()} - {_UTF8}
    if foreign and "RANK" not in os.environ:
        print(f"note: by its locale this terminal is not UTF-8 but {foreign.pop()}: characters that it lacks are shown "
              "as ?, what is typed is read so; if it does know UTF-8: export LC_ALL=C.UTF-8", file=sys.stderr)


def outlet(number: int, before: io.TextIOWrapper | None, errors: str) -> io.TextIOWrapper:
    """A stream that prints to a descriptor as the stream before did, through an Outlet."""
    if before is None:
        return io.TextIOWrapper(io.BufferedWriter(Outlet(os.open(os.devnull, os.O_WRONLY), "w")), _UTF8, errors)
    return io.TextIOWrapper(io.BufferedWriter(Outlet(number, "w", closefd=False)), encoding_of(before), errors,
                            line_buffering=before.line_buffering or before.write_through)


def encoding_of(stream: io.TextIOWrapper) -> str:
    """The locale's where the stream is a terminal and the locale says one that Python knows; else the stream's own."""
    if stream.isatty():
        try:
            name = codecs.lookup(locale.nl_langinfo(locale.CODESET)).name
            if name != _UNKNOWN:
                return name
        except LookupError:
            pass
    return codecs.lookup(stream.encoding).name


def is_unheard() -> bool:
    """Whether nothing that is printed to standard output arrives any more."""
    return failure_of(sys.stdout) is not None


def failure_of(stream) -> OSError | None:
    return getattr(getattr(getattr(stream, "buffer", None), "raw", None), "failure", None)


def settled(code: int | str | None) -> int | str | None:
    """The exit code, when all that was printed has been brought out; says where it could not be."""
    sys.stdout.flush()
    failure = failure_of(sys.stdout)
    if failure is not None and failure.errno != errno.EPIPE:
        print(f"error: standard output: {failure.strerror}", file=sys.stderr)
        code = code or FAILED
    sys.stderr.flush()
    return code
