"""Compiled kernels: the compiler of the C++ ones, and where all are kept between runs. They are code, so only those
of the user are run.

A file is taken from the folder if only the user and root can write to both, and if it is whole by the checksum behind
its content. Parents of the folder may belong to others: a folder that they put in its place is not the user's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

from runtime.files import replacing

WRITABLE_BY_GROUP, WRITABLE_BY_ALL = 0o020, 0o002
_MARK = b"glm-kernels sha256 "  # begins what stands behind the content
_DIGEST_BYTES = 32


class BuildError(RuntimeError):
    """Kernels could not be compiled or loaded; the message is one line."""


def find_compiler(environment: Mapping[str, str] = os.environ) -> str:
    """Path of the C++ compiler: $CXX, else c++, g++ or clang++ on the PATH. Raises BuildError where there is none."""
    for name in (environment.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name, path=environment.get("PATH"))):
            return path
    raise BuildError("no C++ compiler found ($CXX, c++, g++, clang++)")


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """$GLM_KERNEL_CACHE, else a folder in the user's cache. Raises BuildError for a user without a home."""
    if chosen := environment.get("GLM_KERNEL_CACHE"):
        return Path(chosen)
    try:
        return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glm-kernels"
    except RuntimeError as error:
        raise BuildError("no folder to keep the compiled library in; set GLM_KERNEL_CACHE") from error


def own_folder() -> Path:
    """The cache folder, made if need be. Raises BuildError where it cannot be, or where others may write into it."""
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        why = _not_own(folder.stat())
    except OSError as error:
        raise BuildError(f"no compiled kernels can be kept in {folder}: {error.strerror or error}") from error
    if why:
        raise BuildError(f"the cache of compiled kernels {folder} {why}: code there may be anybody's; mend it (chmod "
                         "go-w), or set GLM_KERNEL_CACHE to a folder of your own")
    return folder


def kept(name: str) -> bytes | None:
    """The content of a file of the folder; None where there is none. One that is another user's or damaged
    counts as none, and is named on stderr. Raises BuildError as `own_folder`."""
    path = own_folder() / name
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            why = _not_own(status) if stat.S_ISREG(status.st_mode) else "is no regular file"
            data = b"" if why else file.read()
    except FileNotFoundError:
        return None
    except OSError as error:  # a link, say
        why, data = f"cannot be read ({error.strerror})", b""
    content = data[:-len(_MARK) - _DIGEST_BYTES]
    if not why and data[len(content):] == _seal(content):
        return content
    print(f"kernels: {path} {why or 'is damaged'}; it is compiled anew", file=sys.stderr)
    return None


def keep(name: str, content: bytes) -> Path:
    """Write a file of the cache folder whole or not at all; processes that write the same one do not disturb each
    other. Raises BuildError."""
    folder = own_folder()
    try:
        with replacing(folder / name, by_several=True) as scratch:
            scratch.write_bytes(content + _seal(content))
            scratch.chmod(0o644)
    except OSError as error:
        raise BuildError(f"no compiled kernels can be kept in {folder}: {error.strerror or error}") from error
    return folder / name


def _seal(content: bytes) -> bytes:
    return _MARK + hashlib.sha256(content).digest()


def _not_own(status: os.stat_result) -> str | None:
    """Why a file or folder may hold what others have put there; None: only the user and root can have."""
    if status.st_uid not in (0, os.geteuid()):
        return f"belongs to another user (number {status.st_uid})"
    if status.st_mode & WRITABLE_BY_ALL or (status.st_mode & WRITABLE_BY_GROUP and not _is_private(status.st_gid)):
        return f"can be written to by others (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _is_private(group: int) -> bool:
    """Whether a group is the user's alone, as systems make one of the same name for each user."""
    import grp
    import pwd

    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_gid == user.pw_gid and found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}
