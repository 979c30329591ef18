"""From what a user names to task files, and from a task to its data files; nothing is silently left out."""

from __future__ import annotations

import contextlib
import glob
import os
from collections import deque
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PureWindowsPath

from evaluation.config import DEFAULT_PATTERN, LONGEST, TaskConfig
from evaluation.task_file import load_task
from runtime.errors import Faults, UserError
from runtime.reading import START, open_file, recognised
from runtime.show import nearest

SUFFIXES = (".yaml", ".yml")
ROWS = (".json", ".jsonl")
MOST_LOOKED_AT = 100
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
        hint = f"did you mean {near}?" if (near := _near(path)) else "name task files, folders of them, or globs"
        raise UserError(f"{path}: there is no such file or folder; {hint}")
    parts = Path(path).parts
    begin = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    root, pattern = Path(*parts[:begin]), os.path.join(*parts[begin:])
    names = {*files_below(root, pattern), *files_below(root, os.path.join(pattern, "**", "*"))}  # folders match, too
    files = [root / name for name in sorted(names) if name.endswith(SUFFIXES)]
    if not files:
        raise UserError(f"{path}: the glob matches no task file (*.yaml, *.yml)")
    return files


def _near(path: str) -> str | None:
    """What stands beside where the path leads, and is spelt almost like it."""
    folder, name = os.path.split(os.path.normpath(path))
    with contextlib.suppress(OSError):
        beside = (each for each in os.listdir(folder or ".")
                  if each.endswith(SUFFIXES) or os.path.isdir(os.path.join(folder, each)))
        if close := nearest(name, beside, 0.75):
            return os.path.join(folder, close)
    return None


def _below(folder: str) -> list[Path]:
    """All task files below a folder, but for hidden ones."""
    return [Path(folder, name) for name in files_below(folder, "**/*") if name.endswith(SUFFIXES)]


def load_tasks(paths: Sequence[str | Path], data_path: str | Path, longest: int = LONGEST) -> list[TaskConfig]:
    """The tasks of all files that the paths name. longest: tokens that the model takes.

    Raises UserError with the faults of all files, a line each.
    """
    tasks, faults = {}, Faults()
    for file in find_task_files(paths):
        with faults.noted():
            task = load_task(file, data_path, longest)
            if task.name in tasks:
                raise UserError(f"{file}: name: {task.name!r} is the name of the task in {tasks[task.name].source} too")
            tasks[task.name] = task
    faults.tell()
    return list(tasks.values())


def data_files(config: TaskConfig) -> dict[str, list[Path]]:
    """{group: its files, sorted}; a group without files has an empty list."""
    pattern = config.file_pattern
    patterns = pattern if isinstance(pattern, dict) else {ALL: pattern}
    return {group: _matching(Path(config.path), each) for group, each in patterns.items()}


def _matching(folder: Path, pattern: str) -> list[Path]:
    names = files_below(folder, pattern)
    if pattern == DEFAULT_PATTERN:  # not what editors keep beside a file, such as rows.jsonl~
        names = [name for name in names if name.endswith(ROWS)]
    return [folder / name for name in names]


def missing(config: TaskConfig) -> str | None:
    """Why a task cannot be scored, as one line: no folder, a group that matches no file, a file without a row."""
    folder = Path(config.path)
    if os.path.isfile(folder):  # unlike Path's, not startled by names that are too long
        return f"{config.source}: path: {folder} is a file; name its folder here, and the file in file_pattern"
    if not os.path.isdir(folder):
        return f"{config.source}: path: there is no folder {folder}; {_remedy(folder, config)}"
    for group, files in data_files(config).items():
        if not files:
            pattern = config.file_pattern[group] if isinstance(config.file_pattern, dict) else config.file_pattern
            return (f"{config.source}: file_pattern: group {group}: {pattern} matches no file in {config.path}"
                    f"{_other_files(folder)}")
        for file in files:
            if _is_blank(file):
                return f"{config.source}: {file} is empty"
    return None


def _remedy(folder: Path, config: TaskConfig) -> str:
    """What most likely makes a task's folder be found."""
    if "~" in folder.parts or "$" in str(folder):
        return "~ and names such as $HOME are not replaced here; write the folder out, from / on"
    if "\\" in str(folder):
        return f"folders are separated by /: {PureWindowsPath(folder).as_posix()}"
    beside = folder.is_relative_to(Path(config.source).parent)
    return ("set DATA_PATH (--data-path) to where the data is, or make it with: bash scripts/prepare_data.sh"
            + (" (a path that begins with ./ is beside the task file)" if beside else ""))


def _other_files(folder: Path) -> str:
    """For the message: what a folder holds in place of what was looked for."""
    for name in files_below(folder, "**/*")[:MOST_LOOKED_AT]:
        with contextlib.suppress(UserError, OSError), open_file(folder / name) as file:
            if kind := recognised(file.read(START)):
                return f"; {name} is {kind}"
    return ""


def _is_blank(file: Path) -> bool:
    """White space or an empty JSON list. A file that cannot be read is left to the reader's message."""
    try:
        with open(file, "rb") as stream:
            blocks = iter(lambda: stream.read(1 << 20), b"")
            return all(block.translate(None, b" \t\r\n") in (b"", b"[]") for block in blocks)
    except OSError:
        return False


ANY_FOLDERS = "**"


def files_below(folder: str | os.PathLike, pattern: str) -> list[str]:
    """Names relative to the folder, sorted. A pattern is as for glob.glob, hidden names and `**` included.

    Of several names of one file that which goes through no link is taken, else the first. A folder is walked once for
    all that the pattern may still match in it, so that links cannot make the walk long.
    """
    parts = [part for part in PurePath(pattern).parts if part != "."]
    found: list[tuple[bool, str, str]] = []  # through a link, name, real path
    waiting = deque([("", _past_folders(parts, {0}), False)])
    seen = set()
    while waiting:
        inside, states, through_link = waiting.popleft()
        here = os.path.join(folder, inside)
        if (real := (os.path.realpath(here), frozenset(states))) in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            name, is_link = os.path.join(inside, entry.name), through_link or entry.is_symlink()
            if os.path.isdir(entry.path):
                if after := _after(parts, states, entry.name):  # links last: a folder is known by its own name
                    (waiting.append if is_link else waiting.appendleft)((name, after, is_link))
            elif len(parts) - 1 in states and _fits(entry.name, parts[-1]) and os.path.isfile(entry.path):
                found.append((is_link, name, os.path.realpath(entry.path)))
    name_of: dict[str, str] = {}
    for _, name, real_path in sorted(found):
        name_of.setdefault(real_path, name)
    return sorted(name_of.values())


def _after(parts: list[str], states: set[int], name: str) -> set[int]:
    """How many parts of the pattern may be matched when this folder's name has been, too."""
    after = {state if parts[state] == ANY_FOLDERS else state + 1
             for state in states if state < len(parts) and _fits(name, parts[state])}
    return _past_folders(parts, after)


def _fits(name: str, part: str) -> bool:
    is_hidden = name.startswith(".") and not part.startswith(".")
    return not is_hidden and (part == ANY_FOLDERS or fnmatchcase(name, part))


def _past_folders(parts: list[str], states: set[int]) -> set[int]:
    """With those behind a `**`, which may stand for no folder at all."""
    for state in sorted(states):
        while state < len(parts) and parts[state] == ANY_FOLDERS:
            state += 1
            states = states | {state}
    return states
