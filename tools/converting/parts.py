"""The parts of a split archive (glm-130b-sat.tar.part_00, part_01, ... or _aa, _ab, ...) before they are joined.

What can be known without hashes: that no part is missing in between, that all but the last have one size, and, by
walking through the headers of the tar archive across the parts, that it ends where the last part does.
"""

import bisect
import io
import itertools
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.errors import UserError
from runtime.hashing import hash_file, in_threads
from runtime.reading import LARGE, read_text
from runtime.show import Progress
from tools.converting.manifest import FileFacts, Manifest, read_manifest
from tools.converting.verify import Report

PART = re.compile(r"(?P<stem>.+\.part[_.-]?)(?P<place>\d+|[a-z]+)")
UNFINISHED = (".aria2", ".crdownload", ".part", ".tmp", ".download", ".filepart")
_SUMS = {32: "md5", 40: "sha1", 64: "sha256", 128: "sha512"}  # kinds of hashes by their hexadecimal digits


def find_parts(paths: Sequence[Path]) -> list[Path]:
    """The parts among the paths, or in the one folder; in their order. Empty where there are none."""
    if len(paths) == 1 and paths[0].is_dir():
        paths = list(paths[0].iterdir())
    return sorted((path for path in paths if PART.fullmatch(path.name) and path.is_file()),
                  key=lambda path: (PART.fullmatch(path.name)["stem"], len(path.name), path.name))


def check_parts(parts: Sequence[Path], sums: Path | None = None) -> Report:
    """sums: a manifest, or a list of hashes as sha256sum or md5sum prints it."""
    stems = sorted({PART.fullmatch(path.name)["stem"] for path in parts})
    if len(stems) > 1:
        raise UserError(f"parts of several archives: {', '.join(stems)}; check one after the other")
    problems = _missing(parts, stems[0]) + _sizes(parts) + _unfinished(parts[0].parent, stems[0])
    if sums is not None:
        problems += [line for line in _hash_problems(parts, _read_sums(sums)) if line not in problems]
    if not problems and stems[0].partition(".part")[0].endswith(".tar"):
        problems += _tar_problems(parts)
    return Report(problems, len(parts), sum(path.stat().st_size for path in parts))


def make_parts_manifest(parts: Sequence[Path], kind: str) -> Manifest:
    with Progress(sum(path.stat().st_size for path in parts), unit="B", title="Hashing") as progress:
        hashes = in_threads(lambda path: hash_file(path, kind, progress.advance), parts)
    return Manifest({path.name: FileFacts(path.stat().st_size, digest)
                     for path, digest in zip(parts, hashes, strict=True)})


def _place(name: str) -> int:
    text = PART.fullmatch(name)["place"]
    if text.isdigit():
        return int(text)
    value = 0
    for letter in text:
        value = 26 * value + ord(letter) - ord("a")
    return value


def _name(stem: str, like: str, place: int) -> str:
    if like.isdigit():
        return f"{stem}{place:0{len(like)}d}"
    letters = ""
    for _ in like:
        place, letter = divmod(place, 26)
        letters = chr(ord("a") + letter) + letters
    return stem + letters


def _missing(parts: Sequence[Path], stem: str) -> list[str]:
    places = {_place(path.name): path.name for path in parts}
    like = PART.fullmatch(parts[-1].name)["place"]
    if len({PART.fullmatch(path.name)["place"].isdigit() for path in parts}) > 1:
        return [f"{parts[0].name} and {parts[-1].name}: some parts are numbered and some have letters; they are not of "
                "one archive"]
    begin = 1 if 0 not in places and like.isdigit() and 1 in places else 0
    return [f"{_name(stem, like, place)} is missing" for place in range(begin, max(places)) if place not in places]


def _sizes(parts: Sequence[Path]) -> list[str]:
    """All but the last part have the size that most of them have; the last is not larger, and not empty."""
    sizes = [path.stat().st_size for path in parts]
    *others, last = sizes
    usual = max(set(others), key=others.count) if others else last
    problems = [f"{path.name} has {size} bytes, the other parts have {usual}: "
                f"{'cut off' if size < usual else 'too long'}; download it again"
                for path, size in zip(parts, others, strict=False) if size != usual]
    if not last:
        problems.append(f"{parts[-1].name} is empty; download it again")
    elif last > usual:
        problems.append(f"{parts[-1].name} has {last} bytes; the last part has 1 to {usual}")
    return problems


def _unfinished(folder: Path, stem: str) -> list[str]:
    return [f"{path.name}: a download of {path.stem} that has not ended" for path in sorted(folder.iterdir())
            if path.name.startswith(stem) and path.suffix in UNFINISHED]


def _read_sums(path: Path) -> dict[str, str]:
    """File name -> "kind:digits"."""
    text = read_text(path, LARGE, f"--against {path}")
    if text.lstrip().startswith("{"):
        return {name.rpartition("/")[2]: facts.hash for name, facts in read_manifest(path).files.items()}
    sums = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = re.fullmatch(r"([0-9a-fA-F]+) [ *](.+)", line.strip())
        if not line.strip() or line.startswith("#"):
            continue
        if not match or len(match[1]) not in _SUMS:
            raise UserError(f"--against {path}, line {number}: not a line of a manifest or of sha256sum or md5sum "
                            "(hexadecimal digits, two blanks, file name)")
        sums[match[2].rpartition("/")[2]] = f"{_SUMS[len(match[1])]}:{match[1].lower()}"
    return sums


def _hash_problems(parts: Sequence[Path], sums: Mapping[str, str]) -> list[str]:
    names = {path.name for path in parts}
    problems = [f"{name} is missing" for name in sums if PART.fullmatch(name) and name not in names]
    problems += [f"{path.name} was added: it is not in the list of hashes" for path in parts if path.name not in sums]
    known = [path for path in parts if path.name in sums]
    with Progress(sum(path.stat().st_size for path in known), unit="B", title="Verifying") as progress:
        found = in_threads(lambda path: hash_file(path, sums[path.name].partition(":")[0], progress.advance), known)
    return problems + [f"{path.name} is changed: download it again" for path, digest in zip(known, found, strict=True)
                       if digest != sums[path.name]]


def _tar_problems(parts: Sequence[Path]) -> list[str]:
    """Only the headers are read: a few for a checkpoint of any size."""
    last = parts[-1].name
    with io.BufferedReader(_Joined(parts)) as joined:  # whose reads go on across the end of a part
        members: list[tarfile.TarInfo] = []
        try:
            with tarfile.open(fileobj=joined, mode="r:") as archive:
                members.extend(archive)
        except tarfile.TarError as error:
            if not members:
                stem, place = PART.fullmatch(parts[0].name).groups()
                before = f"{_name(stem, place, 0)} is missing, or " if _place(parts[0].name) else ""
                return [f"{parts[0].name} does not begin a tar archive ({error}): {before}it is damaged; download it "
                        "again"]
        size = members[-1].size if members and members[-1].isreg() else 0
        blocks = -(-size // tarfile.BLOCKSIZE)
        end = members[-1].offset_data + blocks * tarfile.BLOCKSIZE if members else 0
        if end > sum(path.stat().st_size for path in parts):
            return [f"the archive is cut off in {members[-1].name}: parts behind {last} are missing, or it is cut off"]
        joined.seek(end)
        mark = joined.read(2 * tarfile.BLOCKSIZE)  # two blocks of zeros
        if len(mark) < 2 * tarfile.BLOCKSIZE or mark.strip(b"\0"):
            return [f"the archive does not end in {last}: parts behind it are missing, or it is cut off"]
    return []


class _Joined(io.RawIOBase):
    """Several files as one that can be read and searched."""

    def __init__(self, paths: Sequence[Path]):
        super().__init__()
        self._files = [path.open("rb") for path in paths]
        self._ends = list(itertools.accumulate(path.stat().st_size for path in paths))
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._ends[-1]}[whence]
        return self._place

    def readinto(self, buffer) -> int:
        index = bisect.bisect_right(self._ends, self._place)
        if index == len(self._files):
            return 0
        begin = self._ends[index - 1] if index else 0
        self._files[index].seek(self._place - begin)
        count = self._files[index].readinto(buffer)
        self._place += count
        return count

    def close(self) -> None:
        for file in self._files:
            file.close()
        super().close()
