"""From tasks to work: a look at all of their data before there is a model, then their requests and batches.

Hours of scoring do not end at a bad row: `look` needs no torch, so that what is wrong is said at once. The work is the
same on every process, and whatever an earlier run has already answered.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from evaluation.config import TaskConfig, TaskType
from evaluation.data import Example, read_objects
from evaluation.discovery import data_files, missing
from evaluation.names import called, calling, is_list_of, returned
from evaluation.requests import GenerateRequest, Request, at_once, batches_of, fault_of_request, is_request
from evaluation.store import hash_file, hash_request
from evaluation.tasks import Task, task_class
from glm.config import ModelConfig
from runtime.errors import Faults, UserError
from runtime.show import counted


@dataclass(frozen=True)
class Found:
    """What a look at a task's data has brought."""

    rows: dict[Path, int]  # how many each file has
    reason: str | None = None  # why there are no data
    notes: tuple[str, ...] = ()  # on what is most likely a mistake, and can be scored all the same


def look(configs: Sequence[TaskConfig], allow_missing: bool) -> dict[str, Found]:
    """Every task's data by the task's name, read and checked row by row; needs no model.

    Raises UserError with a line for every task at fault, missing ones included unless allowed.
    """
    found, faults = {}, Faults()
    for config in configs:
        with faults.noted():
            reason = missing(config)
            if reason is not None and not allow_missing:
                raise UserError(f"{reason} (--allow-missing goes on without it)")
            paths = [] if reason else [path for paths in data_files(config).values() for path in paths]
            rows = {path: _rows(config, path) for path in paths}
            found[config.name] = Found(rows, reason, (*_odd_choices(config, rows), *_copies(config, rows)))
    faults.tell()
    return found


def _rows(config: TaskConfig, path: Path) -> int:
    return called(config, f"task {config.name}: {path}", "the number of the file's rows",
                  lambda rows: type(rows) is int and rows > 0, task_class(config).check, config, path)


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


@dataclass(frozen=True)
class Limit:
    """Which rows of a file --limit takes: the first ones, or a sample that is the same whenever it is drawn."""

    rows: int | float  # at least so many of every file, or below 1 a share of it; what belongs together stays together
    seed: int | None = None  # of the sample; None: the first rows

    def of(self, rows: int) -> int:
        """How many of a file's rows: of a share one at least."""
        return self.rows if self.rows >= 1 else max(1, math.ceil(Fraction(str(self.rows)) * rows))

    def drawn(self, units: Sequence[Hashable]) -> list[int]:
        """The places that are drawn, in order. units: of every place, what it is drawn together with.

        Whether a unit is drawn depends on the seed and on how many are before it: files of as many rows, the prompts
        of a task, give the same places, and a larger sample holds the smaller one.
        """
        members: dict[Hashable, list[int]] = {}
        for place, unit in enumerate(units):
            members.setdefault(unit, []).append(place)
        numbered = enumerate(members.values())
        found, wanted = [], self.of(len(units))
        for _, places in sorted(numbered, key=lambda each: hashlib.sha256(f"{self.seed} {each[0]}".encode()).digest()):
            if len(found) >= wanted:
                break
            found += places
        return sorted(found)


@dataclass(frozen=True)
class DataFile:
    """What is to be done with a data file."""

    path: Path
    expected: int  # rows (windows of a text) that the file has
    examples: Sequence[Example]  # those to be scored, in order
    requests: Sequence[Request]  # one for each


@dataclass(frozen=True)
class Work:
    """What is to be done for a task: requests, and how they are batched."""

    task: Task
    groups: dict[str, list[str]]  # of the task file: relative paths of each one's files
    files: dict[str, DataFile]  # by relative path
    requests: Sequence[Request]  # of all files, one after the other
    hashes: Sequence[str]  # of the requests
    max_tokens: int  # that are computed at a time
    max_items: int | None  # the same of requests; None: no limit
    batches: Sequence[Sequence[int]]  # places in `requests`

    @property
    def config(self) -> TaskConfig:
        return self.task.config

    def place_of(self, index: int) -> str:
        """Where a request comes from, for messages: "data/c3/dev.jsonl: item 3"."""
        for file in self.files.values():
            if index < len(file.requests):
                return f"{file.path}: item {file.examples[index].index}"
            index -= len(file.requests)
        raise IndexError(index)

    def at_once(self, batch: Sequence[int]) -> int:
        """How many of a batch's requests are answered at a time."""
        largest = self.requests[batch[0]]
        if not isinstance(largest, GenerateRequest):
            return len(batch)
        return min(len(batch), at_once(largest, self.max_tokens, self.max_items))

    def size(self, numbers: Iterable[int]) -> tuple[int, int]:
        """How many requests these batches hold, and about how many tokens they make the model compute."""
        tokens = [self.tokens(index) for number in numbers for index in self.batches[number]]
        return len(tokens), sum(tokens)

    def tokens(self, index: int) -> int:
        """About how many a request makes the model compute."""
        request = self.requests[index]
        if isinstance(request, GenerateRequest):
            return len(request.context) + request.limit * request.params.num_beams
        return request.size


def prepare(config: TaskConfig, tokenizer, rows: Mapping[Path, int], limit: Limit | None,
            budget: Callable[[Sequence[Request]], int], max_items: int | None, model: ModelConfig) -> Work:
    """rows: of every file, as `look` found; limit: which are taken (None: all); budget(requests): most tokens at
    a time; max_items: most items at a time."""
    config, longest = replace(config, form=model.prompt_form), model.max_sequence_length
    with calling(config, f"task {config.name}"):
        task = task_class(config)(config, tokenizer)
    groups = {group: [relative(config, path) for path in paths if path in rows]
              for group, paths in data_files(config).items()}
    files = {relative(config, path): _read(task, path, number, limit, longest) for path, number in rows.items()}
    requests = [request for file in files.values() for request in file.requests]
    max_tokens = budget(requests)
    hashes = [hash_request(request) for request in requests]
    return Work(task, groups, files, requests, hashes, max_tokens, max_items,
                batches_of(requests, max_tokens, max_items))


def relative(config: TaskConfig, path: Path) -> str:
    return path.relative_to(config.path).as_posix()


def _read(task: Task, path: Path, rows: int, limit: Limit | None, longest: int) -> DataFile:
    is_head = limit is not None and limit.seed is None
    if is_head and task.config.type is not TaskType.LANGUAGE_MODEL:  # a text's windows are not known before
        examples, expected = _examples(task, path, limit.of(rows)), rows
    else:
        examples = _examples(task, path, None)
        expected = len(examples)
        if is_head:
            examples = examples[:limit.of(expected)]
        elif limit is not None:
            examples = [examples[place] for place in _drawn(task, path, examples, limit)]
    if not examples:
        raise UserError(f"{path}: the task {task.config.name} finds nothing to score in it")
    return DataFile(path, expected, examples, [_request(task, path, example, longest) for example in examples])


def _examples(task: Task, path: Path, limit: int | None) -> list[Example]:
    found = called(task.config, f"task {task.config.name}: {path}", "a list of evaluation.data.Example",
                   lambda examples: is_list_of(examples, Example), task.examples, path, limit)
    if getattr(task.config, "num_fewshot", 0) and any(example.num_examples is None for example in found):
        raise UserError(f"{task.config.source}: num_fewshot: {task.config.module} reads its rows in its own way, and "
                        "puts no examples in front")
    return found


def _drawn(task: Task, path: Path, examples: Sequence[Example], limit: Limit) -> list[int]:
    return limit.drawn([called(task.config, f"task {task.config.name}: {path}", "a whole number or a text",
                               lambda unit: isinstance(unit, (int, str)), task.unit, example) for example in examples])


def _request(task: Task, path: Path, example: Example, longest: int) -> Request:
    where = f"{path}: item {example.index}"
    try:
        with calling(task.config, f"task {task.config.name}"):
            request = task.request(example)
            returned(request, is_request(request), task.request, "a ScoreRequest or a GenerateRequest", "request")
            wrong = task.config.module and fault_of_request(request, task.tokenizer.num_tokens)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    returned(request, not wrong, task.request, f"a request that a model can answer ({wrong})", where)
    return replace(request, overlong=True) if request.length > longest else request
