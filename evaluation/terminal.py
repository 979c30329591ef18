"""What a run says on standard output: the lines of the original implementation, character by character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evaluation.config import TaskConfig


def beginning(config: TaskConfig) -> list[str]:
    """Said before a task's first batch: two blank lines, the settings, the name."""
    return ["", "", repr(config), f"Evaluating task {config.name}:"]


def missing(config: TaskConfig, reason: str) -> list[str]:
    """Said instead of all the rest where a task has no data (--allow-missing)."""
    return ["", "", repr(config), f"Missing task {config.name}: {reason}"]


def figures(config: TaskConfig, groups: Mapping[str, Sequence[str]], record: Mapping, seconds: float) -> list[str]:
    """Said when a task is done.

    groups: the files of the groups that the task file names; record: of evaluation.results.task_record, not rounded,
    which may have more groups.
    """
    lines = []
    for group, paths in groups.items():
        lines.append(f"    Evaluating group {group}:")
        for path in paths:
            values = ", ".join(f"{name} = {value:.3f}" for name, value in record["files"][path]["metrics"].items())
            lines.append(f"        Finish {path}, {values}")
    lines.append(f"Evaluation results of task {config.name}:")
    for group, metrics in record["groups"].items():
        lines += _group(group, metrics)
    return [*lines, f"Finish task {config.name} in {seconds:.1f}s."]


def _group(group: str, metrics: Mapping[str, Mapping]) -> list[str]:
    spreads = {name: f"max = {each['max']:.3f}, median = {each['median']:.3f}, average = {each['average']:.3f}"
               for name, each in metrics.items()}
    if len(spreads) == 1:
        ((name, spread),) = spreads.items()
        return [f"    Group {group} {name}: {spread}"]
    return [f"      Group {group}: ", *(f"        Metric {name}: {spread}" for name, spread in spreads.items())]
