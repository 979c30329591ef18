"""Reading prompts: one a line, with or without an id; every fault is noted at its line and stops no other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from generation.masks import MASKS, meant_for_a_mask
from runtime.errors import UserError
from runtime.reading import BOM, read_bytes, recognised


@dataclass(frozen=True)
class PromptLine:
    """One line of a file of prompts. index counts from 0, number is the line's, from 1; error: why it is no prompt."""

    index: int
    number: int
    text: str
    id: str | None = None
    error: str | None = None


def read_prompts(path: str | Path, with_id: bool = False) -> list[PromptLine]:
    """All lines of a UTF-8 file, the faulty ones too. with_id: a line is an id, a tab and the prompt.

    Raises UserError where the file itself cannot be read or holds nothing.
    """
    where = f"--input-source {path}"
    try:
        data = read_bytes(path, where=where)
    except UserError as error:
        raise UserError(f"{error}; name a file of prompts, one a line, or 'interactive'") from None
    if kind := recognised(data, is_prose=True):
        raise UserError(f"{where}: is {kind}")
    rows = data.removeprefix(BOM).split(b"\n")
    rows = rows[:-1] if rows[-1] == b"" else rows
    if not rows:
        raise UserError(f"--input-source {path}: the file is empty; it must hold one prompt a line")
    lines, number_of_id = [], {}
    for index, row in enumerate(rows):
        line = _line(index, row.removesuffix(b"\r"), with_id)
        first = number_of_id.setdefault(line.id, line.number) if line.id is not None else line.number
        if line.error is None and first != line.number:
            line = PromptLine(index, line.number, line.text, line.id, f"the id {line.id!r} stands in line {first} too")
        lines.append(line)
    return lines


def _line(index: int, row: bytes, with_id: bool) -> PromptLine:
    number, name = index + 1, None
    try:
        text = row.decode("utf-8")
    except UnicodeDecodeError as error:
        return PromptLine(index, number, row.decode("utf-8", "replace"), None,
                          f"not valid UTF-8 at byte {error.start + 1} of the line")
    if with_id and text.strip():
        name, tab, rest = text.partition("\t")
        if not tab or not name.strip():
            return PromptLine(index, number, text, None, "no id: with --with-id a line is an id, a tab and the prompt")
        text = rest
    return PromptLine(index, number, text, name, fault(text))


def fault(text: str) -> str | None:
    """Why a text cannot be a prompt of a user: it is empty, or has a mask that is none. None: nothing is wrong."""
    if not text.strip():
        return "the prompt is empty"
    if (found := meant_for_a_mask(text)) is not None:
        return f"unknown mask {found[0]}, did you mean {found[1]}?; allowed: {', '.join(MASKS)}"
    return None
