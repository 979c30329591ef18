"""The closing table of a run: every task, group and metric with what was counted and how sure the figure is."""

from __future__ import annotations

import io
import math

WIDTH = 100  # columns that the table fits in, on a file or a terminal that does not say

_METHODS = {"Wilson": "W", "bootstrap": "B"}


def closing_table(results: dict, width: int | None = None, color: bool = False) -> str:
    """results.json as a table, ending in a newline. width: columns (default 100; narrower ones do without max and
    median); color: with terminal codes."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    width = width or WIDTH
    numbers = ["n", "cut", "max", "median", "average", "interval"]
    if width < WIDTH - 6:
        numbers = [name for name in numbers if name not in ("max", "median")]
    table = Table(box=box.SIMPLE_HEAD if color else plain_box(), padding=(0, 0, 0, 1), header_style="bold")
    table.add_column("task", overflow="fold", min_width=12)
    table.add_column("metric", no_wrap=True)
    for name in numbers:
        table.add_column("95% interval" if name == "interval" else name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    methods = {}
    for row in rows(results):
        name = Text(row["name"], "bold" if row["is_task"] else "")
        if "average" not in row:
            table.add_row(name, Text(row["metric"], "yellow"))
            continue
        sign = sign_of(row["method"])
        methods[sign] = row["method"]
        styles = {"n": "" if row["is_whole"] else "yellow", "cut": "yellow", "average": "bold"}
        table.add_row(name, row["metric"], *[Text(row[column], styles.get(column, "")) for column in numbers], sign)
    return rendered(table, notes(results, methods), width, color)


def rows(results: dict) -> list[dict]:
    """The lines of the table as texts. A task with one group is a line, others have a line below them for each group;
    further metrics have lines without a name."""
    found = []
    for task, values in results["tasks"].items():
        groups = values.get("groups") or {}
        if values.get("status") == "missing" or not groups:
            found.append({"name": task, "is_task": True, "metric": "missing"})
            continue
        if len(groups) > 1:
            found.append({"name": task, "is_task": True, "metric": ""})
        for group, metrics in groups.items():
            name = f"  {group}" if len(groups) > 1 else task if group == "all" else f"{task} ({group})"
            for metric, each in metrics.items():
                found.append({"name": name, "is_task": len(groups) == 1, "metric": metric} | _cells(each))
                name = ""
    return found


def _cells(values: dict) -> dict:
    n = values["n"]
    is_whole = n["scored"] == n["expected"]
    return {
        "is_whole": is_whole, "n": str(n["scored"]) if is_whole else f"{n['scored']}/{n['expected']}",
        "cut": str(n["truncated"] or ""), "method": values.get("interval_method") or "none",
        "interval": limits(values.get("interval")),
        **{name: figure(values[name]) for name in ("max", "median", "average")}}


def notes(results: dict, methods: dict[str, str]) -> list[str]:
    """What the signs of the table mean, and which tasks had no data."""
    signs = "; ".join(f"{sign}: {method}" for sign, method in sorted(methods.items()) if sign)
    lines = ["n: items scored; cut: those whose text was too long; max, median, average: over prompts (files)"]
    lines += [f"95% interval of the average, {signs}"] if signs else []
    missing = [name for name, task in results["tasks"].items() if task.get("status") == "missing"]
    if missing:
        lines.append(f"missing, without any figure: {', '.join(missing)}")
    limit = results.get("settings", {}).get("limit")
    if limit:
        lines.append(f"only the first {limit} rows of every file were taken: no figure here stands for the whole task")
    return lines


def sign_of(method: str) -> str:
    return next((sign for name, sign in _METHODS.items() if method.startswith(name)), "")


def figure(value: float | None) -> str:
    """A figure in at most seven characters: two decimals, fewer of what is large."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) < 1e5:
        return f"{value:.2f}" if abs(value) < 1e4 else f"{value:.1f}"
    digits, exponent = f"{value:.2e}".split("e")
    return f"{digits}e{int(exponent)}"


def limits(interval) -> str:
    if not interval or interval[0] is None:
        return "-"
    return f"[{figure(interval[0])}, {figure(interval[1])}]"


def plain_box():
    """A rule below the headings and nothing else, in ASCII."""
    from rich import box

    return box.Box("    \n" "    \n" " -- \n" "    \n" "    \n" "    \n" "    \n" "    \n", ascii=True)


def rendered(table, lines: list[str], width: int, color: bool) -> str:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=color, no_color=not color, highlight=False,
                      color_system="standard" if color else None, emoji=False, markup=False, legacy_windows=False)
    console.print(table)
    for line in lines:
        console.print(line, style="dim" if color else None)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").split("\n")) + "\n"
