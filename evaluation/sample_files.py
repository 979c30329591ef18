"""The files of samples/: whether all of them can be there together, and which of them a run may take away.

Names come from tasks and data files. What is wrong with them is said before anything is scored, not when the last task
is written. What lies in the folder and is not in the record of a run (settings.json) is somebody else's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from runtime.errors import UserError
from runtime.files import name_key, safe_name, temporary_name

SAMPLES = "samples"
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes that file systems, and Linux, allow


def sample_folders(names: Sequence[str]) -> dict[str, str]:
    """A folder below samples/ for every task: its name, made fit for a file system, and no two the same, either where
    capitals do not count."""
    found: dict[str, str] = {}
    taken = set()
    for name in names:
        stem = folder = safe_name(name)
        number = 2
        while name_key(folder) in taken:
            folder, number = f"{stem}-{number}", number + 1
        taken.add(name_key(folder))
        found[name] = folder
    return found


def sample_path(output: Path, folder: str, relative: str, files: Container[str]) -> Path:
    """Where the items of a task's data file are kept. relative: its path; files: the paths of all the task's files, of
    which "a" would else share a name with "a.jsonl"."""
    is_fit = relative.endswith(".jsonl") and relative.removesuffix(".jsonl") not in files
    return output / SAMPLES / folder / (relative if is_fit else f"{relative}.jsonl")


def sample_names(tasks: Mapping[str, Sequence[str]]) -> list[str]:
    """Paths below samples/ of the data files (relative paths) of each task."""
    folders = sample_folders(list(tasks))
    root = Path(SAMPLES)
    return [sample_path(Path(), folders[task], file, known).relative_to(root).as_posix()
            for task, files in tasks.items() for known in [frozenset(files)] for file in files]


def check_names(output: Path, tasks: Mapping[str, Sequence[str]]) -> None:
    """Raises UserError, with a line for each, where samples of data files cannot be written: a name that is too long,
    or two that are one file to some system, or a file and a folder."""
    faults, places = [], {}
    files = (f"task {task}: {file}" for task, files in tasks.items() for file in files)
    for file, name in zip(files, sample_names(tasks), strict=True):
        path = (output / SAMPLES / name).absolute()
        longest = temporary_name(path)
        if len(os.fsencode(longest.name)) > LONGEST_NAME or len(os.fsencode(longest)) > LONGEST_PATH:
            faults.append(f"{file}: the name of its file of samples, {name}, would be too long; shorten the data's")
        own = PurePosixPath(name_key(name))
        for place in (own, *own.parents[:-1]):
            is_file, before = places.setdefault(place, (place == own, file))
            if before is not file and (is_file or place == own):
                faults.append(f"{file} and {before}: their samples would be one file, or a file and a folder of one "
                              f"name, where capitals do not count ({name}); rename one of them")
                break
    if faults:
        raise UserError("\nerror: ".join(faults))


def check_links(output: Path, names: Iterable[str]) -> None:
    """Raises UserError where a folder of the samples is a link: what it leads to is not this run's."""
    for folder in sorted({parent for name in names for parent in _folders(output, name)}):
        if folder.is_symlink():
            raise UserError(f"--output {output}: {folder.relative_to(output)} is a link, through which nothing is "
                            "written; remove it, or name another --output")


def remove(output: Path, names: Iterable[object]) -> None:
    """Take away samples that an earlier run has written, by the names in its record, never through a link."""
    for name in names:
        if isinstance(name, str) and _is_inside(name) and not any(map(os.path.islink, _folders(output, name))):
            with contextlib.suppress(OSError):
                (output / SAMPLES / name).unlink()


def _folders(output: Path, name: str) -> list[Path]:
    """samples/ and the folders below it that lead to a file."""
    return [output / SAMPLES / parent for parent in PurePosixPath(name).parents]


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".jsonl" and "\0" not in name and not path.is_absolute() and ".." not in path.parts
