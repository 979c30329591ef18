"""A comparison of two runs as text: the table, what differs between them, and the items that flipped."""

from __future__ import annotations

import json
from collections.abc import Sequence

from evaluation.table import WIDTH, empty_table, figure, folded, lines_of, rendered
from runtime.errors import printable
from runtime.show import counted

_ALPHA = 0.05


def comparison_table(record: dict, width: int | None = None, color: bool = False) -> str:
    """The record of evaluation.compare as a table, ending in a newline."""
    from rich.text import Text

    heads = ("metric", "n", "A", "B", "B - A", "95% interval", "only A:B", "p", "Holm")
    lines = [(printable(name), is_task, [printable(metric), *(_cells(values) if values else ())], values)
             for task, found in record["tasks"].items()
             for name, is_task, metric, values in lines_of(task, found["groups"])]
    taken = sum(2 + max(map(len, column)) for column in zip(heads, *(cells for _, _, cells, _ in lines if cells[0]),
                                                            strict=True))
    table = empty_table(color)
    table.add_column("task", overflow="fold", min_width=12)
    for name in heads:
        table.add_column(name, justify="left" if name == "metric" else "right", no_wrap=True)
    for name, is_task, (metric, *cells), values in lines:
        name = Text(folded(name, max(12, (width or WIDTH) - taken)), "bold" if is_task else "")
        table.add_row(name, metric, *(Text(cell, _style(values)) for cell in cells))
    return rendered(table, _notes(record), width or WIDTH, color)


def _cells(values: dict) -> list[str]:
    test = values.get("mcnemar")
    low, high = values["interval"]
    return [
        str(values["n"]), figure(values["a"]), figure(values["b"]), signed(values["difference"]),
        "-" if low is None else f"[{signed(low)}, {signed(high)}]",
        f"{values['only_a']}:{values['only_b']}" if "only_a" in values else "",
        probability(test["p"]) if test else "", (probability(test["p_holm"]) if test else "") + (
            "*" if is_changed(values) else " ")]


def is_changed(values: dict) -> bool:
    """Whether the difference is more than chance: by the corrected test, or the interval where there is no test."""
    if "mcnemar" in values:
        return values["mcnemar"]["p_holm"] < _ALPHA
    low, high = values["interval"]
    return "only_a" not in values and low is not None and (low > 0 or high < 0)


def _style(values: dict) -> str:
    if not is_changed(values):
        return ""
    return "green" if (values["difference"] > 0) == values["higher_is_better"] else "red"


def _notes(record: dict) -> list[str]:
    lines = [f"A: {record['a']}", f"B: {record['b']}"]
    lines += [f"   {each['what']}: {each['a']} | {each['b']}" for each in record["differs"]]
    lines += ["interval: paired bootstrap, 1000 resamples; only A:B: items that only A, only B has right",
              "(with several prompts an item counts once there and in p, for the run that has it right under more)",
              f"p: McNemar's exact test; Holm: p corrected for all tests ({record['tests']}); *: below 0.05, or, where "
              "there is no test, an interval without 0"]
    lines += [f"not compared: {each}" for each in record["left_out"]]
    return lines


def flip_lines(flipped: Sequence[tuple[str, str, dict, dict, bool]], count: int) -> list[str]:
    """The first `count` items of every task that flipped, with both predictions and what is right."""
    lines, seen = [], {}
    for task, file, one, other, is_right in flipped:
        seen[task] = seen.get(task, 0) + 1
        if seen[task] <= count:
            if seen[task] == 1:
                total = sum(each[0] == task for each in flipped)
                lines.append(f"{task}: {counted(total, 'flip')}")
            predictions = " -> ".join(_short(item.get("prediction")) for item in (one, other))
            lines.append(f"  {file} {one['index']}: {predictions}{_wanted(one)}, {'gained' if is_right else 'lost'}")
    return list(map(printable, lines))


def _wanted(item: dict) -> str:
    if item.get("label") is not None:
        return f" (right: {item['label']})"
    if item.get("targets"):
        return f" (right: {' or '.join(_short(target) for target in item['targets'][:3])})"
    return ""


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + '..."'


def signed(value: float) -> str:
    shown = figure(value)
    return shown if shown.startswith("-") or float(shown) == 0 else f"+{shown}"


def probability(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"
