"""From what a user names to task files, and from a task to its data files; nothing is silently left out."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from evaluation.config import TaskConfig, load_task
from glm.errors import UserError

SUFFIXES = (".yaml", ".yml")
ALL = "all"  # the group of a task that names none


def find_task_files(paths: Sequence[str | Path]) -> list[Path]:
    """The task files that files, folders (with all below) and globs name: in this order, each once.

    Raises UserError for a path that names no task file.
    """
    found = {}
    for path in paths:
        for file in _files_of(str(path)):
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _files_of(path: str) -> list[Path]:
    if os.path.isfile(path):
        if not path.endswith(SUFFIXES):
            raise UserError(f"{path}: is no task file; these end in {' or '.join(SUFFIXES)}")
        return [Path(path)]
    if os.path.isdir(path):
        files = _below(path)
        if not files:
            raise UserError(f"{path}: the folder holds no task file (*.yaml, *.yml)")
        return files
    if not glob.has_magic(path):
        raise UserError(f"{path}: there is no such file or folder; name task files, folders of them, or globs")
    files = []
    for match in sorted(glob.glob(path, recursive=True)):
        files += _below(match) if os.path.isdir(match) else [Path(match)] if match.endswith(SUFFIXES) else []
    if not files:
        raise UserError(f"{path}: the glob matches no task file (*.yaml, *.yml)")
    return files


def _below(folder: str) -> list[Path]:
    """All task files below a folder, but for hidden ones."""
    names = glob.glob("**/*", root_dir=folder, recursive=True)
    return [Path(folder, name) for name in sorted(names)
            if name.endswith(SUFFIXES) and os.path.isfile(os.path.join(folder, name))]


def load_tasks(paths: Sequence[str | Path], data_path: str | Path) -> list[TaskConfig]:
    """The tasks of all files that the paths name. UserError with the faults of all files, a line each."""
    tasks, faults, file_of_name = [], [], {}
    for file in find_task_files(paths):
        try:
            task = load_task(file, data_path)
        except UserError as error:
            faults.append(str(error))
            continue
        if task.name in file_of_name:
            faults.append(f"{file}: name: {task.name!r} is the name of the task in {file_of_name[task.name]} too")
        file_of_name.setdefault(task.name, file)
        tasks.append(task)
    if faults:
        raise UserError("\nerror: ".join(faults))
    return tasks


def data_files(config: TaskConfig) -> dict[str, list[Path]]:
    """{group: its files, sorted}; a group without files has an empty list."""
    pattern = config.file_pattern
    patterns = pattern if isinstance(pattern, dict) else {ALL: pattern}
    return {group: _matching(Path(config.path), each) for group, each in patterns.items()}


def _matching(folder: Path, pattern: str) -> list[Path]:
    names = sorted(set(glob.glob(pattern, root_dir=folder, recursive=True)))
    return [folder / name for name in names if (folder / name).is_file()]


def missing(config: TaskConfig) -> str | None:
    """Why a task cannot be scored, as one line: no folder, a group that matches no file, a file without a row."""
    folder = Path(config.path)
    if os.path.isfile(folder):  # unlike Path's, not startled by names that are too long
        return f"{config.source}: path: {folder} is a file; name its folder here, and the file in file_pattern"
    if not os.path.isdir(folder):
        hint = " (a path that begins with ./ is beside the task file)" if _is_beside(folder, config) else ""
        return (f"{config.source}: path: there is no folder {folder}; set DATA_PATH (--data-path) to where the data "
                f"is, or make it with tools/prepare_data.py{hint}")
    for group, files in data_files(config).items():
        if not files:
            pattern = config.file_pattern[group] if isinstance(config.file_pattern, dict) else config.file_pattern
            return f"{config.source}: file_pattern: group {group}: {pattern} matches no file in {config.path}"
        for file in files:
            if _is_blank(file):
                return f"{config.source}: {file} is empty"
    return None


def _is_beside(folder: Path, config: TaskConfig) -> bool:
    return folder.is_relative_to(Path(config.source).parent)


def _is_blank(file: Path) -> bool:
    """White space or an empty JSON list. A file that cannot be read is left to the reader's message."""
    try:
        with open(file, "rb") as stream:
            blocks = iter(lambda: stream.read(1 << 20), b"")
            return all(block.translate(None, b" \t\r\n") in (b"", b"[]") for block in blocks)
    except OSError:
        return False
