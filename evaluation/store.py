"""The journal of a run: every answer of the model, kept as soon as it is there, under a key made of its contents.

A line of journal.jsonl is {"key": ..., "answer": ...}, floats in full precision. Whenever the process dies, all whole
lines count; what is left of a torn one is cut off. Keys say what an answer belongs to (evaluation/hashing.py), so lines
of another run do no harm, and the first answer under a key is the one that holds.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from glm.errors import UserError

JOURNAL, LOCK = "journal.jsonl", ".lock"
GO_ON = "the same command goes on from here"


class Journal:
    """Answers by key, in memory and in a file that only grows. A context manager: closes the file."""

    def __init__(self, path: Path):
        """Reads what is there. Raises UserError where the file cannot be read or written."""
        self.path = path
        self.answers: dict[str, dict] = {}
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            self._whole = self._read()
            os.ftruncate(self._file, self._whole)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None

    def _read(self) -> int:
        """Fills `answers`; how many bytes of the file are whole lines."""
        whole = 0
        with open(self._file, "rb", closefd=False) as file:
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
            self._append(data)
        except OSError as error:
            os.ftruncate(self._file, self._whole)
            raise UserError(f"{self.path}: {error.strerror}; mend it, and {GO_ON}") from None
        self._whole += len(data)
        self.answers |= new

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._file, view):]

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class Lock:
    """Keeps a second run out of an output folder; whoever dies lets go of it."""

    def __init__(self, folder: Path):
        """Makes the folder. Raises UserError where that fails or another run holds the lock."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(f"--output {folder}: {error.strerror}; name a folder that can be written to") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise UserError(f"--output {folder}: another run is writing there; wait for its end, or name another "
                            "--output") from None
        except OSError:  # a file system without locks: two runs at once are then the user's own care
            pass

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Lock:
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
