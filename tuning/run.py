"""The folder of a training: what it began with, its log, and its state, so that the same command goes on after any end.

    run.json         settings and hashes of what is read; whether the run is finished
    log.jsonl        a line for each step, written at once
    parameters.json  names of what decays and what does not
    state.pt         what the next step depends on; gone when the run is finished

A state is written aside and renamed, after the log's lines are on the disk. A run that goes on cuts its log back to its
state and does the steps behind it again, which gives the same lines: they are functions of the state and the settings.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from runtime import parallel
from runtime.errors import UserError, shown
from runtime.files import AppendOnlyFile, replacing, write_torch
from runtime.reading import parse_json, read_json, read_text

FACTS, LOG, PARAMETERS, STATE = "run.json", "log.jsonl", "parameters.json", "state.pt"
SETTINGS, CONTENTS, FINISHED = "settings", "contents", "finished"  # keys of run.json
GO_ON = "the same command goes on from there"


class Run:
    """Only the first process writes; the others pass is_writer=False."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], contents: Mapping[str, str], is_writer: bool = True):
        """Begins a run or takes up the one that is there.

        settings: flag -> value, of those that decide what is computed. contents: what is read -> its hash.
        Raises UserError where the folder holds something else, or a run with other settings or contents.
        """
        self.folder, self.is_writer = folder, is_writer
        self.facts = json.loads(json.dumps({SETTINGS: dict(settings), CONTENTS: dict(contents)}, default=str))
        self.is_finished = False
        self._log: AppendOnlyFile | None = None
        file = folder / FACTS
        if file.is_file():
            before = read_json(file)
            _check_ours(before, folder)
            if not is_writer or (folder / LOG).exists() or (folder / STATE).exists():
                _compare(before, self.facts, folder)
                self.is_finished = bool(before.get(FINISHED))
                return  # else its command was refused before the first step, and another one may begin here
        if found := [name for name in (LOG, STATE, "latest", "latest_checkpointed_iteration.txt", "config.json",
                                       "pytorch_model.bin") if (folder / name).exists()]:
            raise UserError(f"--save {folder} holds {', '.join(found)}, but no training ({FACTS}); name another folder")
        if is_writer:
            _write_json(file, self.facts)

    def begin_log(self, step: int) -> None:
        """Keeps the lines of the first `step` steps. Raises UserError where they are not all there."""
        if not self.is_writer:
            return
        path = self.folder / LOG
        kept = read_text(path).split("\n")[:-1][:step] if path.is_file() else []
        try:
            is_whole = [json.loads(line)["step"] for line in kept] == list(range(step))
        except (ValueError, KeyError, TypeError):
            is_whole = False
        if not is_whole:
            raise UserError(f"{path} lacks lines of the first {step} steps, or was changed; put it back, or delete "
                            f"{self.folder / STATE} to begin again")
        self._log = AppendOnlyFile(path)
        self._log.cut(len("".join(line + "\n" for line in kept).encode()))

    def log(self, line: Mapping[str, Any]) -> None:
        if self._log is not None:
            self._log.add((json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n").encode())

    def write_parameters(self, decayed: Sequence[str], not_decayed: Sequence[str]) -> None:
        if self.is_writer:
            _write_json(self.folder / PARAMETERS, {"decayed": list(decayed), "not_decayed": list(not_decayed)})

    def state(self) -> dict[str, Any] | None:
        """The last one that was saved; None: the run begins. Raises UserError where it is damaged."""
        path = self.folder / STATE
        if not path.is_file():
            return None
        state = _read_state(path)
        if (parts := state.get("parts", 1)) != parallel.size():
            raise UserError(f"{path} was saved by {parts} tensor-parallel ranks, but {parallel.size()} are running; go "
                            f"on with --model-parallel-size {parts}, or name another --save")
        return state if parts == 1 else _read_state(self._part(state["step"]))

    def wrong_state(self) -> UserError:
        """What to say where the state does not fit the training."""
        return UserError(f"the state in {self.folder} is of another model; name another --save")

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Every rank calls it. With several tensor-parallel ranks each writes its part, and then the first one what
        names the step that all parts are of."""
        parallel.agree(lambda: self._save_state(dict(state)))
        if parallel.size() > 1:
            parallel.agree(lambda: self.is_writer and write_torch(
                self.folder / STATE, {"step": state["step"], "parts": parallel.size()}))
            self._drop_parts(state["step"])

    def _save_state(self, state: dict[str, Any]) -> None:
        if self._log is not None:
            os.fsync(self._log.number)
        if parallel.size() == 1 and self.is_writer:
            write_torch(self.folder / STATE, state)
        elif parallel.size() > 1 and parallel.data_parallel_rank() == 0:
            write_torch(self._part(state["step"]), state)

    def _part(self, step: int) -> Path:
        return self.folder / f"state-{step}-{parallel.rank():02d}.pt"

    def _drop_parts(self, step: int | None = None) -> None:
        """All but those of the step."""
        if self.is_writer:
            for path in self.folder.glob("state-*-*.pt"):
                if path.name.split("-")[1] != str(step):
                    path.unlink(missing_ok=True)

    def finish(self) -> None:
        """Everything else is written."""
        self.close()
        if self.is_writer:
            _write_json(self.folder / FACTS, self.facts | {FINISHED: True})
            (self.folder / STATE).unlink(missing_ok=True)
            self._drop_parts()
        self.is_finished = True

    def close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None


def _read_state(path: Path) -> dict[str, Any]:
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state["step"]
        return state
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError,
            pickle.UnpicklingError):
        raise UserError(f"{path} is damaged; delete it to begin again, or name another --save") from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    path = folder / LOG
    return [parse_json(line, str(path), number) for number, line in enumerate(read_text(path).splitlines(), 1)]


def _check_ours(before: Any, folder: Path) -> None:
    if not isinstance(before, dict) or not all(isinstance(before.get(key), dict) for key in (SETTINGS, CONTENTS)):
        raise UserError(f"{folder / FACTS} is not what a training wrote; name another --save")


def _compare(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    old, new = before[SETTINGS], now[SETTINGS]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            first, second = (f"{shown(side[name])}" if name in side else "its default" for side in (old, new))
            raise UserError(f"--{name.replace('_', '-')} is {second}, but the run in {folder} began with {first}; go "
                            "on with that, or name another --save")
    old, new = before[CONTENTS], now[CONTENTS]
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            raise UserError(f"{name}: not what the run in {folder} began with; put that back, or name another --save")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
