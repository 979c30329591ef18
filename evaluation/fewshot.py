"""Examples in front of a question: rows with their answers, and which of them an item gets.

That is a function of seed, file and row alone: the same for every model, order, rank and limit. An item is no example
of itself, nor is a row of the same text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evaluation.config import ExampledTaskConfig
from evaluation.data import fault_of_row, is_text, read_objects
from runtime.errors import UserError


@dataclass(frozen=True)
class Pool:
    """The rows that examples are taken from."""

    config: ExampledTaskConfig
    path: Path  # of the questions
    rows: Sequence[dict[str, Any]]  # checked by `check`

    @property
    def is_own(self) -> bool:
        """Whether questions and examples are rows of one file."""
        return self.config.fewshot_file is None

    @cached_property
    def file(self) -> str:
        """What the draw knows the questions' file by."""
        return self.path.relative_to(self.config.path).as_posix()

    def examples(self, index: int, text: str) -> list[str]:
        """Those of an item, as they stand in front of its text, separators included: num_fewshot, or all there are."""
        found = []
        for place in self._order(index):
            if len(found) == self.config.num_fewshot:
                break
            row = self.rows[place]
            if (self.is_own and place == index) or row["inputs_pretokenized"] == text:
                continue
            found.append(f"{row['inputs_pretokenized']}{self.config.fewshot_answer_separator}{answer_of(row)}"
                         f"{self.config.fewshot_separator}")
        return found

    def _order(self, index: int) -> Iterator[int]:
        """All places of rows, as they stand or shuffled by an item's own hashes; as many as are asked for."""
        count, moved = len(self.rows), {}
        if self.config.fewshot_order == "first":
            yield from range(count)
            return
        for step in range(count):
            key = f"{self.config.fewshot_seed}\0{self.file}\0{index}\0{step}"
            other = step + int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % (count - step)
            yield moved.get(other, other)
            moved[other] = moved.get(step, step)


def pool(config: ExampledTaskConfig, path: Path) -> Pool:
    """The rows of the examples for a data file's questions. Raises UserError for rows that are none."""
    source = Path(path if config.fewshot_file is None else config.fewshot_file)
    rows = []
    for line, row in read_objects(source):
        fault = fault_of_row(row, config.type, True) or _fault(row)
        if fault:
            raise UserError(f"{source}:{line}: {fault}")
        rows.append(row)
    others = len(rows) - (config.fewshot_file is None)
    if others < config.num_fewshot:
        raise UserError(f"{config.source}: num_fewshot {config.num_fewshot}: {source} has {max(0, others)} rows for "
                        "examples")
    return Pool(config, Path(path), rows)


def _fault(row: dict[str, Any]) -> str | None:
    """Why a row cannot be an example, or the question behind one."""
    if "inputs" in row or not is_text(row.get("inputs_pretokenized")):
        return "field inputs_pretokenized: num_fewshot needs rows of texts, not of ids alone"
    try:
        answer_of(row)
    except (KeyError, IndexError, TypeError):
        return "num_fewshot needs rows with choices_pretokenized and label, or with targets_pretokenized"
    return None


def answer_of(row: dict[str, Any]) -> str:
    """What is right: the choice of the label, or the first target."""
    choices = row.get("choices_pretokenized")
    return row["targets_pretokenized"][0] if choices is None else choices[row["label"]]
