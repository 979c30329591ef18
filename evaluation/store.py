"""The journal of a run: every answer of the model, kept as soon as it is there, under a key made of its contents.

A line of journal.jsonl is {"key": ..., "answer": ...}, floats in full precision. Whenever the process dies, all whole
lines count; what is left of a torn one is cut off. Keys say what an answer belongs to (evaluation/hashing.py), so lines
of another run do no harm, and the first answer under a key is the one that holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from glm.errors import UserError
from glm.files import Grown

JOURNAL = "journal.jsonl"
GO_ON = "the same command goes on from here"


class Journal:
    """Answers by key, in memory and in a file that only grows. A context manager: closes the file."""

    def __init__(self, path: Path):
        """Reads what is there. Raises UserError where the file cannot be read or written."""
        self.path = path
        self.answers: dict[str, dict] = {}
        try:
            self._file = Grown(path)
            self._file.cut(self._read())
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None

    def _read(self) -> int:
        """Fills `answers`; how many bytes of the file are whole lines."""
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    value = json.loads(line)
                    self.answers.setdefault(value["key"], value["answer"])
                except (ValueError, KeyError, TypeError):
                    continue  # whatever damaged this line: its answer is computed again
        return whole

    def __contains__(self, key: str) -> bool:
        return key in self.answers

    def __getitem__(self, key: str) -> dict:
        return self.answers[key]

    def add(self, answers: Iterable[tuple[str, dict]]) -> None:
        """Keep the answers whose keys are new. Raises UserError where the disk takes no more; the file stays whole."""
        new = {}
        for key, answer in answers:
            if key not in self.answers:
                new.setdefault(key, answer)
        data = "".join(json.dumps({"key": key, "answer": answer}, allow_nan=False) + "\n"
                       for key, answer in new.items()).encode()
        try:
            self._file.add(data)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}; mend it, and {GO_ON}") from None
        self.answers |= new

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Which facts of a run are not those of an earlier one, as words: "dtype: float32, now bfloat16"."""
    def short(facts: Mapping[str, object], name: str) -> str:
        value = facts.get(name)
        text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 24 else text[:12] + "..."

    return [f"{name}: {short(before, name)}, now {short(now, name)}" for name in {**before, **now}
            if before.get(name) != now.get(name)]
