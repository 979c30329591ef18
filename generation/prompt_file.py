"""A file of prompts: a line each, as plain text or as a JSON object with options of its own.

    Once upon a time [gMASK]
    {"prompt": "Once upon a time [gMASK]", "id": "tale", "max_gen_length": 40, "stop": ["\\n"], "source": "mine"}

A file whose name ends with .jsonl holds objects. A faulty prompt is noted at its line and stops no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from generation.blanks import fault
from generation.params import Options
from runtime.errors import UserError, shown
from runtime.reading import BOM, parse_json, read_bytes, recognised
from runtime.show import nearest

JSON_LINES = ".jsonl"
OF_ALL = ("strategy", "num_beams", "print_all_beams")  # options that all prompts of a run have in common


@dataclass(frozen=True)
class PromptLine:
    """One line of a file of prompts."""

    index: int  # from 0
    number: int  # of the line, from 1
    text: str
    id: str | None = None
    error: str | None = None  # why it is no prompt
    fields: Mapping[str, Any] = field(default_factory=dict)  # what its object holds beside prompt and id
    options: Options = field(default_factory=Options)  # the run's, with those that are among the fields


def read_prompts(path: str | Path, with_id: bool = False, options: Options | None = None) -> list[PromptLine]:
    """All lines of a UTF-8 file, the faulty ones too. with_id: a line is an id, a tab and the prompt. options: the
    run's, where a line has none of its own.

    Raises UserError where the file itself cannot be read or holds nothing.
    """
    where, is_json = f"--input-source {path}", str(path).endswith(JSON_LINES)
    if with_id and is_json:
        raise UserError(f'--with-id is for lines of text; a line of {path} has its "id" in its object')
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
    options = Options() if options is None else options
    lines, number_of_id = [], {}
    for index, row in enumerate(rows):
        line = _line(index, row.removesuffix(b"\r"), with_id, is_json, options)
        first = number_of_id.setdefault(line.id, line.number) if line.id is not None else line.number
        if line.error is None and first != line.number:
            line = replace(line, error=f"the id {line.id!r} stands in line {first} too")
        lines.append(line)
    return lines


def _line(index: int, row: bytes, with_id: bool, is_json: bool, options: Options) -> PromptLine:
    number, name = index + 1, None
    try:
        text = row.decode("utf-8")
    except UnicodeDecodeError as error:
        return PromptLine(index, number, row.decode("utf-8", "replace"), None,
                          f"not valid UTF-8 at byte {error.start + 1} of the line")
    if is_json:
        try:
            return _object(index, text, options)
        except UserError as error:
            return PromptLine(index, number, text, None, str(error))
    if with_id and text.strip():
        name, tab, rest = text.partition("\t")
        if not tab or not name.strip():
            return PromptLine(index, number, text, None, "no id: with --with-id a line is an id, a tab and the prompt")
        text = rest
    return PromptLine(index, number, text, name, fault(text), options=options)


def _object(index: int, text: str, options: Options) -> PromptLine:
    """The line that a JSON object is. Raises UserError for one that is none, or has wrong options."""
    try:
        value = parse_json(text, "line", index + 1)
    except UserError as error:
        raise UserError(str(error).removeprefix(f"line:{index + 1}: ")) from None
    if not isinstance(value, dict):
        raise UserError(f'the line is {shown(value)}; it must be an object: {{"prompt": "..."}}')
    prompt, name = value.get("prompt"), value.get("id")
    if not isinstance(prompt, str):
        raise UserError(f'"prompt" is {shown(prompt)}; it must be a text')
    if name is not None and (isinstance(name, bool) or not isinstance(name, (str, int)) or not str(name).strip()):
        raise UserError(f'"id" is {shown(name)}; it must be a text or a whole number')
    fields, known = {key: one for key, one in value.items() if key not in ("prompt", "id")}, options.values()
    for key in fields:
        if key in OF_ALL:
            raise UserError(f"{key} is the same for all prompts of a run: give it on the command line")
        if key not in known and (close := nearest(key, known)):
            raise UserError(f"unknown option {key!r}; did you mean {close}?")
    own = {key: one for key, one in fields.items() if key in known}
    return PromptLine(index, index + 1, prompt, None if name is None else str(name), fault(prompt), fields,
                      options.changed(**own))
