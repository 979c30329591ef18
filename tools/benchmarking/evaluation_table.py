"""The table of evaluation's speed."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from tools.benchmarking.evaluation import Result


def tables(results: Sequence[Result]) -> list[Table]:
    return [_scoring([r for r in results if r.kind == "score"]), _generating([r for r in results if r.kind != "score"])]


def _scoring(results: Sequence[Result]) -> Table:
    table = _table("Scoring: batches of the evaluator, beside one item after the other with all logits",
                   ["task", "dtype", "items", "items/s", "choice by choice", "times", "item by item", "times",
                    "tokens/s", "TFLOP/s", "bare", "%", "difference", "same"])
    for r in results:
        rate = r.flops / r.seconds
        table.add_row(r.task, r.precision, str(r.items), f"{r.items / r.seconds:.1f}",
                      *(text for way, seconds in r.others.items()
                        for text in (f"{r.items / seconds:.1f}", f"{r.ratios[way]:.1f}")),
                      f"{r.tokens / r.seconds:.0f}", f"{rate / 1e12:.3f}", f"{r.ceiling / 1e12:.3f}",
                      f"{100 * rate / r.ceiling:.0f}", f"{r.difference:.1g}", f"{100 * r.same:.1f}%")
    return table


def _generating(results: Sequence[Result]) -> Table:
    table = _table("Generation: a batch of items, beside one at a time",
                   ["task", "dtype", "items", "batch", "items/s", "one at a time", "times", "tokens/s", "same"])
    for r in results:
        (way,) = r.others
        table.add_row(r.task, r.precision, str(r.items), str(r.batch), f"{r.items / r.seconds:.2f}",
                      f"{r.items / r.others[way]:.2f}", f"{r.ratios[way]:.1f}", f"{r.tokens / r.seconds:.0f}",
                      f"{100 * r.same:.1f}%")
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "dtype") else "right")
    return table
