"""What surrounds the work of every program: UTF-8 whatever the locale says, standard streams that cannot disturb the
work, signals that close its files, and an end in one line on standard error and an exit code that says how it ended."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import locale
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NoReturn

from runtime.errors import UserError, printable
from runtime.files import REPOSITORY

FAILED, INTERRUPTED, TERMINATED = 2, 130, 143  # exit codes
FORESEEN = (UserError, OSError, RuntimeError, KeyboardInterrupt)  # the errors that `ended` explains
_UTF8, _UNKNOWN = "utf-8", "ascii"  # ASCII is what the locale C says, which says nothing of the terminal


def is_first_rank() -> bool:
    """Whether this process is the one that talks; known before there is a process group."""
    return os.environ.get("RANK", "0") == "0"


def run(main: Callable[[], int | None]) -> NoReturn:
    """Runs a program's main function and ends the process with its exit code; 2 where standard output failed for any
    reason but that its reader has gone."""
    restart_in_utf8()
    open_streams()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings are pages that would bury our one line
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


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception: files are closed as after Ctrl-C."""


def listen(numbers: Iterable[int], handler: Callable) -> dict[int, object]:
    """Installs a handler for these signals; returns the handlers before, by signal, which `unlisten` puts back.

    An ignored signal stays ignored: nohup asks for that (SIGHUP), and a shell for its background jobs (SIGINT). Outside
    the main thread nothing is installed: there the handlers are the caller's.
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
    """SIGTERM raises Terminated while the block runs, once: a second one does not disturb the closing of files."""
    def stop(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    before = listen([signal.SIGTERM], stop)
    try:
        yield
    finally:
        unlisten(before)


class Interrupts:
    """For work in steps that must not be cut in two: the block notes Ctrl-C and SIGTERM, and `check`, called between
    two steps, raises the first that came. A second Ctrl-C does not wait for the end of the step."""

    def __init__(self):
        self._came: KeyboardInterrupt | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
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
    """Says on the first rank what ended the program; returns its exit code.

    error: one of FORESEEN. go_on: how to continue after an interruption or a failure of the system, if there is a way.
    Raises an error again that is neither the user's mistake nor a fault of the system.
    """
    speaks = is_first_rank()
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


def killed_by(number: int) -> str:
    """What to say of a child process that this signal ended. Raises ValueError where no signal has the number."""
    name = signal.Signals(number).name
    hint = " (the system ends processes so when memory runs out)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """This environment for a Python that imports the modules of this repository, from any working directory."""
    path = f"{REPOSITORY}{os.pathsep}{environment.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    return {**environment, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def not_installed(error: ModuleNotFoundError) -> Exception:
    """The error to report for a missing module: how to install a third-party one; a missing one of ours is a bug."""
    package = (error.name or "").partition(".")[0]
    if not package or (REPOSITORY / package).exists():
        return error
    made = REPOSITORY / ".venv" / "bin" / "python"
    is_other = made.is_file() and os.path.realpath(sys.prefix) != os.path.realpath(made.parent.parent)
    mend = f"start it with {made}" if is_other else f"{sys.executable} -m pip install -r {REPOSITORY}/requirements.txt"
    return UserError(f"{package} is not installed for this Python, {sys.executable}; {mend}")


def restart_in_utf8() -> None:
    """Starts the program again in Python's UTF-8 mode where the locale has another encoding, so that file names,
    arguments and output are the same whatever the locale, in this process and in those that it starts."""
    if sys.getfilesystemencoding() != _UTF8 and sys.executable:
        os.execve(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]],
                  {**os.environ, "PYTHONUTF8": "1"})


class Outlet(io.FileIO):
    """A descriptor to print to that raises no error: a reader that has gone or a full disk is none of the work."""

    failure: OSError | None = None  # why it takes no more

    def write(self, data) -> int:
        if self.failure is None:
            try:
                return super().write(data)
            except BlockingIOError:
                raise
            except OSError as error:
                self.failure = error
        return len(data)


def open_streams() -> None:
    """Gives the program standard streams that raise no error; says so where a terminal is not UTF-8."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file opened would get this number, and all that is printed
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
    """Whether standard output takes no more."""
    return failure_of(sys.stdout) is not None


def failure_of(stream) -> OSError | None:
    return getattr(getattr(getattr(stream, "buffer", None), "raw", None), "failure", None)


def settled(code: int | str | None) -> int | str | None:
    """The exit code once both streams are flushed; says so where standard output could not take everything."""
    sys.stdout.flush()
    failure = failure_of(sys.stdout)
    if failure is not None and failure.errno != errno.EPIPE:
        print(f"error: standard output: {failure.strerror}", file=sys.stderr)
        code = code or FAILED
    sys.stderr.flush()
    return code
