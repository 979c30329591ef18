"""The first process's part of a run: what the results rest on, the journal, samples and results.json."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluation import terminal
from evaluation.config import TaskConfig
from evaluation.hashing import Keys, checkpoint_facts, combined, hash_code, hash_files
from evaluation.limiting import Limit
from evaluation.metrics import Metric
from evaluation.own_code import calling, check_item, is_list_of, is_mapping_to, returned
from evaluation.results import (
    RESULTS,
    SCHEMA,
    TIMINGS,
    FileScores,
    missing_record,
    rounded,
    task_record,
    write_json,
    write_samples,
)
from evaluation.rounds import lacking
from evaluation.sample_files import SAMPLES, check_links, remove, sample_folders, sample_names, sample_path
from evaluation.store import JOURNAL, Journal, differences
from evaluation.tasks import Task
from evaluation.work import DataFile, Work
from glm.config import ModelConfig
from glm.linear import quantization_of
from runtime.errors import UserError
from runtime.files import usual, versions
from runtime.reading import LARGE, NoSuchFile, read_json

SETTINGS, REPORT = "settings.json", "report.html"


@dataclass(frozen=True)
class Settings:
    """What the user asked for, beside the model and the tasks. output: the folder of the results.

    is_replaceable: whether the output folder may hold another run's results, which are then replaced. command: as it
    was typed.
    """

    checkpoint: Path
    data_path: Path
    output: Path
    limit: Limit | None = None
    max_batch_tokens: int | None = None
    micro_batch_size: int | None = None
    allow_missing: bool = False
    is_replaceable: bool = False
    command: str | None = None


def sources(tokenizer, checkpoint: Path) -> dict:
    """What the answers come from: the parts of results.json that are hashes of files."""
    files = tokenizer.vocabulary_files
    digests = hash_files(files)
    several = combined(zip((file.name for file in files), digests, strict=True))
    return {
        "checkpoint": checkpoint_facts(checkpoint),
        "tokenizer": {"path": str(files[0]), "sha256": several if len(files) > 1 else digests[0]},
        "code": {"sha256": hash_code()}}


def describe(model, configs: Sequence[TaskConfig], settings: Settings, found: Mapping[str, Mapping]) -> dict:
    """results.json but for its tasks, of which there are only the files' hashes. found: of `sources`."""
    parameter = next(model.parameters())
    return {
        "schema": SCHEMA,
        "settings": {
            "dtype": str(parameter.dtype).removeprefix("torch."), "device": parameter.device.type,
            "quantization": quantization_of(model), "model": asdict(model.config),
            "data_path": str(settings.data_path), "limit": settings.limit and settings.limit.rows,
            "sample_seed": settings.limit and settings.limit.seed,
            "max_batch_tokens": settings.max_batch_tokens, "micro_batch_size": settings.micro_batch_size,
            "allow_missing": settings.allow_missing},
        "versions": versions(), **found,
        "tasks": {config.name: digest for config, digest in
                  zip(configs, hash_files([config.source for config in configs]), strict=True)}}


class Keeper:
    """The first process's part of a run: journal, keys, records, files."""

    def __init__(self, head: dict, works: Mapping[str, Work], settings: Settings, stack: contextlib.ExitStack):
        """Refuses an output folder that holds another run's results, or, if that was asked for, clears it of them."""
        self.head, self.output, self.works = head, settings.output, works
        self.data = {name: hash_files([file.path for file in work.files.values()]) for name, work in works.items()}
        self.folders = sample_folders(list(head["tasks"]))
        self._open_folder(settings.is_replaceable)
        keys = Keys({name: head[name]["sha256"] for name in ("checkpoint", "tokenizer", "code")}
                    | {name: head["settings"][name] for name in ("dtype", "device", "quantization", "model")})
        self.keys = {name: [keys.of(question) for question in work.hashes] for name, work in works.items()}
        self.journal = stack.enter_context(Journal(self.output / JOURNAL))
        self._counted = {name: lacking(work, self.keys[name], self.journal) for name, work in works.items()}

    def _open_folder(self, is_replaceable: bool) -> None:
        facts = {name: self.head[name]["sha256"] for name in ("checkpoint", "tokenizer")} | {
            name: value for name, value in self.head["settings"].items() if name not in ("data_path", "allow_missing")}
        shapes, default = facts.pop("model"), usual(ModelConfig)
        facts |= {f"model's {name}": value for name, value in shapes.items() if value != default.get(name)}
        unsaid = {f"model's {name}": value for name, value in default.items()}
        facts |= {f"task {name}": digest for name, digest in self.head["tasks"].items()}
        facts |= {f"data of task {name}": combined(zip(work.files, self.data[name], strict=True))
                  for name, work in self.works.items()}
        path = self.output / SETTINGS
        try:
            earlier = read_json(path, LARGE)
        except NoSuchFile:
            earlier = None
        except UserError:  # whatever it was: another run's
            earlier = {}
        if earlier is not None and not (isinstance(earlier, dict) and "checkpoint" in earlier):
            if not is_replaceable:
                raise UserError(f"--output {self.output}: the {SETTINGS} there is damaged, or not of an evaluation; "
                                "name another --output, or let it be replaced with --overwrite")
            earlier = {}
        samples = sample_names({name: list(self.works[name].files) if name in self.works else []
                                for name in self.head["tasks"]})
        check_links(self.output, samples)
        before = (earlier or {}).pop("samples", [])  # those that the run there has written, or may have
        strange = [name for name in (RESULTS, TIMINGS, REPORT, JOURNAL, SAMPLES) if (self.output / name).exists()]
        if earlier is None and strange and not is_replaceable:
            raise UserError(f"--output {self.output} holds {', '.join(strange)}, but no {SETTINGS} of an evaluation; "
                            "name another --output, or let them be replaced with --overwrite")
        changed = [] if earlier is None else differences(unsaid | earlier, unsaid | facts)
        if changed and not is_replaceable:
            raise UserError(f"--output {self.output} holds the results of another run ({'; '.join(changed)}); name "
                            "another --output, or replace them with --overwrite")
        if earlier is None or changed:
            for name in (RESULTS, TIMINGS, REPORT):
                (self.output / name).unlink(missing_ok=True)
        if earlier is None or changed or before != samples:
            remove(self.output, [name for name in before if name not in samples] if isinstance(before, list) else [])
            write_json(path, facts | {"samples": samples})

    def totals(self) -> tuple[int, int]:
        """Items and tokens that are to be computed."""
        counts = [self._size(work, self._counted[name]) for name, work in self.works.items()]
        return sum(items for items, _ in counts), sum(tokens for _, tokens in counts)

    def lacking(self, work: Work) -> list[int]:
        return lacking(work, self.keys[work.config.name], self.journal)

    def saved(self, work: Work, numbers: Sequence[int]) -> tuple[int, int]:
        """Items and tokens that were counted in totals() but need not be computed any more."""
        return self._size(work, set(self._counted[work.config.name]) - set(numbers))

    @staticmethod
    def _size(work: Work, numbers) -> tuple[int, int]:
        return work.size(index for number in numbers for index in work.batches[number])

    def missing(self, config: TaskConfig, reason: str, tell) -> dict:
        tell(terminal.missing(config, reason))
        return missing_record(config, self.head["tasks"][config.name], reason)

    def record(self, work: Work) -> dict:
        """Figures of a task that is answered; its samples are written."""
        keys, config, begin = self.keys[work.config.name], work.config, 0
        scores = {}
        for (path, file), digest in zip(work.files.items(), self.data[config.name], strict=True):
            end = begin + len(file.requests)
            answers = [self.journal[key] for key in keys[begin:end]]
            begin = end
            try:
                items, metrics = _measured(work.task, file, answers)
                scores[path] = FileScores(
                    digest, file.expected, len(file.examples),
                    _indices(file, "truncated"), items, metrics, _indices(file, "overlong"))
            except UserError as error:
                raise UserError(f"task {config.name}: {file.path}: {error}") from None
            write_samples(sample_path(self.output, self.folders[config.name], path, work.files), items)
        try:
            with calling(config, "figures"):
                return task_record(config, self.head["tasks"][config.name], _groups(work), scores)
        except UserError as error:
            raise UserError(f"task {config.name}: {error}") from None

    def finish(self, tasks: Mapping[str, dict], timings: dict) -> dict:
        """Writes results.json and timings.json."""
        results = rounded(self.head | {"tasks": dict(tasks)})
        write_json(self.output / TIMINGS, timings)
        write_json(self.output / RESULTS, results)
        return results


def _measured(task: Task, file: DataFile, answers: Sequence[dict]) -> tuple[list[dict], dict[str, Metric]]:
    """The items of a file, and its metrics by name."""
    with calling(task.config, "items"):
        items = task.items(file.examples, file.requests, answers)
    returned(items, is_list_of(items, dict) and len(items) > 0, task.items, "a list of dictionaries", "items")
    if task.config.module is not None:
        maker = task.item if type(task).items is Task.items else task.items
        for place, item in enumerate(items):
            check_item(item, maker, f"item {item.get('index', place)}")
    with calling(task.config, "metrics"):
        metrics = task.metrics(items)
    return items, returned(metrics, is_mapping_to(metrics, lambda each: isinstance(each, Metric)), task.metrics,
                           "a mapping of names to evaluation.metrics.Metric", "metrics")


def _groups(work: Work) -> dict[str, list[str]]:
    with calling(work.config, "groups"):
        groups = work.task.groups(work.groups)
    returned(groups, is_mapping_to(groups, lambda paths: is_list_of(paths, str)), work.task.groups,
             "a mapping of names to lists of files", "groups")
    left = sorted(set(work.files).difference(*groups.values()))
    return returned(groups, not left, work.task.groups, f"groups that hold every file ({', '.join(left[:3])}: in none)",
                    "groups")


def _indices(file: DataFile, fact: str) -> list[int]:
    """Of the rows whose requests have this."""
    return [example.index for example, request in zip(file.examples, file.requests, strict=True)
            if getattr(request, fact)]
