"""The rows of a task's file: JSON lines, TSV without quoting, CSV; each knows the line that it comes from."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UserError, shown
from runtime.reading import NoSuchFile, parse_json, read_text

FEW = "dev32.jsonl"  # few_superglue: the validation rows, in whose folder val.jsonl is the test
_CELL = 1 << 24  # characters that a cell of a CSV file may have


@dataclass(frozen=True, slots=True)
class FileRow:
    where: str  # path and line, for messages
    number: int  # from 0
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        try:
            return self.fields[name]
        except KeyError:
            raise self.lacks(name) from None

    def lacks(self, name: str) -> UserError:
        """What is said of a field that the row has not."""
        return UserError(f"{self.where}: no {name!r} in this row, which has "
                         f"{', '.join(map(shown, self.fields)) or 'nothing'}")

    def text(self, name: str) -> str:
        return self.typed(name, str, "text")

    def typed(self, name: str, kind: type, what: str) -> Any:
        """The field; UserError where it is missing or something else."""
        value = self[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{self.where}: {name!r} is {shown(value)}; it must be {what}")
        return value

    def inner(self, name: str, value: Any) -> FileRow:
        """A mapping within the row; name: for messages."""
        if not isinstance(value, dict):
            raise UserError(f"{self.where}: {name} is {shown(value)}; it must be an object")
        return FileRow(f"{self.where}: {name}", self.number, value)

    def list_of_rows(self, name: str) -> list[FileRow]:
        return [self.inner(f"{name}[{place}]", each) for place, each in enumerate(self.typed(name, list, "a list"))]


def file_of(folder: Path | None, files: Mapping[str, tuple[str, ...]], split: str) -> Path:
    """The first of the split's files that the folder has. UserError where it has none, or no folder was named."""
    if folder is None:
        raise UserError("no data: --data-dir names the folder with the task's files")
    names = files[split]
    if (folder / FEW).is_file() and "val.jsonl" in files["dev"]:
        names = {"dev": (FEW,), "test": ("val.jsonl",)}.get(split, names)
    for name in names:
        if (path := folder / name).exists():
            return path
    there = sorted(each.name for each in folder.iterdir())[:8] if folder.is_dir() else None
    raise NoSuchFile(f"{folder}: --split {split} is read from {' or '.join(names)}, and this folder "
                    + ("is not there" if there is None else f"has {', '.join(there) or 'nothing'}"))


def read_rows(path: Path, has_header: bool = True) -> Iterator[FileRow]:
    """UserError for what cannot be read, and for a file without rows."""
    text = read_text(path)
    if path.suffix == ".csv":
        found = _named(iter(csv_records(text, path)), path, has_header)
    elif path.suffix == ".tsv":
        found = _tsv(text, path, has_header)
    else:
        found = _objects(text, path)
    number = -1
    for number, (line, fields) in enumerate(found):
        yield FileRow(f"{path}:{line}", number, fields)
    if number < 0:
        raise UserError(f"{path}: has no rows")


def json_lines(text: str, path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line from 1, value) of a file's JSON lines, blank ones skipped. path: for messages. UserError for no JSON."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, parse_json(line, str(path), number)


def _objects(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, value in json_lines(text, path):
        if not isinstance(value, dict):
            raise UserError(f"{path}:{number}: a row is an object in JSON, not {shown(value)}")
        yield number, value


def _tsv(text: str, path: Path, has_header: bool) -> Iterator[tuple[int, dict[str, str]]]:
    lines = ((number, line.rstrip("\r").split("\t")) for number, line in enumerate(text.split("\n"), 1)
             if line.strip("\r\n"))
    yield from _named(lines, path, has_header)


def csv_records(text: str, path: Path, reader_of: Callable = csv.reader) -> list[tuple[int, Any]]:
    """(line of its end, record) of a CSV file, empty ones left out. path: for messages. reader_of: csv.reader or
    csv.DictReader. UserError for what is no CSV."""
    before = csv.field_size_limit(_CELL)
    try:
        reader = reader_of(io.StringIO(text, newline=""))
        return [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def _named(lines: Iterator[tuple[int, list[str]]], path: Path,
           has_header: bool) -> Iterator[tuple[int, dict[str, str]]]:
    names = next(lines, (0, []))[1] if has_header else None
    for number, cells in lines:
        if names is not None and len(cells) > len(names):
            raise UserError(f"{path}:{number}: has {len(cells)} columns, and the header names {len(names)}")
        yield number, dict(zip(names or map(str, range(len(cells))), cells, strict=False))
