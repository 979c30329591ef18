"""Reading raw files of the usual formats. Every mistake in them is a UserError with file and line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from runtime import reading
from runtime.errors import UserError
from runtime.reading import parse_json


class MissingRawFile(UserError):
    """A raw file is not there: without the task having been named, it is only listed as not prepared."""


def need(path: Path) -> Path:
    """The path, if anything is there."""
    if not path.exists():
        raise MissingRawFile(f"{path}: no such file")
    return path


def read_text(path: Path) -> str:
    """A text as it is, line ends included."""
    return reading.read_text(need(path))


def read_json(path: Path):
    """The one JSON value that a file holds."""
    return parse_json(read_text(path), str(path))


def read_jsonl(path: Path) -> list[dict]:
    """One JSON object per line; blank lines do not count."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            rows.append(parse_json(line, str(path), number))
            if not isinstance(rows[-1], dict):
                raise UserError(f"{path}:{number}: expected a JSON object")
    return rows


def read_tsv(path: Path, columns: list[str] | None = None) -> list[dict[str, str]]:
    """Tab-separated lines, quotes being ordinary characters; `columns` names them where the file has no header."""
    lines = [(number, line.rstrip("\r").split("\t"))
             for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip("\r")]
    return _named(lines, columns, path)


def read_csv(path: Path, columns: list[str] | None = None, delimiter: str = ",") -> list[dict[str, str]]:
    """Comma-separated records, quoted where needed; `columns` names them where the file has no header."""
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, record) for record in reader if record]
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}") from error
    return _named(lines, columns, path)


def _named(lines: list[tuple[int, list[str]]], columns: list[str] | None, path: Path) -> list[dict[str, str]]:
    if columns is None:
        if not lines:
            raise UserError(f"{path}: empty; expected a line with the columns' names")
        columns, lines = lines[0][1], lines[1:]
    for number, values in lines:
        if len(values) != len(columns):
            raise UserError(f"{path}:{number}: {len(values)} columns, expected {len(columns)}: {', '.join(columns)}")
    return [dict(zip(columns, values, strict=True)) for _, values in lines]


def one_line(text: str) -> str:
    """The text without the blanks and line ends around it, and with single blanks inside."""
    return " ".join(text.split())


def index_of(value: object, allowed: list, path: Path, place: int, field: str) -> int:
    """The index of a label among the allowed ones; UserError if it is none. place: of the row, from 1."""
    if value not in allowed:
        names = ", ".join(map(str, allowed))
        raise UserError(f"{path}: row {place}: {field}: {value!r} is not one of {names}")
    return allowed.index(value)
