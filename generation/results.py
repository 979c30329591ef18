"""What a run over a file leaves behind: results.jsonl, a text file per prompt, settings.json.

results.jsonl grows line by line as answers come, so a killed run loses nothing that it has answered; at the end its
lines are put into the order of the prompts.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from generation.prompts import PromptLine
from glm.errors import UserError
from glm.files import replacing

RESULTS, SETTINGS = "results.jsonl", "settings.json"
_LONGEST_NAME = 200  # bytes; file systems allow 255


def record(line: PromptLine, result) -> dict:
    """A line of results.jsonl: what infill.Result says, and which prompt it belongs to."""
    values = {"index": line.index} | ({} if line.id is None else {"id": line.id}) | {
        "prompt": line.text, "text": result.text, "blanks": result.blanks,
        "beams": [{"text": beam.text, "blanks": beam.blanks, "score": beam.score} for beam in result.beams],
        "finish_reason": result.finish_reason}
    return values if result.error is None else values | {"error": result.error}


class Results:
    """The output folder of one run. `done` are the lines that an earlier run has answered."""

    def __init__(self, folder: str | Path, lines: Sequence[PromptLine], resume: bool = False, overwrite: bool = False,
                 source: str = ""):
        """Makes the folder. source: where the lines come from, for messages. Raises UserError where the folder cannot
        be written, or holds results that nobody asked about."""
        self.folder, self.lines, self.resume, self.source = Path(folder), list(lines), resume, source
        self.path = self.folder / RESULTS
        self.names = file_names(lines)
        self.done: dict[int, dict] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK | os.X_OK):
                raise PermissionError(13, os.strerror(13))
        except OSError as error:
            raise UserError(f"--output-path {folder}: {error.strerror}") from None
        if self.path.exists() and not (resume or overwrite):
            raise UserError(f"{self.path} is there already; --resume goes on with it, --overwrite replaces it, "
                            f"or name another --output-path")

    def earlier_settings(self) -> dict | None:
        """settings.json of the run that is resumed; None if there is none."""
        path = self.folder / SETTINGS
        if not self.resume or not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path} is not valid JSON; the run cannot be resumed") from None

    def open(self, facts: dict) -> None:
        """Begin to write. facts: what makes the answers what they are; a resumed run must have been given the same.

        Keeps the earlier answers to the same prompts, without their last line if the writing of it was interrupted.
        """
        earlier = self.earlier_settings()
        if earlier is not None:
            for key, value in facts.items():
                before = earlier.get("facts", {}).get(key)
                if before != value:
                    raise UserError(f"{self.folder / SETTINGS}: the earlier run had {key} {_short(before)}, this one "
                                    f"has {_short(value)}; run with the same settings, or without --resume elsewhere")
        if self.resume and self.path.exists():
            self.done = self._earlier_answers()
        self._replace(self.done.values())
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in `close`)

    def _earlier_answers(self) -> dict[int, dict]:
        rows = self.path.read_text(encoding="utf-8", errors="replace").split("\n")
        kept = {}
        for number, row in enumerate(rows, 1):
            try:
                value = json.loads(row)
                index, key = value["index"], (value.get("id"), value["prompt"])
            except (ValueError, KeyError, TypeError):
                if number < len(rows) and row != "":  # every complete line ends with a newline
                    raise UserError(f"{self.path}:{number}: not a line of results; the run cannot be resumed") from None
                continue
            line = self.lines[index] if 0 <= index < len(self.lines) else None
            if line is not None and (line.id, line.text) == key and "error" not in value:
                kept[index] = value
        return kept

    def add(self, index: int, result) -> None:
        """Write the answer to line `index`, and its text file with a line per beam if there is an answer."""
        self.done[index] = record(self.lines[index], result)
        path = self.path
        try:
            self._file.write(json.dumps(self.done[index], ensure_ascii=False) + "\n")
            self._file.flush()
            if result.beams:
                name = self.names[index]
                path = self.folder / name if name else timed_path(self.folder, result.prompt)
                path.write_text("".join(f"{beam.text}\n" for beam in result.beams), encoding="utf-8", errors="replace")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; mend it and go on with --resume") from None

    def close(self) -> None:
        """Put the lines in order."""
        self._file.close()
        self._replace(self.done[index] for index in sorted(self.done))

    def write_settings(self, values: dict) -> None:
        _write(self.folder / SETTINGS, json.dumps(values, ensure_ascii=False, indent=2, default=str) + "\n")

    def _replace(self, records) -> None:
        _write(self.path, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in records))


def _write(path: Path, text: str) -> None:
    """Replace a file as a whole: whoever is interrupted leaves the old one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def file_names(lines: Sequence[PromptLine]) -> list[str | None]:
    """A name per line from its id, all different and none leading out of the folder; None for lines without id."""
    names, taken = [], set()
    for line in lines:
        if line.id is None:
            names.append(None)
            continue
        stem = safe_name(line.id)
        name, number = f"{stem}.txt", 2
        while name in taken:
            name, number = f"{stem}-{number}.txt", number + 1
        taken.add(name)
        names.append(name)
    return names


def timed_path(folder: Path, prompt: str) -> Path:
    """A file that is not there yet, named after the first 20 characters of the prompt and the time."""
    stem = f"{safe_name(prompt[:20])}-{time.strftime('%m-%d-%H-%M-%S')}"
    path, number = folder / f"{stem}.txt", 2
    while path.exists():
        path, number = folder / f"{stem}-{number}.txt", number + 1
    return path


def safe_name(text: str) -> str:
    """text as part of a file name: no separators or control characters, no leading dot, not too long."""
    name = re.sub(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", "_", text).strip()
    name = re.sub(r"^\.+", "_", name) or "_"
    return name.encode("utf-8")[:_LONGEST_NAME].decode("utf-8", "ignore")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
