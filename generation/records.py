"""What a run over a file writes: results.jsonl, a text file per prompt, settings.json.

results.jsonl grows line by line as answers come, so a killed run loses nothing that it has answered; at the end its
lines are put into the order of the prompts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from generation.prompt_file import PromptLine
from runtime.errors import UserError
from runtime.files import AppendOnlyFile, Lock, name_key, replacing, safe_name
from runtime.reading import parse_json, read_bytes, read_json

RESULTS, SETTINGS = "results.jsonl", "settings.json"


def record(line: PromptLine, result) -> dict:
    """A line of results.jsonl: what generation.blanks.Result says, and which prompt it belongs to."""
    own = ({} if line.id is None else {"id": line.id}) | ({"fields": line.fields} if line.fields else {})
    values = {"index": line.index} | own | {
        "prompt": line.text, "text": result.text, "blanks": result.blanks,
        "beams": [{"text": beam.text, "blanks": beam.blanks, "score": beam.score} for beam in result.beams],
        "finish_reason": result.finish_reason}
    return values if result.error is None else values | {"error": result.error}


class Results:
    """The output folder of one run, locked against others; a context manager.

    done: the answers of an earlier run, by line. strange: how many answers there belong to other prompts.
    """

    def __init__(self, folder: str | Path, lines: Sequence[PromptLine], resume: bool = False, overwrite: bool = False,
                 source: str = ""):
        """Make the folder. source: where the lines come from, for messages. Raises UserError where the folder cannot
        be written, another run is writing there, or it holds results and neither resume nor overwrite is set."""
        self.folder, self.lines, self.resume, self.source = Path(folder), list(lines), resume, source
        self.path = self.folder / RESULTS
        self.names = file_names(lines)
        self.done: dict[int, dict] = {}
        self.strange = 0
        self._lock, self._file = Lock(self.folder, "--output-path"), None
        if self.path.exists() and not (resume or overwrite):
            self.close()
            raise UserError(f"{self.path} is there already; --resume goes on with it, --overwrite replaces it, "
                            f"or name another --output-path")
        foreign = () if self.path.exists() or overwrite else {SETTINGS, *self.names}.intersection(os.listdir(folder))
        if foreign:
            self.close()
            raise UserError(f"{self.folder / min(foreign)} is there already, and not of a run that is to be resumed; "
                            "--overwrite replaces it, or name another --output-path")

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._lock.close()

    def earlier_settings(self) -> dict | None:
        """settings.json of the run that is resumed; None if there is none."""
        path = self.folder / SETTINGS
        if not self.resume or not path.exists():
            return None
        try:
            values = read_json(path)
        except UserError as error:
            raise UserError(f"{error}; the run cannot be resumed") from None
        if isinstance(values, dict) and isinstance(values.get("facts", {}), dict):
            return values
        raise UserError(f"{path}: not the settings of a run; it cannot be resumed")

    def open(self, facts: dict, usual: dict | None = None) -> None:
        """Begin to write. facts: what makes the answers what they are; a resumed run must have been given the same.
        usual: the value of a fact that is not there.

        Keeps the earlier answers to the same prompts, without their last line if the writing of it was interrupted.
        """
        with _mending(self.path):
            if self.resume and self.path.exists():
                self.done = self._earlier_answers()
            if self.done:
                self._check_same(facts, usual or {})
            self._replace(self.done.values())
            if not self.done:  # before the new settings are there, nothing is answered; the old ones must not stay
                (self.folder / SETTINGS).unlink(missing_ok=True)
            self._file = AppendOnlyFile(self.path)

    def _check_same(self, facts: dict, usual: dict) -> None:
        path = self.folder / SETTINGS
        earlier = self.earlier_settings()
        if earlier is None:
            raise UserError(f"{self.path} has answers, but there is no {path} that says how they came about; run "
                            "without --resume elsewhere")
        before_all = earlier.get("facts", {})
        for key in {**facts, **before_all}:
            before, value = (each.get(key, usual.get(key)) for each in (before_all, facts))
            if before != value:
                raise UserError(f"{path}: the earlier run had {key} {_short(before)}, this one has {_short(value)}; "
                                "run with the same settings, or without --resume elsewhere")

    def _earlier_answers(self) -> dict[int, dict]:
        rows = read_bytes(self.path).decode("utf-8", "replace").split("\n")
        kept = {}
        for number, row in enumerate(rows, 1):
            try:
                value = parse_json(row, str(self.path), number)
                index, key = _identity(value)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                if number < len(rows) and row != "":  # every complete line ends with a newline
                    raise UserError(f"{self.path}:{number}: not a line of results; the run cannot be resumed") from None
                continue
            line = self.lines[index] if 0 <= index < len(self.lines) else None
            is_same = line is not None and (line.id, line.text, line.fields) == key
            self.strange += not is_same
            if is_same and "error" not in value:
                kept[index] = value
        return kept

    def add(self, index: int, result) -> None:
        """Write the answer to line `index`; before it, if there is an answer, its text file with a line per beam."""
        answer = record(self.lines[index], result)
        with _mending(self.path):
            if result.beams:
                name = self.names[index]
                path = self.folder / name if name else timed_path(self.folder, result.prompt)
                _write(path, "".join(f"{beam.text}\n" for beam in result.beams))
            self._file.add((json.dumps(answer, ensure_ascii=False) + "\n").encode("utf-8", "replace"))
        self.done[index] = answer

    def sort(self) -> None:
        """Put the lines in order."""
        with _mending(self.path):
            self._replace(self.done[index] for index in sorted(self.done))

    def write_settings(self, values: dict) -> None:
        with _mending(self.folder / SETTINGS):
            _write(self.folder / SETTINGS, json.dumps(values, ensure_ascii=False, indent=2, default=str) + "\n")

    def _replace(self, records) -> None:
        _write(self.path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in records))


def _identity(value) -> tuple[int, tuple]:
    """Which prompt a line of results.jsonl answers. Raises one of several errors for what `record` does not write."""
    if type(value["index"]) is not int or not isinstance(value["text"], str) or not isinstance(value["beams"], list):
        raise TypeError
    return value["index"], (value.get("id"), value["prompt"], value.get("fields", {}))


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole: an interrupted run leaves the old one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _mending(path: Path) -> Iterator[None]:
    """A UserError where the disk takes no more."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror}; what is answered is kept: mend it and go on with "
                        "--resume") from None


def file_names(lines: Sequence[PromptLine]) -> list[str | None]:
    """A name per line from its id, all different, also where capitals do not count, and none leading out of the folder;
    None for lines without id."""
    names, taken, last = [], set(), {}
    for line in lines:
        if line.id is None:
            names.append(None)
            continue
        stem = safe_name(line.id)
        number = last.get(name_key(stem), 0) + 1  # a million equal ids must not be counted from the first one each time
        while name_key(name := f"{stem}-{number}.txt" if number > 1 else f"{stem}.txt") in taken:
            number += 1
        last[name_key(stem)] = number
        taken.add(name_key(name))
        names.append(name)
    return names


def timed_path(folder: Path, prompt: str) -> Path:
    """A file that is not there yet, named after prompt and time: Once-upon-a-time_2026-11-28_02-49-02.txt.

    Of the prompt's first 20 characters letters and digits are kept, so that no shell takes the name for anything else.
    """
    words = re.sub(r"[\W_]+", "-", prompt[:20]).strip("-") or "prompt"
    stem = f"{safe_name(words)}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    path, number = folder / f"{stem}.txt", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.txt", number + 1
    return path


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
