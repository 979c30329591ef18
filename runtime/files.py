"""Files that are there as a whole or not at all, whenever the process dies; and folders that one run has for itself."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from runtime.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block has ended well.

    Always the same name: what a killed process left there, or anybody a link, is removed and the file made anew, empty,
    before the block begins. An OSError of the block that does not say which file it is about (a full disk, say) says so
    here.
    """
    temporary = temporary_name(path)
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
    """The number of a file that is opened or made. Raises OSError, also where there is a link: what it leads to is not
    of this folder."""
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


class Grown:
    """A file that only grows, by whole pieces: of a piece that the disk does not take nothing stays."""

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
        """Let go of what stands behind the first `size` bytes."""
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
    """Keeps a second run out of a folder; whoever dies, however, lets go of it."""

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
        except OSError:  # a file system without locks: two runs at once are then the user's own care
            pass

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_) -> None:
        self.close()
