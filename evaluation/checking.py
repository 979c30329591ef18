"""A look at all tasks and all of their data before there is a model: hours of scoring do not end at a bad row.

Needs no torch, so that what is wrong is said at once.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.config import STRATEGIES, GenerationTaskConfig, TaskConfig, TaskType
from evaluation.data import read_objects
from evaluation.discovery import data_files, missing
from evaluation.hashing import hash_file
from evaluation.own_code import calling, returned
from evaluation.tasks import task_class
from runtime.errors import UserError
from runtime.show import counted
from runtime.strict_yaml import read_mapping


@dataclass(frozen=True)
class Found:
    """What a look at task files and data has brought: rows of every file by its path, or why a task has none.

    notes: what is most likely a mistake, and can be scored all the same."""

    rows: dict[Path, int]
    reason: str | None = None
    notes: tuple[str, ...] = ()


def look(configs: Sequence[TaskConfig], allow_missing: bool) -> dict[str, Found]:
    """Every task's data by the task's name, read and checked row by row; needs no model.

    Raises UserError with a line for every task at fault, missing ones included unless allowed.
    """
    found, faults = {}, []
    for config in configs:
        reason = missing(config)
        if reason is not None and not allow_missing:
            faults.append(f"{reason} (--allow-missing goes on without it)")
            continue
        try:
            paths = [] if reason else [path for paths in data_files(config).values() for path in paths]
            rows = {path: _rows(config, path) for path in paths}
            found[config.name] = Found(rows, reason, (*_odd_choices(config, rows), *_copies(config, rows)))
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\nerror: ".join(faults))
    return found


def _rows(config: TaskConfig, path: Path) -> int:
    task, where = task_class(config), f"task {config.name}: {path}"
    with calling(config, where):
        rows = task.check(config, path)
    return returned(rows, type(rows) is int and rows > 0, task.check, "the number of the file's rows", where)


def _odd_choices(config: TaskConfig, paths: Iterable[Path]) -> Iterator[str]:
    if config.type is not TaskType.MULTICHOICE:
        return
    for path in paths:
        equal, empty = [], []
        with contextlib.suppress(UserError):  # a class of the task's own may read other files than these
            for line, row in read_objects(path):
                choices = [str(choice) for choice in _listed(row.get("choices", row.get("choices_pretokenized")))]
                equal += [line] * (len(set(choices)) < len(choices))
                empty += [line] * any(choice in ("", "[]") for choice in choices)
        for lines, what in ((equal, "equal choices, of which the first is taken"),
                            (empty, "an empty choice, which is scored as the end of the text")):
            if lines:
                yield f"{path}:{lines[0]}: {what} (in {counted(len(lines), 'row')} of this file)"


def _listed(value: object) -> list:
    return value if isinstance(value, list) else []


def _copies(config: TaskConfig, paths: Iterable[Path]) -> Iterator[str]:
    """Of files with the same contents: an editor's copy, or one split in the place of another."""
    by_size, by_contents = defaultdict(list), defaultdict(list)
    for path in paths:
        by_size[path.stat().st_size].append(path)
    for same in by_size.values():
        for path in same if len(same) > 1 else ():
            by_contents[hash_file(path)].append(path)
    for same in by_contents.values():
        if len(same) > 1:
            others = ", ".join(path.relative_to(config.path).as_posix() for path in same[1:4])
            yield f"{same[0]} has the same contents as {others}{' ...' * (len(same) > 4)}; all of them are scored"


def without_effect(config: TaskConfig) -> list[str]:
    """Keys that stand in a task's file and change nothing, unless a class of the task's own makes use of them."""
    if not isinstance(config, GenerationTaskConfig) or config.sampling_strategy != STRATEGIES[0] or config.module:
        return []
    written = [key.replace("-", "_") for key in read_mapping(config.source)]
    return [name for name in written if name in ("num_beams", "length_penalty", "no_repeat_ngram_size")]
