"""Prepared files on disk, and the account of rows in and rows out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import UserError
from runtime.files import replacing
from tools.preparing.recipes import Recipe
from tools.preparing.rendering import render


@dataclass
class Account:
    """Rows (lines for a text) of one split: read, left out by reason, and written to each file."""

    split: str
    read: int
    unit: str = "rows"
    left_out: Counter = field(default_factory=Counter)
    written: dict[str, int] = field(default_factory=dict)

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
