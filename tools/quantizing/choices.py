"""Which choices of multiple-choice tasks come out otherwise in a quantised model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.batching import default_max_tokens
from evaluation.checking import look
from evaluation.config import TaskType
from evaluation.discovery import load_tasks
from evaluation.limiting import Limit
from evaluation.statistics import wilson
from evaluation.work import Work, prepare
from runtime.errors import UserError

Choices = dict[str, list[tuple[int, int | None]]]  # by task: (predicted, right) choice of every item


def find(paths: Sequence[str], data_path: Path, longest: int) -> tuple[dict, dict]:
    """The multiple-choice tasks that task files and folders name, others left out, and what a look at their data
    found; longest: tokens that the model takes. UserError where there is none, or one has no data."""
    configs = [config for config in load_tasks(paths, data_path, longest) if config.type is TaskType.MULTICHOICE]
    if not configs:
        raise UserError(f"--tasks {' '.join(map(str, paths))}: no multiple-choice task (type: mul) among them; choices "
                        "are what is compared")
    return {config.name: config for config in configs}, look(configs, allow_missing=False)


def prepared(configs: Mapping, found: Mapping, model, tokenizer, limit: int | None) -> list[Work]:
    head = None if limit is None else Limit(limit)
    return [prepare(config, tokenizer, found[name].rows, head, lambda asked: default_max_tokens(model, asked), None,
                    model.config.max_sequence_length) for name, config in configs.items()]


def choose(scorer, works: Sequence[Work]) -> Choices:
    found: Choices = {}
    for work in works:
        answers: list[dict] = [{}] * len(work.requests)
        for batch in work.batches:
            for index, answer in zip(batch, scorer.answer([work.requests[index] for index in batch]), strict=True):
                answers[index] = answer
        items, start = [], 0
        for file in work.files.values():
            end = start + len(file.requests)
            items += work.task.items(file.examples, file.requests, answers[start:end])
            start = end
        found[work.config.name] = [(item["prediction"], item["label"]) for item in items]
    return found


def choice_records(scheme: str, plain: Choices, found: Choices) -> list[dict]:
    """A record for every task and, if there are several, for all items together.

    accuracy: of the items that have a right choice; None where there is none (tasks that measure a bias).
    The interval is that of the share of flips, Wilson's 95%.
    """
    tasks = {name: [name] for name in found} | ({"all": list(found)} if len(found) > 1 else {})
    records = []
    for task, names in tasks.items():
        before, after = ([pair for name in names for pair in each[name]] for each in (plain, found))
        flips = sum(one[0] != other[0] for one, other in zip(before, after, strict=True))
        records.append({
            "scheme": scheme, "task": task, "n": len(after), "flips": flips, "share": flips / len(after),
            "interval": list(wilson(flips, len(after))), "accuracy": _accuracy(after)})
    return records


def _accuracy(pairs: Sequence[tuple[int, int | None]]) -> float | None:
    labelled = [predicted == label for predicted, label in pairs if label is not None]
    return sum(labelled) / len(labelled) if labelled else None
