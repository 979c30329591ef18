"""The figures of a run: from answers to items, and from items to the records of results.json (docs/results.md).

Nothing in results.json depends on time, on the host or on the number of processes: the same weights, data and settings
give the same bytes. What does depend on them is in timings.json.
"""

from __future__ import annotations

import math
import os
import platform
import statistics as averages
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evaluation.config import TaskConfig, as_record
from evaluation.metrics import Metric, statistics_of
from evaluation.names import called, calling, is_list_of, is_mapping_to, returned
from evaluation.output import SCHEMA
from evaluation.plan import DataFile, Work
from evaluation.recorded import ITEM, fault
from evaluation.requests import Request, ScoreRequest
from evaluation.statistics import interval
from evaluation.tasks import Task
from runtime import parallel
from runtime.errors import UserError

DIGITS = 6  # significant ones, of every figure in results.json
DONE, MISSING = "done", "missing"


@dataclass(frozen=True)
class FileScores:
    """One data file and what came of it."""

    sha256: str
    expected: int  # rows of the file
    scored: int  # those that were asked for (--limit) and answered
    truncated: Sequence[int]  # indices of those whose text was cut
    items: Sequence[dict]  # lines of samples/
    metrics: Mapping[str, Metric]  # by the name they are printed with
    overlong: Sequence[int] = ()  # indices of those that are longer than what the model is made for
    fewer_examples: int | None = None  # how many had fewer examples than the task asks for; None: it asks for none


def scores_of(work: Work, answers: Sequence[dict], digests: Sequence[str]) -> dict[str, FileScores]:
    """What came of every file of a task, by relative path. answers: to work.requests; digests: of the files' contents.

    Raises UserError where code of the task's own fails, or gives what no report could read.
    """
    found, begin = {}, 0
    for (path, file), digest in zip(work.files.items(), digests, strict=True):
        end = begin + len(file.requests)
        try:
            items, metrics = _measured(work.task, file, answers[begin:end])
        except UserError as error:
            raise UserError(f"task {work.config.name}: {file.path}: {error}") from None
        truncated, overlong = ([example.index for example, request in zip(file.examples, file.requests, strict=True)
                                if getattr(request, fact)] for fact in ("truncated", "overlong"))
        wanted = getattr(work.config, "num_fewshot", 0)
        fewer = sum(example.num_examples < wanted for example in file.examples) if wanted else None
        found[path] = FileScores(digest, file.expected, len(file.examples), truncated, items, metrics, overlong, fewer)
        begin = end
    return found


def _measured(task: Task, file: DataFile, answers: Sequence[dict]) -> tuple[list[dict], dict[str, Metric]]:
    """The items of a file, and its metrics by name."""
    items = called(task.config, "items", "a list of dictionaries",
                   lambda found: is_list_of(found, dict) and len(found) > 0,
                   task.items, file.examples, file.requests, answers)
    if task.config.module is not None:
        maker = task.item if type(task).items is Task.items else task.items
        for place, item in enumerate(items):
            wrong = fault(item, ITEM)
            returned(item, wrong is None, maker, f"an item as docs/results.md describes it ({wrong})",
                     f"item {item.get('index', place)}")
    return items, called(task.config, "metrics", "a mapping of names to evaluation.metrics.Metric",
                         lambda found: is_mapping_to(found, lambda each: isinstance(each, Metric)), task.metrics, items)


def record_of(work: Work, sha256: str, files: Mapping[str, FileScores]) -> dict:
    """The entry of results.json of a task that was scored. sha256: of its task file. Raises as `scores_of`."""
    try:
        with calling(work.config, "figures"):
            return task_record(work.config, sha256, _groups(work), files)
    except UserError as error:
        raise UserError(f"task {work.config.name}: {error}") from None


def _groups(work: Work) -> dict[str, list[str]]:
    """The files that each group reports: as the task's class says, which must leave none out."""
    groups = called(work.config, "groups", "a mapping of names to lists of files",
                    lambda found: is_mapping_to(found, lambda paths: is_list_of(paths, str)), work.task.groups,
                    work.groups)
    left = sorted(set(work.files).difference(*groups.values()))
    return returned(groups, not left, work.task.groups, f"groups that hold every file ({', '.join(left[:3])}: in none)",
                    "groups")


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
    return {"status": status, "file": str(config.source), "sha256": sha256, "config": as_record(config)}


def _counts(files) -> dict[str, int]:
    files = list(files)
    return {"expected": sum(scores.expected for scores in files), "scored": sum(scores.scored for scores in files),
            "truncated": sum(len(scores.truncated) for scores in files),
            "overlong": sum(len(scores.overlong) for scores in files)} | _fewer(files)


def _fewer(files: Sequence[FileScores]) -> dict[str, int]:
    """How many items had fewer examples, of tasks that have examples."""
    found = [scores.fewer_examples for scores in files if scores.fewer_examples is not None]
    return {"fewer_examples": sum(found)} if found else {}


def _file_record(scores: FileScores, arrays: Mapping, group: str) -> dict:
    intervals = {name: interval(metric, [arrays[name]]) for name, metric in scores.metrics.items()}
    return {
        "group": group, "sha256": scores.sha256, "n": scores.scored, "expected": scores.expected,
        "scored": scores.scored, "truncated": len(scores.truncated), "truncated_items": list(scores.truncated),
        "overlong": len(scores.overlong), "overlong_items": list(scores.overlong), **_fewer([scores]),
        "metrics": {name: float(metric.figure(arrays[name].sum(axis=0))) for name, metric in scores.metrics.items()},
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


def _tokens(request: Request, answer: Mapping) -> int:
    """Of a text with all that is scored behind it; or with the answer that was generated, of beams the best one."""
    return request.size if isinstance(request, ScoreRequest) else len(request.context) + len(answer["beams"][0])


class Clock:
    """Everything about a run that is another the next time: timings.json."""

    def __init__(self):
        self._begin, self._started = time.monotonic(), time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self._tasks: dict[str, dict] = {}

    def task(self, work: Work, numbers: Iterable[int], seconds: float, answers: Sequence[Mapping]) -> None:
        """numbers: of the batches that this run computed. answers: of all requests."""
        done = [index for number in numbers for index in work.batches[number]]
        computed, tokens = len(done), sum(_tokens(work.requests[index], answers[index]) for index in done)
        self._tasks[work.config.name] = {
            "seconds": round(seconds, 3), "items": len(work.requests), "computed": computed,
            "items_per_second": round(computed / seconds, 3) if computed else None, "tokens": tokens,
            "tokens_per_second": round(tokens / seconds, 3) if computed else None, "max_batch_tokens": work.max_tokens}

    def facts(self, model, command: str | None) -> dict:
        import torch

        parameter = next(model.parameters())
        is_cuda = parameter.device.type == "cuda"
        return {
            "schema": SCHEMA, "command": command, "started": self._started,
            "seconds": round(time.monotonic() - self._begin, 3),
            "host": platform.node(), "processes": int(os.environ.get("WORLD_SIZE", "1")),
            "model_parallel_size": parallel.size(), "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(parameter.device) if is_cuda else parameter.device.type,
            "tasks": self._tasks}
