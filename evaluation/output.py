"""The folder of a run's results: whose it is, where samples are kept in it, and how its files are written.

The names of samples come from tasks and data files. What is wrong with them is said before anything is scored, not when
the last task is written. What lies in the folder and is not in the record of a run (settings.json) is somebody else's.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from evaluation.store import GO_ON, JOURNAL
from runtime.errors import Faults, UserError
from runtime.files import name_key, replacing, safe_name, temporary_name
from runtime.reading import LARGE, NoSuchFile, read_json

RESULTS, TIMINGS, REPORT, SETTINGS, SAMPLES = (
    "results.json", "timings.json", "report.html", "settings.json", "samples")
SCHEMA = 1  # of results.json and timings.json
LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes that file systems, and Linux, allow


def sample_names(tasks: Mapping[str, Iterable[str]]) -> dict[tuple[str, str], str]:
    """Where the items of (task, data file) are kept below samples/. tasks: their data files, as relative paths.

    Every task has a folder: its name, made fit for a file system, and no two the same, either where capitals do not
    count. A file has its own name there, but for "a" beside an "a.jsonl", which would else share one.
    """
    found, taken = {}, set()
    for task, files in tasks.items():
        stem = folder = safe_name(task)
        number = 2
        while name_key(folder) in taken:
            folder, number = f"{stem}-{number}", number + 1
        taken.add(name_key(folder))
        known = frozenset(files)
        for file in files:
            is_fit = file.endswith(".jsonl") and file.removesuffix(".jsonl") not in known
            found[task, file] = PurePosixPath(folder, file if is_fit else f"{file}.jsonl").as_posix()
    return found


def check_names(output: Path, tasks: Mapping[str, Iterable[str]]) -> None:
    """Raises UserError, with a line for each, where samples of data files cannot be written: a name that is too long,
    or two that are one file to some system, or a file and a folder."""
    faults, places = Faults(), {}
    for (task, data), name in sample_names(tasks).items():
        file = f"task {task}: {data}"
        longest = temporary_name((output / SAMPLES / name).absolute())
        if len(os.fsencode(longest.name)) > LONGEST_NAME or len(os.fsencode(longest)) > LONGEST_PATH:
            faults.append(f"{file}: the name of its file of samples, {name}, would be too long; shorten the data's")
        own = PurePosixPath(name_key(name))
        for place in (own, *own.parents[:-1]):
            is_file, before = places.setdefault(place, (place == own, file))
            if before is not file and (is_file or place == own):
                faults.append(f"{file} and {before}: their samples would be one file, or a file and a folder of one "
                              f"name, where capitals do not count ({name}); rename one of them")
                break
    faults.tell()


def claim(output: Path, facts: Mapping[str, object], usual: Mapping[str, object], samples: Sequence[str],
          is_replaceable: bool) -> None:
    """Make the folder that of a run, which settings.json then says.

    facts: what makes the run another one than others; usual: those that stand in no settings.json while they are as
    here. samples: names of all files that the run may write below samples/.
    Raises UserError for a folder with another run's results, or, if it `is_replaceable`, clears it of them.
    """
    earlier = _earlier(output, is_replaceable)
    links = sorted({parent for name in samples for parent in _folders(output, name) if parent.is_symlink()})
    if links:  # what it leads to is not this run's
        raise UserError(f"--output {output}: {links[0].relative_to(output)} is a link, through which nothing is "
                        "written; remove it, or name another --output")
    before = (earlier or {}).pop("samples", [])  # those that the run there has written, or may have
    strange = [name for name in (RESULTS, TIMINGS, REPORT, JOURNAL, SAMPLES) if (output / name).exists()]
    if earlier is None and strange and not is_replaceable:
        raise UserError(f"--output {output} holds {', '.join(strange)}, but no {SETTINGS} of an evaluation; name "
                        "another --output, or let them be replaced with --overwrite")
    changed = [] if earlier is None else differences({**usual, **earlier}, {**usual, **facts})
    if changed and not is_replaceable:
        raise UserError(f"--output {output} holds the results of another run ({'; '.join(changed)}); name another "
                        "--output, or replace them with --overwrite")
    if earlier is None or changed:
        for name in (RESULTS, TIMINGS, REPORT):
            (output / name).unlink(missing_ok=True)
    if earlier is None or changed or before != samples:
        remove(output, [name for name in before if name not in samples] if isinstance(before, list) else [])
        write_json(output / SETTINGS, {**facts, "samples": samples})


def _earlier(output: Path, is_replaceable: bool) -> dict | None:
    """What settings.json says of the run whose folder it is; {} where it is another program's, None without one."""
    try:
        earlier = read_json(output / SETTINGS, LARGE)
    except NoSuchFile:
        return None
    except UserError:  # no JSON at all
        earlier = None
    if isinstance(earlier, dict) and "checkpoint" in earlier:
        return earlier
    if not is_replaceable:
        raise UserError(f"--output {output}: the {SETTINGS} there is damaged, or not of an evaluation; name another "
                        "--output, or let it be replaced with --overwrite")
    return {}


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Which facts of a run are not those of an earlier one, as words: "dtype: float32, now bfloat16"."""
    def short(facts: Mapping[str, object], name: str) -> str:
        value = facts.get(name)
        text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 24 else text[:12] + "..."

    return [f"{name}: {short(before, name)}, now {short(now, name)}" for name in {**before, **now}
            if before.get(name) != now.get(name)]


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


def write_json(path: Path, value: object) -> None:
    with _writing(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n",
                             encoding="utf-8", errors="replace")


def write_samples(path: Path, items: Sequence[dict]) -> None:
    """A line per item, floats in full precision."""
    try:
        lines = [json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in items]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the task's items hold a value that JSON cannot: {error}") from None
    with _writing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8", errors="replace")


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """runtime.files.replacing, in a folder that is made, with a UserError where that fails: a full disk, say."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; mend it, and {GO_ON}") from None
