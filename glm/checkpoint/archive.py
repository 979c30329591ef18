"""The zip archives that torch writes, read in one way only.

A zip archive has its directory at the end, and readers differ in where they look for it, in which of two entries of one
name they take, and in whether small and capital letters are the same. One that can be read in two ways could show a
harmless content to whoever checks it, and another to torch. torch.save writes none of that, so it is refused.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO

from glm.checkpoint.entry import Region
from runtime.errors import UserError

_END = struct.Struct("<4s4H2LH")  # of the directory; b"PK\5\6"
_LOCATOR, _END_64 = struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")  # the same where numbers need 64 bits
_ENTRY, _LOCAL = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_WIDE_16, _WIDE_32, _WIDE = 0xFFFF, 0xFFFFFFFF, 1  # "the number stands elsewhere"; the extra field in which it does
_ENCRYPTED = 0x2041  # flags
PICKLE = "data.pkl"


def records(path: Path) -> list[Region]:
    """All records of a zip archive, in the order of their places, by their names without the archive's own in front.

    Raises UserError for a compressed one, and OSError or ValueError for all that torch.save does not write: another end
    than that of the directory, two records of one name or on one place, names in several folders.
    """
    try:
        with path.open("rb") as file:
            begin, end, count = _directory(file)
            file.seek(begin)
            return _placed(file, begin, _entries(path, file.read(end - begin), count))
    except struct.error as error:
        raise ValueError(f"the archive is cut off: {error}") from None


def read_pickle(path: Path, found: list[Region]) -> bytes:
    """The record that torch.load reads first. Raises ValueError where there is none, OSError."""
    (record,) = (each for each in found if each.name == PICKLE)
    with path.open("rb") as file:
        file.seek(record.start)
        return file.read(record.bytes)


def _directory(file: IO[bytes]) -> tuple[int, int, int]:
    """Where the directory begins and ends, and how many entries it has: it must lie before its end record, and that at
    the end of the file."""
    size = file.seek(0, 2)
    end = size - _END.size
    file.seek(max(0, end))
    mark, disk, first, here, count, length, begin, comment = _END.unpack(file.read(_END.size))
    if mark != b"PK\5\6" or disk or first or here != count or comment:
        raise ValueError("the archive does not end with its directory")
    locator = end - _LOCATOR.size
    file.seek(max(0, locator))
    mark, disk, place, disks = _LOCATOR.unpack(file.read(_LOCATOR.size))
    if locator >= 0 and mark == b"PK\6\7":
        narrow = ((count, _WIDE_16), (length, _WIDE_32), (begin, _WIDE_32))
        end = locator - _END_64.size
        file.seek(max(0, place))
        mark, rest, _, _, here_disk, first, here, count, length, begin = _END_64.unpack(file.read(_END_64.size))
        if (mark != b"PK\6\6" or place != end or rest != _END_64.size - 12 or disk or here_disk or first or disks > 1
                or here != count
                or any(said not in (wide, true) for (said, wide), true in zip(narrow, (count, length, begin),
                                                                              strict=True))):
            raise ValueError("the archive has two directories")
    elif count == _WIDE_16 or _WIDE_32 in (length, begin):
        raise ValueError("the archive has no directory")
    if begin + length != end:
        raise ValueError("the archive's directory is not before its end")
    return begin, end, count


def _entries(path: Path, directory: bytes, count: int) -> list[tuple[str, int, int, int]]:
    """(name, place of the header, bytes, checksum) of each entry."""
    found, names, folders, place = [], set(), set(), 0
    for _ in range(count):
        (mark, _, _, flags, method, _, _, crc32, packed, size, *lengths, disk, _, _, header
         ) = _ENTRY.unpack_from(directory, place)
        place += _ENTRY.size
        raw, extra = directory[place:place + lengths[0]], directory[place + lengths[0]:place + sum(lengths[:2])]
        place += sum(lengths)
        if method:
            raise UserError(f"{path} is a compressed archive, which torch.save does not write; save the checkpoint "
                            "again with torch.save")
        size, packed, header = _wide(extra, size, packed, header)
        folder, _, name = raw.partition(b"/")
        if mark != b"PK\1\2" or flags & _ENCRYPTED or disk or packed != size or b"\0" in raw or place > len(directory):
            raise ValueError("a damaged entry of the directory")
        if name.lower() in names:
            raise ValueError("two records of one name")
        names.add(name.lower())
        folders.add(folder)
        found.append((name.decode("utf-8", "surrogateescape"), header, size, crc32))
    if place != len(directory) or len(folders) > 1:
        raise ValueError("the directory has another end, or the archive several folders")
    return found


def _placed(file: IO[bytes], end: int, entries: list[tuple[str, int, int, int]]) -> list[Region]:
    """The entries with the places of their data, which ends before `end`."""
    found, free = [], 0
    for name, header, size, crc32 in sorted(entries, key=lambda entry: entry[1]):
        file.seek(header)
        mark, *_, names, extra = _LOCAL.unpack(file.read(_LOCAL.size))
        start = header + _LOCAL.size + names + extra
        if mark != b"PK\3\4" or header < free or start + size > end:
            raise ValueError(f"{name} is not where the directory says, or not alone there")
        free = start + size
        found.append(Region(name, start, size, crc32))
    return found


def _wide(extra: bytes, *numbers: int) -> list[int]:
    """The numbers, those that need 64 bits taken from the extra field where these stand one after another."""
    waiting = b""
    while len(extra) >= 4 and not waiting:
        kind, length = struct.unpack_from("<2H", extra)
        waiting, extra = extra[4:4 + length] if kind == _WIDE else b"", extra[4 + length:]
    found = []
    for number in numbers:
        if number == _WIDE_32:
            (number,), waiting = struct.unpack_from("<Q", waiting), waiting[8:]
        found.append(number)
    return found
