"""What a classification or multiple-choice task is, as data: a YAML file says all of it.

The tasks that are known by name lie in tuning/patterns; a file of one's own is used by its path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.errors import UserError, shown
from runtime.strict_yaml import read_mapping
from tuning.data.patterns import Part, Pattern, parse_parts, parse_pattern, parse_verbalizers
from tuning.data.templates import Template, names_in, parse_template

FOLDER = Path(__file__).resolve().parent.parent / "patterns"
SUFFIXES = (".yaml", ".yml")
READERS = ("rows", "copa", "multirc", "record", "wsc", "cluewsc", "race", "squad")
METRICS = ("accuracy", "f1-macro", "f1", "multirc", "record")
FILES = {"train": "train.jsonl", "dev": ["val.jsonl", "dev.jsonl"], "test": "test.jsonl"}
_OF_ROWS = ("guid", "text_a", "text_b", "label", "header")  # that may differ by split
KEYS = ("like", "reader", "files", "splits", *_OF_ROWS, "unlabelled", "labels", "words", "choices", "answer",
        "generative", "verbalizers", "patterns", "head", "metrics")


@dataclass(frozen=True)
class RowFields:
    """Where in a row of a split the texts are."""

    guid: Template
    text_a: Template | None
    text_b: Template | None
    label: str  # the field
    has_header: bool  # TSV and CSV: the first line names the fields; without it they have numbers from 0


@dataclass(frozen=True)
class NluTask:
    name: str
    where: str  # its file, for messages
    folder: Path  # of its file
    reader: str  # of READERS
    files: Mapping[str, tuple[str, ...]]  # split -> names, of which the first that there is is read
    fields: Mapping[str, RowFields]  # split -> where the texts are
    unlabelled: str | None  # the label of rows without one
    labels: tuple[str, ...]  # none: rows hold the number of the right choice
    words: Mapping[str, tuple[str, Mapping[str, str]]]  # name of a new field -> an old one, and a text for its values
    choices: str | tuple[Template, ...]  # a field that holds a list, or a text each
    is_generative: bool  # the only choice is what has to be generated
    patterns: tuple[Pattern, ...]
    head: Mapping[str, tuple[Part, ...]]  # what a classification head reads: a and b
    metrics: tuple[str, ...]  # the first one chooses the best epoch

    @property
    def has_choices(self) -> bool:
        return self.choices != ()

    @property
    def names(self) -> set[str]:
        """Fields that patterns, words and choices use."""
        patterns = [each for pattern in self.patterns for each in (pattern, *pattern.instead.values())]
        parts = [*self.head["a"], *self.head["b"], *(part for each in patterns for part in (*each.a, *each.b))]
        templates = [part.template for part in parts if part.template]
        templates += [each.answer for each in patterns if each.answer]
        fields = {name for each in patterns for name in each.instead} | {old for old, _ in self.words.values()}
        if isinstance(self.choices, str):
            return names_in(templates) | fields | {self.choices}
        return names_in([*templates, *self.choices]) | fields


def load_task(name: str) -> NluTask:
    """A task by its name, or by the path of its file. UserError for any mistake in the file."""
    path = Path(name) if name.endswith(SUFFIXES) else FOLDER / f"{name}.yaml"
    return _parse(_read(path), path)


def _read(path: Path) -> dict[str, Any]:
    """The keys of the file, and those of the task that it is like."""
    value = read_mapping(path)
    for key in value:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key {shown(key)}; a task has {', '.join(KEYS)}")
    if "like" not in value:
        return value
    base = FOLDER / f"{value['like']}.yaml"
    if not base.is_file():
        known = sorted(each.stem for each in FOLDER.glob("*.yaml"))
        raise UserError(f"{path}: like: there is no task {shown(value['like'])}; there are {', '.join(known)}")
    return _read(base) | value


def _parse(value: dict[str, Any], path: Path) -> NluTask:
    where = str(path)
    reader = _one_of(value.get("reader", "rows"), READERS, f"{where}: reader")
    files = FILES | _mapping(value.get("files", {}), f"{where}: files", FILES)
    splits = _mapping(value.get("splits", {}), f"{where}: splits", FILES)
    labels = tuple(_texts(value.get("labels", []), f"{where}: labels"))
    choices = value.get("choices", ())
    if choices and not isinstance(choices, str):
        choices = tuple(parse_template(each, f"{where}: choices") for each in _list(choices, f"{where}: choices"))
    verbalizers = answer = None
    if "verbalizers" in value:
        verbalizers = parse_verbalizers(value["verbalizers"], f"{where}: verbalizers")
    if "answer" in value or choices:
        answer = parse_template(value.get("answer", " {choice}"), f"{where}: answer")
    patterns = tuple(parse_pattern(each, f"{where}: patterns: {number}", verbalizers, answer)
                     for number, each in enumerate(_list(value.get("patterns"), f"{where}: patterns")))
    for number, pattern in enumerate(patterns):
        _check_labels(pattern, labels, bool(choices), f"{where}: patterns: {number}")
    head = _mapping(value.get("head", _usual_head(value)), f"{where}: head", ("a", "b"))
    metrics = tuple(_one_of(each, METRICS, f"{where}: metrics")
                    for each in _list(value.get("metrics", ["accuracy"]), f"{where}: metrics"))
    return NluTask(
        path.stem, where, path.parent, reader,
        {split: tuple(_texts([names] if isinstance(names, str) else names, f"{where}: files: {split}"))
         for split, names in files.items()},
        {split: _row_fields(value | _mapping(splits.get(split, {}), f"{where}: splits: {split}", _OF_ROWS), where,
                            reader in ("rows", "copa")) for split in FILES},
        value.get("unlabelled"), labels, _words(value.get("words", {}), f"{where}: words"), choices,
        value.get("generative", False) is True, patterns,
        {name: parse_parts(head.get(name, []), f"{where}: head: {name}") for name in ("a", "b")}, metrics)


def _row_fields(value: Mapping[str, Any], where: str, needs_text: bool) -> RowFields:
    if needs_text and value.get("text_a") is None:
        raise UserError(f"{where}: text_a is missing: it says which field of a row is the text, as \"{{sentence}}\"")
    texts = {name: parse_template(value[name], f"{where}: {name}") if value.get(name) is not None else None
             for name in ("text_a", "text_b")}
    label = value.get("label", "label")
    if not isinstance(label, str):
        raise UserError(f"{where}: label: is the name of a field, not {shown(label)}; quotes make text of a number")
    return RowFields(parse_template(value.get("guid", "{split}-{number}"), f"{where}: guid"), **texts, label=label,
                     has_header=value.get("header", True) is True)


def _usual_head(value: Mapping[str, Any]) -> dict[str, Any]:
    head = {"a": "{text_a}"} | ({"b": "{text_b}"} if "text_b" in value or "reader" in value else {})
    return head | ({"b": ["{text_b}", " {choice}"] if "text_b" in value else "{choice}"} if "choices" in value else {})


def _check_labels(pattern: Pattern, labels: tuple[str, ...], has_choices: bool, where: str) -> None:
    if has_choices:
        return
    if not labels:
        raise UserError(f"{where.partition(': patterns')[0]}: labels is missing: all that rows may have, in order")
    if set(pattern.verbalizers or ()) != set(labels):
        raise UserError(f"{where}: verbalizers are wanted for {', '.join(labels)}, "
                        f"and are there for {', '.join(pattern.verbalizers or ()) or 'none'}")


def _words(value: Any, where: str) -> dict[str, tuple[str, dict[str, str]]]:
    words = {}
    for name, each in _mapping(value, where).items():
        if not isinstance(each, dict) or len(each) != 1:
            raise UserError(f"{where}: {name}: names one field, and a text for each of its values")
        (field, texts), = each.items()
        words[name] = field, parse_verbalizers(texts, f"{where}: {name}: {field}")
    return words


def _mapping(value: Any, where: str, keys: Any = None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be a mapping, is {shown(value)}")
    for key in value if keys is not None else ():
        if key not in keys:
            raise UserError(f"{where}: unknown key {shown(key)}; there are {', '.join(keys)}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: must be a list that is not empty, is {shown(value)}")
    return value


def _texts(value: Any, where: str) -> list[str]:
    if value == []:
        return []
    for each in _list(value, where):
        if not isinstance(each, str):
            raise UserError(f"{where}: {shown(each)} must be text; quotes make it text")
    return value


def _one_of(value: Any, known: tuple[str, ...], where: str) -> str:
    if value not in known:
        raise UserError(f"{where}: {shown(value)} is none of {', '.join(known)}")
    return value
