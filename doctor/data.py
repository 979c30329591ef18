"""The data of evaluation tasks: task files that can be read, and a file with something in it for every group."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from doctor.finding import Finding, error
from runtime.errors import UserError


@dataclass(frozen=True)
class Data:
    """tasks: names of those whose data is there. faults: of task files. missing: why tasks have no data. unreadable:
    data files that this user may not read."""

    path: str
    is_folder: bool
    tasks: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def look(paths: Sequence[str], data_path: Path) -> Data:
    """Looks at names, not at rows: python -m evaluation --check reads these. Needs PyYAML where tasks are named."""
    is_folder = data_path.is_dir()
    if not paths:
        return Data(str(data_path), is_folder)
    from evaluation.discovery import data_files, load_tasks, missing

    try:
        configs = load_tasks(paths, data_path)
    except UserError as fault:
        return Data(str(data_path), is_folder, faults=tuple(str(fault).split("\nerror: ")))
    reasons = {config.name: missing(config) for config in configs}
    files = [file for config in configs for group in data_files(config).values() for file in group]
    return Data(str(data_path), is_folder, tuple(name for name, reason in reasons.items() if reason is None),
                missing=tuple(reason for reason in reasons.values() if reason),
                unreadable=tuple(str(file) for file in files if not os.access(file, os.R_OK)))


def check(data: Data, is_named: bool, where: str) -> Iterator[Finding]:
    """is_named: the user said where the data is. Tasks whose data would be in a folder that is not there have one line
    together."""
    lost = [reason for reason in data.missing if f"no folder {data.path}{os.sep}" in reason]
    if not data.is_folder and (is_named or lost):
        lacking = f"; {len(lost)} of the tasks that were named {'has' if len(lost) == 1 else 'have'} no data"
        yield error("data-path", where, f"DATA_PATH={data.path}: no such folder{lacking if lost else ''}",
                    f"export DATA_PATH=/the/folder, or bash scripts/prepare_data.sh --raw /data/raw --output "
                    f"{shlex.quote(data.path)}")
    for fault in data.faults:
        remedy = ("name those of tasks/, or your own" if "there is no such file" in fault else
                  "edit the file (docs/evaluate-your-own-tasks.md has all keys)")
        yield error("task-file", where, fault, remedy)
    for reason in data.missing if data.is_folder else [each for each in data.missing if each not in lost]:
        yield error("task-data", where, reason, "bash scripts/prepare_data.sh --list, and --allow-missing goes on "
                    "without it")
    for file in data.unreadable:
        yield error("data-readable", where, f"{file} cannot be read by this user", f"chmod a+r {shlex.quote(file)}")
