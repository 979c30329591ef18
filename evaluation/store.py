"""The journal of a run: every answer of the model, kept as soon as it is there, under a key made of its contents.

A line of journal.jsonl is {"key": ..., "answer": ..., "crc32": ...}, floats in full precision, the checksum that of the
bytes before it. Whenever the process dies, all whole lines count; what is left of a torn one is cut off, and a damaged
one is as if it were not there. Keys say what an answer belongs to (evaluation/hashing.py), so lines
of another run do no harm, and the first answer under a key is the one that holds.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from runtime.errors import UserError
from runtime.files import AppendOnlyFile

JOURNAL = "journal.jsonl"
GO_ON = "the same command goes on from here"
_CHECKSUM = b', "crc32": "'


class Journal:
    """Answers by key, in memory and in a file that only grows. A context manager: closes the file."""

    def __init__(self, path: Path):
        """Reads what is there. Raises UserError where the file cannot be read or written."""
        self.path = path
        self.answers: dict[str, dict] = {}
        try:
            self._file = AppendOnlyFile(path)
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
                    value = _checked(line)
                    self.answers.setdefault(value["key"], value["answer"])
                except (ValueError, KeyError, TypeError, RecursionError):
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
        data = b"".join(_line(key, answer) for key, answer in new.items())
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


def _line(key: str, answer: dict) -> bytes:
    content = json.dumps({"key": key, "answer": answer}, allow_nan=False).encode()[:-1]
    return content + _CHECKSUM + b'%08x"}\n' % zlib.crc32(content)


def _checked(line: bytes) -> dict:
    """Raises ValueError for a line that is not as it was written: one digit more or less would be another result."""
    content, _, end = line.rpartition(_CHECKSUM)
    if end != b'%08x"}\n' % zlib.crc32(content):
        raise ValueError("damaged")
    return json.loads(content + b"}")


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Which facts of a run are not those of an earlier one, as words: "dtype: float32, now bfloat16"."""
    def short(facts: Mapping[str, object], name: str) -> str:
        value = facts.get(name)
        text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 24 else text[:12] + "..."

    return [f"{name}: {short(before, name)}, now {short(now, name)}" for name in {**before, **now}
            if before.get(name) != now.get(name)]
