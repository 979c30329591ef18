"""What there is to do for a task: its files' examples, the requests they become, and how these are batched.

The same on every process, and whatever an earlier run has already answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evaluation.batching import plan
from evaluation.config import TaskConfig, TaskType
from evaluation.data import Example
from evaluation.discovery import data_files
from evaluation.hashing import hash_request
from evaluation.limiting import Limit
from evaluation.own_code import calling, fault_of_request, is_list_of, is_request, returned
from evaluation.requests import GenerateRequest, Request
from evaluation.tasks import Task, task_class
from runtime.errors import UserError


@dataclass(frozen=True)
class DataFile:
    """expected: rows (windows of a text) that the file has; examples: those to be scored, in order."""

    path: Path
    expected: int
    examples: Sequence[Example]
    requests: Sequence[Request]


@dataclass(frozen=True)
class Work:
    """groups: of the task file, with relative paths; files: by relative path; hashes: of the requests; max_tokens: of a
    batch; batches: of places in `requests`."""

    task: Task
    groups: dict[str, list[str]]
    files: dict[str, DataFile]
    requests: Sequence[Request]
    hashes: Sequence[str]
    max_tokens: int
    batches: Sequence[Sequence[int]]

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

    def size(self, indices: Iterable[int]) -> tuple[int, int]:
        """How many requests these are, and about how many tokens they make the model compute."""
        tokens = [_tokens(self.requests[index]) for index in indices]
        return len(tokens), sum(tokens)


def _tokens(request: Request) -> int:
    if isinstance(request, GenerateRequest):
        return len(request.context) + request.limit * request.params.num_beams
    return request.size


def prepare(config: TaskConfig, tokenizer, rows: Mapping[Path, int], limit: Limit | None,
            budget: Callable[[Sequence[Request]], int], max_items: int | None, longest: int) -> Work:
    """rows: of every file, as `look` found; limit: which are taken (None: all); budget(requests): most tokens of a
    batch; max_items: most of its items; longest: tokens that the model is made for."""
    with calling(config, f"task {config.name}"):
        task = task_class(config)(config, tokenizer)
    groups = {group: [relative(config, path) for path in paths] for group, paths in data_files(config).items()}
    paths = dict.fromkeys(path for paths in data_files(config).values() for path in paths)
    files = {relative(config, path): _read(task, path, rows[path], limit, longest) for path in paths}
    requests = [request for file in files.values() for request in file.requests]
    max_tokens = budget(requests)
    hashes = [hash_request(request) for request in requests]
    return Work(task, groups, files, requests, hashes, max_tokens, plan(requests, max_tokens, max_items))


def relative(config: TaskConfig, path: Path) -> str:
    return path.relative_to(config.path).as_posix()


def _read(task: Task, path: Path, rows: int, limit: Limit | None, longest: int) -> DataFile:
    is_head = limit is not None and limit.seed is None
    if is_head and task.config.type is not TaskType.LANGUAGE_MODEL:  # a text's windows are not known before
        examples, expected = _examples(task, path, limit.rows), rows
    else:
        examples = _examples(task, path, None)
        expected = len(examples)
        if is_head:
            examples = examples[:limit.rows]
        elif limit is not None:
            examples = [examples[place] for place in _drawn(task, path, examples, limit)]
    if not examples:
        raise UserError(f"{path}: the task {task.config.name} finds nothing to score in it")
    return DataFile(path, expected, examples, [_request(task, path, example, longest) for example in examples])


def _examples(task: Task, path: Path, limit: int | None) -> list[Example]:
    where = f"task {task.config.name}: {path}"
    with calling(task.config, where):
        examples = task.examples(path, limit)
    return returned(examples, is_list_of(examples, Example), task.examples, "a list of evaluation.data.Example", where)


def _drawn(task: Task, path: Path, examples: Sequence[Example], limit: Limit) -> list[int]:
    where = f"task {task.config.name}: {path}"
    with calling(task.config, where):
        units = [task.unit(example) for example in examples]
    returned(units, all(isinstance(unit, (int, str)) for unit in units), task.unit, "a whole number or a text", where)
    return limit.drawn(units)


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
