"""A look at all tasks and all of their data before there is a model: hours of scoring do not end at a bad row.

Needs no torch, so that what is wrong is said at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.config import TaskConfig
from evaluation.discovery import data_files, missing
from evaluation.tasks import task_class
from glm.errors import UserError


@dataclass(frozen=True)
class Found:
    """What a look at task files and data has brought: rows of every file by its path, or why a task has none."""

    rows: dict[Path, int]
    reason: str | None = None


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
            found[config.name] = Found({path: task_class(config).check(config, path) for path in paths}, reason)
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError("\nerror: ".join(faults))
    return found
