"""Weights that stay in the mapped checkpoint file: is it still the file that was loaded?

Whoever writes into the file while a model runs changes its weights, and whoever cuts it short ends the process with
SIGBUS. A file that was replaced (another one under the same name) or deleted does no harm: the mapping keeps the old
one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

from runtime.errors import UserError

GO_ON = ("what was answered before is kept: put the right file back and start again (python -m generation: with "
         "--resume)")


class MappedFile(NamedTuple):
    """A file as it was when it was loaded. written: time of its last change as the file system counts it; only compared
    with itself, so that no clock needs to be right."""

    path: Path
    device: int
    inode: int
    bytes: int
    written: int


def mapped_file(path: Path) -> MappedFile:
    """Ask before reading: what is written from then on is noticed."""
    found = path.stat()
    return MappedFile(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


def check_unchanged(model) -> None:
    """Raises UserError where a file behind a model's weights was written to since it was loaded (glm.loading says in
    `model.mapped_files` which these are; none: the weights are in memory)."""
    for file in getattr(model, "mapped_files", ()):
        _check_unchanged(file)


def _check_unchanged(file: MappedFile) -> None:
    try:
        found = mapped_file(file.path)
    except OSError:  # deleted, or its folder is gone: what is mapped stays
        return
    if found[1:3] == file[1:3] and found != file:
        what = f"{file.bytes} bytes then, {found.bytes} now" if found.bytes != file.bytes else "of the same size"
        raise UserError(f"{file.path} was written to while it was in use ({what}): its weights are not those that were "
                        f"loaded; {GO_ON}")


def explain_bus_errors(path: Path, go_on: str = GO_ON) -> None:
    """From now on a mapped page that is no longer there ends the process with one line and exit code 2."""
    if sys.platform != "linux":
        return
    text = (f"error: {path} was cut short, or its disk failed, while it was in use (SIGBUS); {go_on}\n").encode()

    def say(_number: int) -> None:
        os.write(2, text)
        os._exit(2)

    # signal.signal would only set a flag, and the page would be missed again at once
    handler = _HANDLER_TYPE(say)
    _handlers.append(handler)
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, _HANDLER_TYPE), ctypes.c_void_p
    library.signal(signal.SIGBUS, handler)


_HANDLER_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers: list = []  # the system holds only their addresses
