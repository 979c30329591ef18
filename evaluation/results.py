"""What a run leaves behind: results.json, timings.json and samples/ (docs/results.md has every field).

Nothing in results.json depends on time, on the host or on the number of processes: the same weights, data and settings
give the same bytes. What does depend on them is in timings.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import math
import statistics as averages
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluation.config import FOUND_OUT, TaskConfig
from evaluation.metrics import Metric, evaluate, statistics_of
from evaluation.statistics import interval
from evaluation.store import GO_ON
from runtime.errors import UserError
from runtime.files import replacing

SCHEMA = 1
RESULTS, TIMINGS = "results.json", "timings.json"
DIGITS = 6  # significant ones, of every figure in results.json
DONE, MISSING = "done", "missing"


@dataclass(frozen=True)
class FileScores:
    """One data file and what came of it. expected: its rows; scored: those that were asked for (--limit) and answered;
    truncated: indices of those whose text was cut; items: lines of samples/; overlong: indices of those that are longer
    than what the model is made for."""

    sha256: str
    expected: int
    scored: int
    truncated: Sequence[int]
    items: Sequence[dict]
    metrics: Mapping[str, Metric]
    overlong: Sequence[int] = ()


def task_record(config: TaskConfig, sha256: str, groups: Mapping[str, Sequence[str]],
                files: Mapping[str, FileScores]) -> dict:
    """The entry of results.json of a task that was scored, figures not rounded yet.

    groups: relative paths of each group's files; a file belongs to the first group that has it.
    """
    arrays = {path: {name: statistics_of(metric, scores.items) for name, metric in scores.metrics.items()}
              for path, scores in files.items()}
    records = {path: _file_record(scores, arrays[path], next(g for g, paths in groups.items() if path in paths))
               for path, scores in files.items()}
    return _task_head(config, sha256, DONE) | {
        "counts": _counts(files.values()),
        "groups": {group: _group_record([path for path in paths if path in files], files, records, arrays)
                   for group, paths in groups.items()},
        "files": records}


def missing_record(config: TaskConfig, sha256: str, reason: str) -> dict:
    """The entry of a task without data (--allow-missing)."""
    return _task_head(config, sha256, MISSING) | {
        "reason": reason, "counts": _counts(()), "groups": {}, "files": {}}


def _task_head(config: TaskConfig, sha256: str, status: str) -> dict:
    return {"status": status, "file": str(config.source), "sha256": sha256, "config": config_values(config)}


def config_values(config: TaskConfig) -> dict:
    """A task's settings as JSON holds them."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)
              if field.name not in FOUND_OUT}
    if not values.get("options"):
        values.pop("options", None)
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value


def _counts(files) -> dict[str, int]:
    files = list(files)
    return {"expected": sum(scores.expected for scores in files), "scored": sum(scores.scored for scores in files),
            "truncated": sum(len(scores.truncated) for scores in files),
            "overlong": sum(len(scores.overlong) for scores in files)}


def _file_record(scores: FileScores, arrays: Mapping, group: str) -> dict:
    intervals = {name: interval(metric, [arrays[name]]) for name, metric in scores.metrics.items()}
    return {
        "group": group, "sha256": scores.sha256, "n": scores.scored, "expected": scores.expected,
        "scored": scores.scored, "truncated": len(scores.truncated), "truncated_items": list(scores.truncated),
        "overlong": len(scores.overlong), "overlong_items": list(scores.overlong),
        "metrics": {name: evaluate(metric, scores.items) for name, metric in scores.metrics.items()},
        "intervals": {name: [low, high] for name, (low, high, _) in intervals.items()}}


def _group_record(paths: Sequence[str], files: Mapping[str, FileScores], records: Mapping, arrays: Mapping) -> dict:
    """Per metric: over the files that have it, in the order in which the metrics first come up."""
    found = {}
    for name in dict.fromkeys(name for path in paths for name in files[path].metrics):
        having = [path for path in paths if name in files[path].metrics]
        values = [records[path]["metrics"][name] for path in having]
        counts = [_counts_of(files[path], files[path].metrics[name]) for path in having]
        weights = [each["scored"] for each in counts]
        low, high, method = interval(files[having[0]].metrics[name], [arrays[path][name] for path in having], weights,
                                     having)
        found[name] = {
            "max": max(values), "median": averages.median(values),
            "average": math.fsum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights),
            "interval": [low, high], "interval_method": method,
            "n": {key: sum(each[key] for each in counts) for key in counts[0]}}
    return found


def _counts_of(scores: FileScores, metric: Metric) -> dict[str, int]:
    """The rows that a file's figure is made of; of a figure of one kind of items, those items."""
    if metric.applies is None:
        return _counts([scores])
    items = [item for item in scores.items if metric.applies(item)]
    return {"expected": len(items), "scored": len(items)} | {
        fact: sum(bool(item.get(fact)) for item in items) for fact in ("truncated", "overlong")}


def rounded(value: object) -> object:
    """The same value with every figure at six significant digits; what is not finite is null."""
    if isinstance(value, bool) or not isinstance(value, (float, Mapping, list, tuple)):
        return value
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value]


def write_json(path: Path, value: object) -> None:
    with writing(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n",
                             encoding="utf-8", errors="replace")


def write_samples(path: Path, items: Sequence[dict]) -> None:
    """A line per item, floats in full precision."""
    try:
        lines = [json.dumps(item, ensure_ascii=False, allow_nan=False) + "\n" for item in items]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: the task's items hold a value that JSON cannot: {error}") from None
    with writing(path) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8", errors="replace")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """runtime.files.replacing, in a folder that is made, with a UserError where that fails: a full disk, say."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; mend it, and {GO_ON}") from None
