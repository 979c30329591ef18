"""Files that a person gave: saved in an editor, downloaded, copied. A file that cannot be read is one line.

A byte order mark is skipped, and a file of another kind is recognised by its first bytes: people have checkouts without
git-lfs, error pages where a download should be, and archives that were never unpacked.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from runtime.errors import UserError

SMALL = 1_000_000  # bytes that a file of settings may have
LARGE = 1 << 30  # bytes of a file that is read as a whole though it grows with a model or a run
START = 1024  # bytes by which a file is recognised
BOM = b"\xef\xbb\xbf"
NOT_A_FILE = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
              stat.S_IFBLK: "a device"}
_UNPACK = "unpack it first"
_UTF_16 = "text in UTF-16, as Windows programs save it; save it as UTF-8"
_PARQUET = ("a Parquet file; write its rows as JSON lines, such as with pandas: "
            "read_parquet(...).to_json(..., orient='records', lines=True, force_ascii=False)")
_KINDS = (
    (b"version https://git-lfs.github.com/spec/", "a pointer of git-lfs, not the file itself; fetch that with: "
                                                  "git lfs pull"),
    (b"\x1f\x8b", f"compressed by gzip; {_UNPACK}: gunzip"),
    (b"PK\x03\x04", f"a zip archive; {_UNPACK}: unzip"),
    (b"BZh", f"compressed by bzip2; {_UNPACK}: bunzip2"),
    (b"\xfd7zXZ\0", f"compressed by xz; {_UNPACK}: unxz"),
    (b"\x28\xb5\x2f\xfd", f"compressed by zstd; {_UNPACK}: unzstd"),
    (b"PAR1", _PARQUET),
    (b"ARROW1", _PARQUET.replace("a Parquet file", "an Arrow file").replace("read_parquet", "read_feather")),
    (b"\x89PNG", "a picture (PNG)"),
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"%PDF-", "a PDF; save its text as UTF-8"),
    (b"\xd0\xcf\x11\xe0", "a document of an office program; save its text as UTF-8"),
    (b"\xff\xfe", _UTF_16),
    (b"\xfe\xff", _UTF_16),
)
_ZERO_BETWEEN = re.compile(rb"(?:[^\0]\0){4}|(?:\0[^\0]){4}")
_WEB_PAGE = re.compile(rb"\s*(?:<!doctype\s+html|<html)\b", re.IGNORECASE)
_SAFETENSORS = re.compile(rb".{5}\0\0\0\{\s*\"", re.DOTALL)  # the size of its table, and the table


class NoSuchFile(UserError):
    """Nothing is there under this name."""


def open_file(path: str | os.PathLike, where: str = "") -> BinaryIO:
    """A regular file, open for reading bytes. where: begins the messages (the path).

    Raises NoSuchFile, and UserError for what is no file (a pipe or a device may never end) or cannot be read.
    """
    where = where or str(path)
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe nobody writes to does not block
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NoSuchFile(f"{where}: {error.strerror}{_broken_link(path)}") from None
    except OSError as error:
        raise UserError(f"{where}: {'is no file' if error.errno == errno.ENXIO else error.strerror}") from None
    except ValueError:  # a name that the system cannot have
        raise NoSuchFile(f"{where}: no such file") from None
    kind = stat.S_IFMT(os.fstat(number).st_mode)
    if kind != stat.S_IFREG:
        os.close(number)
        raise UserError(f"{where}: is {NOT_A_FILE.get(kind, 'something else')}, not a file")
    return open(number, "rb")


def _broken_link(path: str | os.PathLike) -> str:
    return f" (it is a link to {os.readlink(path)})" if os.path.islink(path) else ""


def read_bytes(path: str | os.PathLike, most: int | None = None, where: str = "") -> bytes:
    """All bytes of a file. most: that it may have. Raises as open_file, and UserError where it is larger."""
    where = where or str(path)
    with open_file(path, where) as file:
        try:
            data = file.read() if most is None else file.read(most + 1)
        except OSError as error:
            raise UserError(f"{where}: {error.strerror}") from None
        except MemoryError:
            size = os.fstat(file.fileno()).st_size
            raise UserError(f"{where}: has {size} bytes, and there is no memory for them") from None
    if most is not None and len(data) > most:
        raise UserError(f"{where}: is larger than {most} bytes, which no such file is")
    return data


def read_text(path: str | os.PathLike, most: int | None = None, where: str = "", is_prose: bool = False) -> str:
    """A UTF-8 file without its byte order mark, line ends as they are. is_prose: a web page is text like any other.

    Raises as read_bytes, and UserError for other encodings and for what is no text.
    """
    where = where or str(path)
    return decode_text(read_bytes(path, most, where), where, is_prose)


def decode_text(data: bytes, where: str, is_prose: bool = False) -> str:
    """The text that the bytes of a file are, as read_text gives it and raises."""
    if kind := recognised(data, is_prose):
        raise UserError(f"{where}: is {kind}")
    try:
        return data.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        begin = error.object.rfind(b"\n", 0, error.start) + 1
        line = error.object.count(b"\n", 0, begin) + 1
        raise UserError(f"{where}:{line}: not valid UTF-8 at byte {error.start - begin + 1}") from None
    except MemoryError:
        raise UserError(f"{where}: has {len(data)} bytes, and there is no memory for them") from None


def read_json(path: str | os.PathLike, most: int = SMALL, where: str = "") -> Any:
    """The one JSON value of a file. Raises as read_text and parse_json."""
    return parse_json(read_text(path, most, where), where or str(path))


def parse_json(text: str, where: str, line: int = 1) -> Any:
    """The JSON value that a text is. UserError for anything else, a key that stands twice in an object included.

    where: the file's name for messages. line: of the file, on which the text begins.
    """
    with _told(where, line, line):
        return _DECODER.decode(text)


def json_at(text: str, place: int, where: str, line: int) -> tuple[Any, int]:
    """The JSON value that begins at a place of a whole file's text, in this line, and where it ends. Raises as
    parse_json."""
    with _told(where, line, 1):
        return _DECODER.raw_decode(text, place)


@contextlib.contextmanager
def _told(where: str, line: int, first: int) -> Iterator[None]:
    """Faults of the block as UserErrors. Lines of the file: that of the value, and the first one of the text."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{first + error.lineno - 1}: not valid JSON: {error.msg} at column "
                        f"{error.colno}") from None
    except RepeatedKey as error:
        raise UserError(f"{where}:{line}: {error}") from None
    except (RecursionError, ValueError) as error:  # nested without end; a number of thousands of digits
        raise UserError(f"{where}:{line}: not valid JSON: {error}") from None
    except MemoryError:
        raise UserError(f"{where}: there is no memory for what it holds") from None


class RepeatedKey(ValueError):
    """Two values under one key, of which readers differ in the one they keep."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise RepeatedKey(f"the key {twice[:60]!r} stands twice in one object; keep one of them")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def recognised(start: bytes, is_prose: bool = False) -> str | None:
    """What a foreign file is by its beginning, and what to do: "compressed by gzip; unpack ..."; None: not known."""
    for mark, kind in _KINDS:
        if start.startswith(mark):
            return kind
    if _ZERO_BETWEEN.match(start):
        return _UTF_16
    if _SAFETENSORS.match(start):
        return "a safetensors file, as Hugging Face's checkpoints are"
    if not is_prose and _WEB_PAGE.match(start[:START].removeprefix(BOM)):
        return "a web page, not the file itself: a download that went wrong; fetch it again"
    return None
