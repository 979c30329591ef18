"""A run: a plan of batches, a journal of answers, a record of figures.

Every process calls `run`. Batches are computed in rounds: every model-parallel group computes one of its own, and the
first process keeps all answers, says the lines and writes the files. So a killed run loses a round at most. A batch of
which any answer is lacking is computed whole: what is in a batch never depends on an earlier run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from evaluation import table
from evaluation.config import TaskConfig
from evaluation.output import RESULTS, SAMPLES, SCHEMA, TIMINGS, claim, sample_names, write_json, write_samples
from evaluation.pace import Pace
from evaluation.plan import Found, Limit, Work, prepare
from evaluation.requests import default_max_tokens
from evaluation.results import Clock, missing_record, record_of, rounded, scores_of
from evaluation.rounds import Rounds, from_first, on_first
from evaluation.store import JOURNAL, Journal, checkpoint_facts, combined, hash_code, hash_files, keys_of
from generation.chatting import format_of
from glm.config import ModelConfig
from glm.linear import quantization_of
from runtime import parallel
from runtime.errors import UserError
from runtime.files import usual, versions
from runtime.parallel import agree
from runtime.show import Progress


@dataclass(frozen=True)
class Settings:
    """What the user asked for, beside the model and the tasks."""

    checkpoint: Path
    data_path: Path
    output: Path  # folder of the results
    limit: Limit | None = None
    max_batch_tokens: int | None = None
    micro_batch_size: int | None = None
    allow_missing: bool = False
    num_fewshot: int | None = None  # in place of what the task files say
    chat_format: bool = False  # texts are put to a chat model as questions
    is_replaceable: bool = False  # whether the output folder may hold another run's results, which are then replaced
    command: str | None = None  # as it was typed


def run(model, tokenizer, scorer, configs: Sequence[TaskConfig], found: Mapping[str, Found], settings: Settings,
        say: Callable[[str], None]) -> dict | None:
    """Score all tasks and write everything that a run leaves behind.

    found: of evaluation.plan.look. say: prints a line to standard output; called on the first process only.
    Raises UserError where a model that is none for chats is to be asked as one.
    Returns what results.json holds, on the first process; None on the others.
    """
    clock = Clock()
    if settings.chat_format:
        format_of(model)
        configs = [replace(config, chat_format=model.config.family) for config in configs]

    def budget(requests):
        return settings.max_batch_tokens or default_max_tokens(model, requests)

    works = agree(lambda: {config.name: prepare(config, tokenizer, found[config.name].rows, settings.limit, budget,
                                                settings.micro_batch_size, model.config)
                           for config in configs if found[config.name].reason is None})
    is_first_of_host = os.environ.get("LOCAL_RANK", "0") == "0"
    sources = agree(lambda: _sources(tokenizer, settings.checkpoint) if is_first_of_host else None)
    agree(lambda: _check_same(parallel.collect(_digests(works, sources))))
    with contextlib.ExitStack() as stack:
        keeper = on_first(lambda: Keeper(describe(model, configs, settings, sources), works, settings, stack))
        totals = from_first(lambda: keeper.totals())
        kept = sum(len(work.requests) for work in works.values()) - totals[0]
        pace = on_first(lambda: Pace(works, keeper.lacking, model.config))
        progress = stack.enter_context(Progress(*totals, kept, shown=parallel.is_first_process(),
                                                left=None if pace is None else pace.left))
        rounds = Rounds(works, scorer, keeper and keeper.keep, pace, progress)

        def tell(lines: Sequence[str]) -> None:
            progress.write(lambda: [say(line) for line in lines])

        def begin(config: TaskConfig) -> tuple[list[int], list[int]]:
            tell(table.beginning(config))
            return keeper.begin(works[config.name])

        def end(config: TaskConfig, numbers: Collection[int], seconds: float) -> dict:
            work = works[config.name]
            record = keeper.record(work)
            clock.task(work, numbers, seconds, keeper.answers(work))
            tell(table.task_lines(config, work.groups, record, seconds))
            return record

        def missing(config: TaskConfig) -> dict:
            reason = found[config.name].reason
            tell(table.missing(config, reason))
            return missing_record(config, keeper.head["tasks"][config.name], reason)

        tasks = {}
        for config in configs:
            if config.name not in works:
                tasks[config.name] = on_first(lambda config=config: missing(config))
                continue
            started = time.monotonic()
            progress.task(config.name)
            numbers, others = from_first(lambda config=config: begin(config))
            beside = rounds.finish(config.name, numbers, others)
            done = config, rounds.done[config.name], time.monotonic() - started - beside
            tasks[config.name] = on_first(lambda done=done: end(*done))
    return on_first(lambda: keeper.finish(tasks, clock.facts(model, settings.command)))


def _sources(tokenizer, checkpoint: Path) -> dict:
    """What the answers come from: the parts of results.json that are hashes of files."""
    files = tokenizer.vocabulary_files
    digests = hash_files(files)
    several = combined(zip((file.name for file in files), digests, strict=True))
    return {
        "checkpoint": checkpoint_facts(checkpoint),
        "tokenizer": {"path": str(files[0]), "sha256": several if len(files) > 1 else digests[0]},
        "code": {"sha256": hash_code()}}


def _digests(works: Mapping[str, Work], sources: Mapping[str, Mapping] | None) -> tuple[str, dict[str, str]]:
    """This host's name, and hashes of all that must be the same on all hosts."""
    tasks = {f"the task {name} (task file or data)": combined((digest, "") for digest in work.hashes)
             for name, work in works.items()}
    files = {f"the {name}": values["sha256"] for name, values in (sources or {}).items()}
    return platform.node(), tasks | files


def _check_same(everybody: Sequence[tuple[str, Mapping[str, str]]]) -> None:
    """Copies of the data or the weights that differ between hosts would give a mixture of results."""
    first, wanted = everybody[0]
    for host, digests in everybody[1:]:
        for what, digest in digests.items():
            if digest != wanted.get(what, digest):
                raise UserError(f"{what} on host {host} is not that on host {first}; give all hosts the same files")


def describe(model, configs: Sequence[TaskConfig], settings: Settings, sources: Mapping[str, Mapping]) -> dict:
    """results.json but for its tasks, of which there are only the files' hashes. sources: of `_sources`."""
    parameter = next(model.parameters())
    return {
        "schema": SCHEMA,
        "settings": {
            "dtype": str(parameter.dtype).removeprefix("torch."), "device": parameter.device.type,
            "quantization": quantization_of(model), "model": asdict(model.config),
            "data_path": str(settings.data_path), "limit": settings.limit and settings.limit.rows,
            "sample_seed": settings.limit and settings.limit.seed,
            "max_batch_tokens": settings.max_batch_tokens, "micro_batch_size": settings.micro_batch_size,
            "allow_missing": settings.allow_missing, "num_fewshot": settings.num_fewshot,
            "chat_format": model.config.family if settings.chat_format else None,
            **({"adapter": dict(model.adapter)} if getattr(model, "adapter", None) else {})},
        "versions": versions(), **sources,
        "tasks": {config.name: digest for config, digest in
                  zip(configs, hash_files([config.source for config in configs]), strict=True)}}


class Keeper:
    """The first process's part of a run: it keeps the answers, and makes the record of them."""

    def __init__(self, head: dict, works: Mapping[str, Work], settings: Settings, stack: contextlib.ExitStack):
        """head: of `describe`. Refuses an output folder that holds another run's results, or, if that was asked for,
        clears it of them."""
        self.head, self.output, self.works = head, settings.output, works
        self.data = {name: hash_files([file.path for file in work.files.values()]) for name, work in works.items()}
        self.examples = {name: hash_files([Path(work.config.fewshot_file)])[0] for name, work in works.items()
                         if getattr(work.config, "num_fewshot", 0) and work.config.fewshot_file is not None}
        self.samples = sample_names({name: works[name].files if name in works else () for name in head["tasks"]})
        default = {f"model's {name}": value for name, value in usual(ModelConfig).items()}
        claim(self.output, self._facts(default), default, list(self.samples.values()), settings.is_replaceable)
        facts = {name: head[name]["sha256"] for name in ("checkpoint", "tokenizer", "code")} | {
            name: head["settings"][name] for name in ("dtype", "device", "quantization", "model", "adapter")
            if name in head["settings"]}
        self.keys = {name: keys_of(facts, work.hashes) for name, work in works.items()}
        self.journal = stack.enter_context(Journal(self.output / JOURNAL))
        self._counted = {name: self._lacking(work) for name, work in works.items()}

    def _facts(self, default: Mapping[str, object]) -> dict[str, object]:
        """What makes this run another one than others. default: facts of a usual model, which are left out."""
        head = self.head
        settings = {name: value for name, value in head["settings"].items()
                    if name not in ("data_path", "allow_missing", "model")}
        model = {f"model's {name}": value for name, value in head["settings"]["model"].items()}
        return {name: head[name]["sha256"] for name in ("checkpoint", "tokenizer")} | settings | {
            name: value for name, value in model.items() if value != default.get(name)} | {
            f"task {name}": digest for name, digest in head["tasks"].items()} | {
            f"data of task {name}": combined(zip(work.files, self.data[name], strict=True))
            for name, work in self.works.items()} | {
            f"examples of task {name}": digest for name, digest in self.examples.items()}

    def _lacking(self, work: Work) -> list[int]:
        """The batches (places in work.batches) of which any answer is not there yet."""
        keys = self.keys[work.config.name]
        return [number for number, batch in enumerate(work.batches)
                if any(keys[index] not in self.journal for index in batch)]

    def totals(self) -> tuple[int, int]:
        """Items and tokens that are to be computed."""
        counts = [work.size(self._counted[name]) for name, work in self.works.items()]
        return sum(items for items, _ in counts), sum(tokens for _, tokens in counts)

    @property
    def lacking(self) -> dict[str, list[int]]:
        """Of every task the batches that totals() counts."""
        return self._counted

    def begin(self, work: Work) -> tuple[list[int], list[int]]:
        """The batches that are lacking; and those that were counted in totals(), but are answered in the meantime."""
        numbers = self._lacking(work)
        return numbers, sorted(set(self._counted[work.config.name]) - set(numbers))

    def keep(self, work: Work, numbers: Sequence[int], found: Sequence[Sequence[dict]]) -> None:
        """found: the answers of the batches `numbers`."""
        keys = self.keys[work.config.name]
        self.journal.add((keys[index], answer) for number, answers in zip(numbers, found, strict=False)
                         for index, answer in zip(work.batches[number], answers, strict=True))

    def answers(self, work: Work) -> list[dict]:
        """Of all its requests, once they are there."""
        return [self.journal[key] for key in self.keys[work.config.name]]

    def record(self, work: Work) -> dict:
        """Figures of a task that is answered; its samples are written."""
        name = work.config.name
        scores = scores_of(work, self.answers(work), self.data[name])
        for path, file in scores.items():
            write_samples(self.output / SAMPLES / self.samples[name, path], file.items)
        return record_of(work, self.head["tasks"][name], scores)

    def finish(self, tasks: Mapping[str, dict], timings: dict) -> dict:
        """Writes results.json and timings.json."""
        results = rounded(self.head | {"tasks": dict(tasks)})
        write_json(self.output / TIMINGS, timings)
        write_json(self.output / RESULTS, results)
        return results
