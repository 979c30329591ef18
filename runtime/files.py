"""What a run writes: files that are there as a whole or not at all, whenever the process dies; names for them; a folder
that no other run writes to; and the record of the software and settings behind its results.

A later version of the toolkit, with an option more or one less, may resume the run. So a setting at its default is not
recorded, and one that is not recorded is at its default.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import platform
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields
from importlib import metadata
from pathlib import Path

from runtime.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
LOCK = ".lock"
LONGEST_NAME = 200  # bytes; file systems allow 255
PACKAGES = ("torch", "SwissArmyTransformer", "sentencepiece", "numpy")


@contextlib.contextmanager
def replacing(path: Path, by_several: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block has ended well.

    The file under it is made anew, empty, before the block begins; a link that was put there is removed. The
    name is always the same, so that nothing is left of a killed process; by_several: processes may write at once, so
    each has a name of its own. An OSError of the block that names no file (a full disk, say) names this one.
    """
    temporary = temporary_name(path)
    if by_several:
        temporary = temporary.with_name(f"{temporary.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        os.close(_opened(temporary, os.O_WRONLY | os.O_EXCL))
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # of a folder that cannot be written: the error of the block says more
            temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _opened(path: Path, flags: int) -> int:
    """Descriptor of a file that is opened or made. Raises OSError, also for a link: it may lead out of the folder."""
    try:
        return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "is a link, through which nothing is written; remove it", str(path)) from None
        raise


def write_torch(path: Path, content: object) -> None:
    """torch.save to a file that is there as a whole, and on the disk, or not at all. Raises OSError."""
    import torch

    with replacing(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        except RuntimeError as error:  # how torch tells of a full disk
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


class AppendOnlyFile:
    """A file that grows by whole pieces: of a piece that the disk does not take nothing stays."""

    def __init__(self, path: Path):
        """Opens or makes it. Raises OSError."""
        self.path = path
        self.number = _opened(path, os.O_RDWR | os.O_APPEND | os.O_NONBLOCK)
        found = os.fstat(self.number)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            raise OSError(errno.EINVAL, "is no file; remove it", str(path))
        self._whole = found.st_size

    def cut(self, size: int) -> None:
        """Drop everything behind the first `size` bytes."""
        os.ftruncate(self.number, size)
        self._whole = size

    def add(self, data: bytes) -> None:
        """Raises OSError; the file is then as it was."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.number, view):]
        except BaseException as error:  # a full disk, or Ctrl-C between two parts of the piece
            with contextlib.suppress(OSError):
                self.cut(self._whole)
            if isinstance(error, OSError):
                error.filename = str(self.path)
            raise
        self._whole += len(data)

    def close(self) -> None:
        os.close(self.number)


class Lock:
    """Keeps a second run out of a folder; a process that dies, however, lets go of it."""

    def __init__(self, folder: Path, flag: str, name: str = LOCK):
        """Makes the folder, which the user named with `flag`, and in it the file `name`. Raises UserError where that
        fails, or where another run holds the lock."""
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            self._file = _opened(folder / name, os.O_RDWR)
        except OSError as error:
            what = f"{error.filename} {error.strerror}" if error.errno == errno.ELOOP else (
                f"{error.strerror}; name a folder that can be written to")
            raise UserError(f"{flag} {folder}: {what}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise UserError(f"{flag} {folder}: another run is writing there; wait for its end, or name another "
                            f"{flag}") from None
        except OSError:  # a file system without locks: the user must keep two runs apart
            pass

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def safe_name(text: str) -> str:
    """text as part of a file name: no separators or control characters, no leading dot, not too long."""
    name = re.sub(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", "_", text).strip()
    name = re.sub(r"^\.+", "_", name) or "_"
    return name.encode("utf-8")[:LONGEST_NAME].decode("utf-8", "ignore")


def name_key(name: str) -> str:
    """Equal for names that are one file where capitals, and ways to write an accent, do not count."""
    return unicodedata.normalize("NFC", name).casefold()


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python, of the packages that results depend on, and of `more`; without those not installed."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *more):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def unusual(settings: object) -> dict[str, object]:
    """The fields of a dataclass that are not at their default, and those that have none."""
    values = {field.name: (getattr(settings, field.name), field.default) for field in fields(settings)}
    return {name: value for name, (value, default) in values.items() if value != default}


def usual(kind: type) -> dict[str, object]:
    """The fields of a dataclass that have a default, with it."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}
