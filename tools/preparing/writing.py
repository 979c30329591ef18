"""Rows of raw data put into words, the files of them, and the account of rows in and rows out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import UserError
from runtime.files import replacing
from tools.preparing.recipes import Prompt, Recipe, fields_of


@dataclass
class Account:
    """Counts of one split."""

    split: str
    read: int
    unit: str = "rows"  # "lines" for a text
    left_out: Counter = field(default_factory=Counter)  # by reason
    written: dict[str, int] = field(default_factory=dict)  # by file

    def line(self) -> str:
        files = len(self.written)
        counts = sorted(set(self.written.values()))
        text = f"{self.split}: {self.read:,} {self.unit} read, {', '.join(f'{count:,}' for count in counts)} written"
        text += f" to each of {files} files" if files > 1 else ""
        for reason, count in self.left_out.items():
            text += f", {count:,} left out ({reason})"
        return text


def prepare(recipe: Recipe, raw: Path, output: Path) -> list[Account]:
    """Write all files of a task below ``output / recipe.output``.

    Raises UserError for a raw file that is missing or wrong, for a template that does not fit, and if a file holds
    another number of rows than were to be written. Nothing is written before every row is rendered.
    """
    try:
        found = recipe.read(raw)
    except UserError:
        raise
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # JSON, but not of this data set
        raise UserError(f"{recipe.output}: the raw files hold something else than those of {recipe.source} "
                        f"({type(error).__name__}: {error})") from error
    except KeyError as error:
        raise UserError(f"{recipe.output}: a raw row has no field {error}; are these the files of {recipe.source}?"
                        ) from error
    folder = output / recipe.output
    files, accounts = (_texts if recipe.text else _rows)(recipe, found)
    for (account, name), content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="")
        accounts[account].written[name] = _count(path)
    for account in accounts.values():
        expected = account.read - account.left_out.total()
        for name, count in account.written.items():
            if count != expected:
                raise UserError(f"{folder / name}: {count} {account.unit}, expected {expected}")
    _write_source(recipe, folder, list(accounts.values()))
    return list(accounts.values())


def _rows(recipe: Recipe, found: dict[str, list[dict]]) -> tuple[dict, dict[str, Account]]:
    files, accounts = {}, {}
    for split, rows in found.items():
        if not rows:
            raise UserError(f"{recipe.output}: the raw files hold no row for {split}")
        account = accounts[split] = Account(split, len(rows))
        account.left_out.update(row["left_out"] for row in rows if "left_out" in row)
        for name, prompt in recipe.prompts.items():
            what = f"{recipe.file.name}: {name}: {split}"
            lines = [line_of(render(prompt, row, f"{what}: row {place}"))
                     for place, row in enumerate(rows, start=1) if "left_out" not in row]
            files[split, f"{name}/{split}.jsonl"] = "".join(lines)
    return files, accounts


def line_of(row: dict) -> str:
    """One line of JSON, also for readers that take the line ends of Unicode for such."""
    text = json.dumps(row, ensure_ascii=False)
    for end in "\x85\u2028\u2029":
        text = text.replace(end, f"\\u{ord(end):04x}")
    return text + "\n"


def _texts(recipe: Recipe, found: dict[str, str]) -> tuple[dict, dict[str, Account]]:
    files, accounts = {}, {}
    for name, split in recipe.text.items():
        if split not in found:
            raise UserError(f"{recipe.file.name}: text: {name}: the reader has no split {split!r}, only {[*found]}")
        if not found[split].strip():
            raise UserError(f"{recipe.output}: the raw text for {name} is empty")
        files[split, name] = found[split]
        accounts[split] = Account(split, found[split].count("\n"), unit="lines")
    return files, accounts


def _count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def strangers(recipe: Recipe, output: Path, accounts: list[Account]) -> list[Path]:
    """Data files in the task's folder that this run did not write, and that the evaluator would read as well."""
    folder = output / recipe.output
    ours = {folder / name for account in accounts for name in account.written}
    return sorted(path for path in folder.rglob("*.json*") if path not in ours)


def _write_source(recipe: Recipe, folder: Path, accounts: list[Account]) -> None:
    lines = [recipe.title, f"source: {recipe.source}", f"licence: {recipe.licence}"]
    lines += [f"note: {recipe.note}"] if recipe.note else []
    lines += [account.line() for account in accounts]
    with replacing(folder / "SOURCE.txt") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def render(prompt: Prompt, row: dict, what: str) -> dict:
    """One row as it is written. `what` names recipe, prompt and row in the message of a UserError."""
    known = dict(row)
    if prompt.example is not None:
        known["examples"] = "".join(_text(prompt.example, example, what) for example in _value(row, "examples", what))
    prepared: dict = {}
    if prompt.inputs is not None:
        prepared["inputs_pretokenized"] = _text(prompt.inputs, known, what)
    if prompt.choices is not None:
        prepared["choices_pretokenized"] = _filled_in(prompt.choices, known, f"{what}: choices")
    if prompt.targets is not None:
        prepared["targets_pretokenized"] = _filled_in(prompt.targets, known, f"{what}: targets")
    if prompt.label is not None:
        prepared["label"] = _label(row, prompt, len(prepared["choices_pretokenized"]), what)
    return prepared | {name: _value(row, name, what) for name in prompt.keep}


def _label(row: dict, prompt: Prompt, choices: int, what: str) -> int:
    label = _value(row, prompt.label, what)
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < choices:
        raise UserError(f"{what}: {prompt.label}: {label!r} is not the place of one of {choices} choices")
    return label


def _filled_in(templates: str | tuple[str, ...], row: dict, what: str) -> list[str]:
    """A list of texts: the field's own if the template is nothing but one field that holds a list."""
    if isinstance(templates, str):
        names = fields_of(templates, what)
        if len(names) == 1 and templates == "{" + names[0] + "}":
            value = _value(row, names[0], what)
            if isinstance(value, list):
                if not value or not all(isinstance(entry, str) for entry in value):
                    raise UserError(f"{what}: {names[0]}: expected a list of texts, found {value!r}")
                return list(value)
        templates = (templates,)
    return [_text(template, row, what) for template in templates]


def _text(template: str, row: dict, what: str) -> str:
    values = {}
    for name in fields_of(template, what):
        value = _value(row, name, what)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise UserError(f"{what}: {name}: {value!r} is not a text")
        values[name] = value
    return template.format(**values)


def _value(row: dict, name: str, what: str):
    if name not in row:
        raise UserError(f"{what}: there is no field {name!r}; the row has {', '.join(map(str, row))}")
    return row[name]
