"""BIG-bench-lite, as far as BIG-Bench Hard republishes it: formal fallacies and logical deduction."""

from __future__ import annotations

import re
from pathlib import Path

from runtime.errors import UserError
from tools.preparing.raw import index_of, read_json


def formal_fallacies(raw: Path) -> dict[str, list[dict]]:
    """Fields: argument (text and question), label (valid, invalid)."""
    path = raw / "big-bench-lite-partial" / "formal_fallacies.json"
    rows = []
    for place, example in enumerate(_examples(path), start=1):
        argument, _, _ = example["input"].partition("\nOptions:")
        rows.append({"argument": argument.strip(),
                     "label": index_of(example["target"], ["valid", "invalid"], path, place, "target")})
    return {"test": rows}


def logical_deduction(raw: Path) -> dict[str, list[dict]]:
    """A split for each number of objects. Fields: paragraph, choices (a statement each), label."""
    folder = raw / "big-bench-lite-partial"
    return {f"{number}_objects": _deduction(folder / f"logical_deduction_{number}_objects.json")
            for number in ("three", "five", "seven")}


def _deduction(path: Path) -> list[dict]:
    rows = []
    for place, example in enumerate(_examples(path), start=1):
        paragraph, _, listed = example["input"].partition("\nOptions:\n")
        options = dict(re.findall(r"^(\([A-Z]\)) (.+?)\s*$", listed, re.MULTILINE))
        if not options:
            raise UserError(f"{path}: row {place}: input: expected options (A), (B), ...")
        rows.append({"paragraph": paragraph.strip(), "choices": list(options.values()),
                     "label": index_of(example["target"], list(options), path, place, "target")})
    return rows


def _examples(path: Path) -> list[dict]:
    content = read_json(path)
    examples = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(examples, list):
        raise UserError(f"{path}: expected an object with the list examples")
    return examples
