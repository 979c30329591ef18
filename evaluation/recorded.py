"""A finished run read back from its output folder: results.json, the items of samples/, and the metrics they are for.

What a JSON value must look like is said as a value itself (a shape):

    int, float, str, bool, None     that, where float is any finite number and int no truth value
    (A, B)                          one of these
    [A]                             a list of A
    {"key": A, "key?": B}           an object with these keys, the second one only perhaps, and any others
    Each(A)                         an object with values of A under any keys
    Any                             whatever it is
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from evaluation.config import TaskConfig, of_record
from evaluation.discovery import find_task_files
from evaluation.names import calling
from evaluation.output import RESULTS, SAMPLES, SCHEMA, sample_names
from evaluation.tasks import Task, task_class
from runtime.errors import UserError, shown
from runtime.files import REPOSITORY
from runtime.reading import LARGE, NoSuchFile, parse_json, read_json, read_text
from runtime.strict_yaml import read_mapping


class Each(NamedTuple):
    shape: object


_FIGURE, _COUNTS = (float, None), {"expected": int, "scored": int, "truncated": int, "overlong?": int,
                             "fewer_examples?": int}
_METRIC = {"max": _FIGURE, "median": _FIGURE, "average": _FIGURE, "interval": [_FIGURE], "interval_method": str,
           "n": _COUNTS}
_FILE = {"group": str, "sha256": str, "n": int, **_COUNTS, "truncated_items": [int], "overlong_items?": [int],
         "metrics": Each(_FIGURE), "intervals": Each([_FIGURE])}
_CONFIG = {"name": str, "type": str, "path": str, "metrics": [str], "module?": (str, None), "max_seq_length?": int,
           "max_gen_length?": int, "num_fewshot?": int}
_TASK = {"status": str, "file": str, "sha256": str, "config": _CONFIG,
         "counts": _COUNTS, "groups": Each(Each(_METRIC)), "files": Each(_FILE), "reason?": str}
PARTS = ("checkpoint", "tokenizer", "settings", "versions", "code")
_SHAPE = {"tasks": Each(_TASK), **{f"{part}?": Each(Any) for part in PARTS},
          "settings?": {"dtype?": (str, None), "quantization?": (str, None), "limit?": (int, float, None),
                        "sample_seed?": (int, None), "model?": {"max_sequence_length?": int}}}
# what a sample may hold; tasks with a class of their own add to it
ITEM = {"index": int, "input_length?": int, "truncated?": bool, "overlong?": bool, "prediction?": (int, str, None),
         "label?": (int, str, None), "targets?": [str], "log_probs?": [float], "choice_lengths?": [int],
         "choice_characters?": [int], "choice_bytes?": [int], "num_examples?": int,
         "ids?": [int], "beams?": [[int]], "loss?": float, "tokens?": float, "words?": float, "bytes?": float}
_KIND = ("prediction", "log_probs", "targets", "loss", "tokens")


class RecordedRun:
    """results: the mapping of results.json. Items are read file by file, when they are asked for."""

    def __init__(self, folder: str | Path, own_code: bool = False):
        """own_code: whether code that results.json names may be imported to measure the items, be it what it may; else
        only the classes that this repository's own tasks are of. Raises UserError for a folder without a finished run.
        """
        self.folder, self._own_code = Path(folder), own_code
        self.results = _results(self.folder)
        self.tasks: dict[str, dict] = self.results["tasks"]
        self._samples = sample_names({name: entry["files"] for name, entry in self.tasks.items()})

    @property
    def done(self) -> dict[str, dict]:
        """The tasks that have figures; the others had no data."""
        return {name: task for name, task in self.tasks.items() if task.get("status") == "done"}

    def items(self, task: str, file: str) -> list[dict]:
        """The items of one data file, in order. Raises UserError for samples that are missing, cut off or no items."""
        path = self.folder / SAMPLES / self._samples[task, file]
        older = path.with_name(f"{path.name}.jsonl")  # as earlier versions named it
        if older.is_file() and not path.is_file():
            path = older
        try:
            lines = read_text(path).rstrip("\n").split("\n")
        except NoSuchFile as error:
            raise UserError(f"{error}; evaluating again with the same --output writes it") from None
        items = []
        for number, line in enumerate(lines if lines != [""] else [], 1):
            items.append(parse_json(line, str(path), number))
            wrong = fault(items[-1], ITEM) or _odd(items[-1], items[0])
            if wrong is not None:
                raise UserError(f"{path}:{number}: not an item (a JSON object with its `index`): {wrong}")
        if not items:
            raise UserError(f"{path}: holds no item")
        return items

    def metrics(self, task: str, items: Sequence[Mapping]) -> dict:
        """The metrics of a file's items, by name. Raises UserError where the task's module or metric is not there."""
        measured = self._task(task)
        where = f"{self.folder}: task {task}"
        with calling(measured.config, f"{where}: metrics"):
            try:
                return measured.metrics(items)
            except UserError as error:  # it is results.json that names them here, not a task file
                raise UserError(f"{where}: {str(error).removeprefix(f'{measured.config.source}: ')}") from None

    def groups(self, task: str) -> dict[str, list[str]]:
        """Relative paths of the files that each group reports."""
        entry = self.tasks[task]
        by_group: dict[str, list[str]] = {}
        for file, values in entry["files"].items():
            by_group.setdefault(values["group"], []).append(file)
        if set(by_group) == set(entry["groups"]):
            return by_group
        measured = self._task(task)  # of a class with groups of groups, such as an overall figure
        with calling(measured.config, f"{self.folder}: task {task}: groups"):
            return measured.groups(by_group)

    def config(self, task: str) -> TaskConfig:
        entry = self.tasks[task]
        return of_record(entry["config"], Path(entry["file"]))

    def _task(self, name: str) -> Task:
        """The task, for its metrics and groups alone. UserError where these need code that may not be imported."""
        config = self.config(name)
        if not self._own_code:
            config = replace(config, source=REPOSITORY / config.source.name)  # where dotted names are looked for first
            foreign = [metric for metric in config.metrics if "." in metric]
            if config.module is not None and config.module not in _our_classes():
                foreign.insert(0, config.module)
            if foreign:
                raise UserError(f"{self.folder}: task {name} is measured by code of its own ({foreign[0]}, "
                                f"{self.tasks[name]['file']}); --own-code imports it, if you trust where this run "
                                "comes from")
        return task_class(config).without_model(config)


@cache
def _our_classes() -> frozenset[str]:
    """The classes that task files of this repository name with `module`, of those whose code lies in it, too."""
    named = set()
    for file in find_task_files([REPOSITORY / "tasks"]):
        with contextlib.suppress(UserError):  # a file that somebody is working on
            named.add(str(read_mapping(file).get("module")))
    return frozenset(name for name in named if "." in name
                     and REPOSITORY.joinpath(*name.split(".")[:-1]).with_suffix(".py").is_file())


def _results(folder: Path) -> dict:
    path = folder / RESULTS
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name the --output folder of a run")
    try:
        results = read_json(path, LARGE)
    except NoSuchFile:
        raise UserError(f"{folder} has no {RESULTS}: not the output of a run, or of one that has not ended; the same "
                        "command goes on with it") from None
    if not isinstance(results, dict) or not isinstance(results.get("tasks"), dict):
        raise UserError(f"{path}: not the results of an evaluation (no `tasks`)")
    if results.get("schema") != SCHEMA:
        raise UserError(f"{path}: has schema {results.get('schema')!r}; this program reads schema {SCHEMA}")
    wrong = fault(results, _SHAPE) or next(filter(None, (_strange(*each) for each in results["tasks"].items())), None)
    if wrong is not None:
        raise UserError(f"{path}: damaged, {wrong}; evaluating again with the same --output writes it")
    return results


def _odd(item: Mapping, first: Mapping) -> str | None:
    """What is wrong with an item beside its shape: not the kind of the file's first one, an answer that is none of the
    choices."""
    for name in _KIND:
        if (name in item) != (name in first):
            return f"{name}: is {'there' if name in item else 'missing'}, unlike in the first item"
    if "loss" in item and "tokens" not in item:
        return "tokens: is missing beside loss"
    number = len(item.get("log_probs", ()))
    if "log_probs" not in item:
        return None
    for name in ("prediction", "label"):
        if isinstance(item.get(name), int) and not 0 <= item[name] < number:
            return f"{name}: must be the place of one of {number} log_probs, is {item[name]}"
    if len(item.get("choice_lengths", item["log_probs"])) != number:
        return f"choice_lengths: must be as many as log_probs ({number})"
    return None if number else "log_probs: must not be empty"


def _strange(name: str, task: Mapping) -> str | None:
    """What is wrong with a task's entry beside its shape: numbers that go with nothing, files outside the samples."""
    where = f"tasks.{name[:60]}"
    if task["config"]["type"] not in ("mul", "gen", "lm", "other"):
        return f"{where}.config.type: is no type of a task"
    if task["status"] != "done":
        return None
    if not task["files"] or not task["groups"]:
        return f"{where}: has no file or no group"
    for file, values in task["files"].items():
        path = PurePosixPath(file)
        is_name = file.isprintable() or file.encode("utf-8", "replace").decode() == file
        if path.is_absolute() or ".." in path.parts or "\0" in file or not path.parts or not is_name:
            return f"{where}.files: {file[:60]!r} is no path below the data"
        if values["n"] < 1 or any(len(pair) != 2 for pair in values["intervals"].values()):
            return f"{where}.files.{file[:60]}: has no items, or an interval without two ends"
        if values["metrics"].keys() != values["intervals"].keys():
            return f"{where}.files.{file[:60]}: metrics and intervals are not of the same figures"
    if any(len(metric["interval"]) != 2 for metrics in task["groups"].values() for metric in metrics.values()):
        return f"{where}.groups: has an interval without two ends"
    return None


def fault(value: Any, shape: object, where: str = "") -> str | None:
    """The first thing that is wrong, as "tasks.mmlu.counts: must be an object, is null"; None: nothing."""
    if shape is Any or (isinstance(shape, tuple) and not isinstance(shape, Each) and any(
            fault(value, each) is None for each in shape)):
        return None
    if isinstance(shape, (dict, Each)):
        if not isinstance(value, dict):
            return _wrong(where, "an object", value)
        return _fault_inside(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _wrong(where, "a list", value)
        places = (fault(inner, shape[0], f"{where}[{place}]") for place, inner in enumerate(value))
        return next((each for each in places if each is not None), None)
    if not isinstance(shape, tuple) and _is_plain(value, shape):
        return None
    names = [_name(each) for each in (shape if isinstance(shape, tuple) else (shape,))]
    return _wrong(where, " or ".join(names), value)


def _fault_inside(value: dict, shape: dict | Each, where: str) -> str | None:
    wanted = dict.fromkeys(value, shape.shape) if isinstance(shape, Each) else shape
    for key, inner in wanted.items():
        is_optional = not isinstance(shape, Each) and key.endswith("?")
        name = key[:-1] if is_optional else key
        place = f"{where}.{name[:60]}" if where else name[:60]
        if name in value:
            found = fault(value[name], inner, place)
            if found is not None:
                return found
        elif not is_optional:
            return f"{place}: is missing"
    return None


def _is_plain(value: Any, shape: object) -> bool:
    if shape is None:
        return value is None
    if shape is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
    return isinstance(value, shape) and (shape is bool or not isinstance(value, bool))


def _is_finite(value: float) -> bool:
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 10**300


def _name(shape: object) -> str:
    return "a list" if isinstance(shape, list) else "an object" if isinstance(shape, (dict, Each)) else _NAMES[shape]


def _wrong(where: str, what: str, value: Any) -> str:
    return f"{where or 'it'}: must be {what}, is {shown(value)}"


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", None: "null"}
