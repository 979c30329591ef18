"""Data files -> checked rows -> examples of token ids. Every fault stops with the file, the line and the field.

A row is a JSON object, one a line (.jsonl), or an element of a list (.json):
    inputs_pretokenized: text, choices_pretokenized: [text, ...], label: index, targets_pretokenized: [text, ...]
or the same without _pretokenized, as ids. Other fields are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.config import TaskConfig, TaskType
from evaluation.names import called
from runtime import reading
from runtime.errors import UserError, shown
from runtime.reading import json_at, parse_json

_BLANKS = " \t\n\r"


@dataclass(frozen=True)
class Example:
    """A row, tokenised."""

    index: int  # among the rows, from 0
    inputs: list[int]
    choices: list[list[int]]
    targets: list[list[int]]
    label: int | None  # of the right choice
    row: dict[str, Any]  # all fields as read
    num_examples: int | None = None  # how many stand in front of the text; None: it is no task with examples


def read_rows(path: str | Path, config: TaskConfig,
              more_faults: Callable[[dict[str, Any]], str | None] | None = None) -> list[dict[str, Any]]:
    """All rows of a data file, checked for what the task's type needs; a class of the task's own may need less.

    more_faults: row -> what else is wrong with it, or None.

    A language model's file is raw text, one row {"text": all of it}, unless a class of the task's own reads rows.
    Raises UserError for the first row at fault, and for a file without rows.
    """
    if config.type is TaskType.LANGUAGE_MODEL and config.module is None:
        return [{"text": read_text(path)}]
    rows = []
    for line, row in read_objects(path):
        fault = fault_of_row(row, config.type, config.module is not None)
        if fault is None and more_faults is not None:
            where = f"task {config.name}: {path}:{line}"
            fault = called(config, where, "text or None", lambda found: found is None or isinstance(found, str),
                           more_faults, row)
        if fault:
            raise UserError(f"{path}:{line}: {fault}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: holds no rows")
    return rows


def read_text(path: str | Path) -> str:
    """A UTF-8 file, lines ending as everywhere. UserError if it cannot be read or holds nothing but white space."""
    text = reading.read_text(path, is_prose=True).replace("\r\n", "\n")
    if not text.strip():
        raise UserError(f"{path}: holds no text")
    return text


def read_objects(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line from 1, object) of JSON lines, blank ones skipped, or of one JSON list. UserError for anything else."""
    text = reading.read_text(path)
    parsed = _list_elements(text, path) if text.lstrip(_BLANKS).startswith("[") else _lines(text, path)
    for number, row in parsed:
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a row must be a JSON object {{...}}, is {shown(row)}")
        yield number, row


def _lines(text: str, path: str | Path) -> Iterator[tuple[int, Any]]:
    place = 0
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(_BLANKS):
            try:
                value = parse_json(line, str(path), number)
            except UserError as error:
                raise UserError(_over_lines(text, place, path, number) or str(error)) from None
            yield number, value
        place += len(line) + 1


def _over_lines(text: str, place: int, path: str | Path, line: int) -> str | None:
    """What is wrong with a value that is JSON, but more than this line; None: it is none."""
    try:
        value, end = json_at(text, _skip_blanks(text, place), str(path), line)
    except UserError:
        return None
    if not isinstance(value, dict) or "\n" not in text[place:end]:
        return None
    held = _list_of_rows(value)
    hint = f"; its rows seem to stand under {held!r}: keep that list alone" if held else ""
    return f"{path}:{line}: one JSON object over several lines; a row is one line of a .jsonl file, or an element of " \
           f"the list that a .json file is{hint}"


def _list_of_rows(row: dict[str, Any]) -> str | None:
    """The key under which an object holds rows; None: it holds none."""
    return next((key[:60] for key, value in row.items()
                 if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)), None)


def _list_elements(text: str, path: str | Path) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON list and the lines on which they begin."""
    place, line, counted = text.index("[") + 1, 1, 0
    is_first = True
    while True:
        place = _skip_blanks(text, place)
        line, counted = line + text.count("\n", counted, place), place
        if text[place:place + 1] == "]" and is_first:
            place += 1
            break
        value, place = json_at(text, place, str(path), line)
        yield line, value
        is_first = False
        place = _skip_blanks(text, place)
        mark = text[place:place + 1]
        place += 1
        if mark == "]":
            break
        if mark != ",":
            line += text.count("\n", counted, place)
            raise UserError(f"{path}:{line}: not valid JSON: a list's rows are separated by commas and end with ]")
    rest = _skip_blanks(text, place)
    if rest < len(text):
        line += text.count("\n", counted, rest)
        raise UserError(f"{path}:{line}: not valid JSON: something follows the end of the list")


def _skip_blanks(text: str, place: int) -> int:
    while place < len(text) and text[place] in _BLANKS:
        place += 1
    return place


def line_of(path: str | Path, index: int) -> int:
    """The line on which the row of this index (from 0) begins, for messages."""
    return next(line for place, (line, _) in enumerate(read_objects(path)) if place == index)


def fault_of_row(row: dict[str, Any], task_type: TaskType, has_class: bool) -> str | None:
    """What is wrong with a row, or None. has_class: a class of the task's own may do without label and second choice.

    Fields that the type of task does not need may be absent, but not be something else than they are called.
    """
    is_choice, is_generation = task_type is TaskType.MULTICHOICE, task_type is TaskType.GENERATION
    at_least = {"choices": (1 if has_class else 2) if is_choice else 0, "targets": 1 if is_generation else 0}
    fault = _fault_of_inputs(row, is_choice or is_generation)
    for name, number in at_least.items():
        fault = fault or _fault_of_lists(row, name, number)
    return fault or _fault_of_label(row, not is_choice or has_class)


def _fault_of_inputs(row: dict[str, Any], is_needed: bool) -> str | None:
    if is_needed and "inputs" not in row and "inputs_pretokenized" not in row:
        return f"field inputs_pretokenized (text) or inputs (token ids) is missing; the row has {_fields(row)}"
    if "inputs" in row and not is_ids(row["inputs"]):
        return f"field inputs: must be a list of token ids, is {_shown_ids(row['inputs'])}"
    if "inputs_pretokenized" in row and not is_text(row["inputs_pretokenized"]):
        return f"field inputs_pretokenized: must be text, is {shown(row['inputs_pretokenized'])}"
    return None


def _fault_of_lists(row: dict[str, Any], name: str, at_least: int) -> str | None:
    """Of `choices` or `targets`, as ids and as texts. at_least: how many there must be; 0: the field may be absent."""
    as_text = f"{name}_pretokenized"
    present = [field for field in (name, as_text) if field in row]
    if not present and at_least:
        return f"field {as_text} (list of texts) or {name} (list of lists of token ids) is missing; the row has " \
               f"{_fields(row)}"
    for field in present:
        fits, what = (is_ids, "lists of token ids") if field == name else (is_text, "texts")
        value = row[field]
        if not isinstance(value, list):
            return f"field {field}: must be a list of {what}, is {shown(value)}"
        if len(value) < at_least:
            return f"field {field}: must hold at least {at_least}, holds {len(value)}"
        for place, each in enumerate(value):
            if not fits(each):
                return f"field {field}: must be a list of {what}, its element {place} is {_shown_ids(each)}"
    if len({len(row[field]) for field in present}) > 1:
        return f"field {name}: has {len(row[name])} elements, {as_text} has {len(row[as_text])}"
    return None


def _fault_of_label(row: dict[str, Any], is_optional: bool) -> str | None:
    """A row without choices may have a label of its own kind."""
    number = len(row.get("choices", row.get("choices_pretokenized", ())))
    if is_optional and (number == 0 or row.get("label") is None):
        return None
    if "label" not in row:
        return f"field label is missing (index of the right choice, from 0); the row has {_fields(row)}"
    if type(row["label"]) is not int or not 0 <= row["label"] < number:
        return f"field label: must be the index of a choice, 0 to {number - 1}, is {shown(row['label'])}"
    return None


def is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**31 for each in value)


def is_text(value: Any) -> bool:
    """A text that can be encoded: JSON may hold halves of surrogate pairs, which are none."""
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _shown_ids(value: Any) -> str:
    return "a list with something else" if isinstance(value, list) else shown(value)


def _fields(row: dict[str, Any]) -> str:
    held = _list_of_rows(row)
    hint = f" (rows seem to stand under {held!r}: keep that list alone)" if held else ""
    return f"{shown(', '.join(row))}{hint}" if row else "no fields"


def to_example(row: dict[str, Any], index: int, tokenizer,
               encode: Callable[[str], list[int]] | None = None) -> Example:
    """The ids of a checked row. Ids win over text; a choice or target of no token at all is one [eop].

    encode: the row's text -> its ids, where that is not the tokenizer's own.
    Raises UserError, naming the field, for an id that the tokenizer does not have.
    """
    def ids_of(ids: list[int], field: str) -> list[int]:
        if ids and max(ids) >= tokenizer.num_tokens:
            raise UserError(f"field {field}: the vocabulary has no id {max(ids)}, its ids are 0 to "
                            f"{tokenizer.num_tokens - 1}")
        return ids

    def lists_of(field: str) -> list[list[int]]:
        if field in row:
            return [ids_of(ids, field) for ids in row[field]]
        return [tokenizer.encode(text) for text in row.get(f"{field}_pretokenized", ())]

    if "inputs" in row:
        inputs = ids_of(row["inputs"], "inputs")
    else:
        inputs = (encode or tokenizer.encode)(row.get("inputs_pretokenized", ""))
    choices = [ids or [tokenizer.command("eop")] for ids in lists_of("choices")]
    return Example(index, inputs, choices, lists_of("targets"), row.get("label") if choices else None, row)
