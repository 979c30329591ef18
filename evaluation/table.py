"""The closing table of a run: every task, group and metric with what was counted and how sure the figure is."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence

from evaluation.config import TaskConfig
from evaluation.metrics import notes_on
from runtime.errors import printable
from runtime.show import counted

WIDTH = 100  # columns that the table fits in, on a file or a terminal that does not say
NUMBERS = {"n": "n", "cut": "cut", "long": "long", "max": "max", "median": "median", "average": "average",
           "interval": "95% interval"}
PARTIAL = "no figure of a task with more stands for the whole task"
SAMPLED = "figures are estimates for the whole task"
NO_INTERVAL = "one item alone has no interval"
_METHODS = {"Wilson": "W", "bootstrap": "B"}


def closing_table(results: dict, width: int | None = None, color: bool = False) -> str:
    """results.json as a table, ending in a newline. width: columns (default 100; narrower ones do without max and
    median); color: with terminal codes."""
    from rich.text import Text

    width, lines = width or WIDTH, rows(results)
    numbers = {name: title for name, title in NUMBERS.items() if name != "long" or _widest(lines, "long")}
    if room(lines, numbers, width) < 28:
        numbers = {name: title for name, title in numbers.items() if name not in ("max", "median")}
    words = max(len(name.partition(" ")[0]) for name in ("metric", *(row["metric"] for row in lines)))
    metric_width = max(words, min(_widest(lines, "metric"), room(lines, numbers, width) - _widest(lines, "name")))
    table = empty_table(color)
    name_width = max(10, room(lines, numbers, width) - metric_width)
    table.add_column("task", overflow="fold", max_width=name_width)
    table.add_column("metric", overflow="fold", max_width=metric_width)
    for title in numbers.values():
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    methods = {}
    for row in lines:
        name = Text(folded(row["name"], name_width), "bold" if row["is_task"] else "")
        if "average" not in row:
            table.add_row(name, Text(row["metric"], "yellow"))
            continue
        sign = next((sign for name, sign in _METHODS.items() if row["method"].startswith(name)), "")
        methods[sign] = row["method"]
        styles = {"n": "" if row["is_whole"] else "yellow", "cut": "yellow", "long": "yellow", "average": "bold"}
        table.add_row(name, row["metric"], *[Text(row[column], styles.get(column, "")) for column in numbers], sign)
    return rendered(table, notes(results, methods), width, color)


def room(lines: list[dict], numbers: dict[str, str], width: int) -> int:
    """Columns that the numbers of the table leave to the names of tasks and metrics."""
    taken = sum(max(_widest(lines, name), len(title)) for name, title in numbers.items()) + 1
    return width - taken - 2 * (len(numbers) + 2)


def folded(name: str, width: int) -> str:
    """A name in lines of at most `width` columns, broken behind a sign that parts its words where there is one."""
    lines = []
    while len(name) > width:
        end = max(name.rfind(sign, 0, width) for sign in " -_./") + 1
        end = end if name[:end].strip() else width
        lines, name = [*lines, name[:end]], name[end:]
    return "\n".join([*lines, name])


def _widest(lines: list[dict], name: str) -> int:
    return max((len(row.get(name, "")) for row in lines), default=0)


def rows(results: dict) -> list[dict]:
    """The lines of the table as texts. A task with one group is a line, others have a line below them for each group;
    further metrics have lines without a name, those of one kind of items lines with the kind's name."""
    found = []
    for task, values in results["tasks"].items():
        groups = values.get("groups") or {}
        if values.get("status") == "missing" or not groups:
            found.append({"name": task, "is_task": True, "metric": "missing"})
            continue
        found += [{"name": name, "is_task": is_task, "metric": metric} | (_cells(each) if each else {})
                  for name, is_task, metric, each in lines_of(task, groups)]
    return [row | {name: printable(row[name]) for name in ("name", "metric")} for row in found]


def lines_of(task: str, groups: Mapping) -> Iterator[tuple[str, bool, str, Mapping | None]]:
    """(name, whether it is the task's, metric, its values) of each line of a table; None: a line without figures."""
    if len(groups) > 1:
        yield task, True, "", None
    for group, metrics in groups.items():
        name = f"  {group}" if len(groups) > 1 else task if group == "all" else f"{task} ({group})"
        for metric, values in metrics.items():
            base, kind = kind_of(metric, metrics)
            indent = "  " if len(groups) == 1 else "    "
            yield f"{indent}{kind}" if kind else name, len(groups) == 1 and not kind, base, values
            name = ""


def kind_of(metric: str, metrics) -> tuple[str, str | None]:
    """("SS", "gender") for "SS (gender)", the figure of one kind of items, where there is an "SS" of all; else its
    name and None."""
    base, _, kind = metric.partition(" (")
    return (base, kind[:-1]) if kind.endswith(")") and base in metrics else (metric, None)


def _cells(values: dict) -> dict:
    n = values["n"]
    is_whole = n["scored"] == n["expected"]
    return {
        "is_whole": is_whole, "n": str(n["scored"]) if is_whole else f"{n['scored']}/{n['expected']}",
        "cut": str(n["truncated"] or ""), "long": str(n.get("overlong") or ""),
        "method": values.get("interval_method") or "none", "interval": limits(values.get("interval")),
        **{name: figure(values[name]) for name in ("max", "median", "average")}}


def notes(results: dict, methods: dict[str, str]) -> list[str]:
    """What the signs of the table mean, and which tasks had no data."""
    signs = "; ".join(f"{sign}: {method}" for sign, method in sorted(methods.items()) if sign)
    part = limited(results)
    n = "items scored / there are" if part else "items scored"
    found = rows(results)
    lines = [f"n: {n}; cut: those whose text was too long; max, median, average: over prompts (files)"]
    lines += [long_items(results)] if _widest(found, "long") else []
    lines += [f"95% interval of the average, {signs}"] if signs else []
    lines += [f"-: {NO_INTERVAL}"] if any(method.startswith("none") for method in methods.values()) else []
    lines += notes_on(row["metric"] for row in found)
    missing = [name for name, task in results["tasks"].items() if task.get("status") == "missing"]
    if missing:
        lines.append(f"missing, without any figure: {', '.join(missing)}")
    lines += [f"{task}: {line}" for task, values in results["tasks"].items() if (line := fewer_examples(values))]
    settings = results.get("settings", {})
    if precision := [settings[name] for name in ("dtype", "quantization") if settings.get(name)]:
        lines.append(f"computed in {' with weights in '.join(precision)}")
    if settings.get("chat_format"):
        lines.append(f"texts are questions of a chat, in the format of {settings['chat_format']}")
    return lines + ([part] if part else [])


def long_items(results: dict) -> str:
    """What the column is about."""
    longest = ((results.get("settings") or {}).get("model") or {}).get("max_sequence_length")
    than = "the model takes" if longest is None else f"the {longest} tokens that the model takes"
    return f"long: items longer than {than}, scored all the same, since max_seq_length allows it"


def limited(results: dict) -> str | None:
    """Which rows --limit took, where some file had more than that; else None: every figure is of its whole task."""
    settings = results.get("settings") or {}
    limit, seed = settings.get("limit"), settings.get("sample_seed")
    if limit is None or all(row.get("is_whole", True) for row in rows(results)):
        return None
    if limit < 1:
        taken, was = f"{limit * 100:g}% of the rows", "were"
    else:
        taken, was = ("row", "was") if limit == 1 else (f"{limit} rows", "were")
    if seed is None:
        return f"only the first {taken} of every file {was} taken: {PARTIAL}"
    return f"only {'one ' * (limit == 1)}{taken} of every file, drawn with seed {seed}, {was} taken: {SAMPLED}"


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


def empty_table(color: bool):
    """A table with a rule below its headings and no other line; without colour in ASCII."""
    from rich import box
    from rich.table import Table

    plain = box.Box("    \n" "    \n" " -- \n" "    \n" "    \n" "    \n" "    \n" "    \n", ascii=True)
    return Table(box=box.SIMPLE_HEAD if color else plain, padding=(0, 0, 0, 1), header_style="bold", show_edge=False,
                 pad_edge=False)


def rendered(table, lines: list[str], width: int, color: bool) -> str:
    from rich.console import Console

    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=color, no_color=not color, highlight=False,
                      color_system="standard" if color else None, emoji=False, markup=False, legacy_windows=False)
    console.print(table)
    for line in lines:
        console.print(printable(line), style="dim" if color else None)
    return "\n".join(line.rstrip() for line in stream.getvalue().strip("\n").split("\n")) + "\n"


def beginning(config: TaskConfig) -> list[str]:
    """Said before a task's first batch: two blank lines, the settings, the name."""
    return ["", "", repr(config), f"Evaluating task {config.name}:"]


def missing(config: TaskConfig, reason: str) -> list[str]:
    """Said instead of all the rest where a task has no data (--allow-missing)."""
    return ["", "", repr(config), f"Missing task {config.name}: {reason}"]


def task_lines(config: TaskConfig, groups: Mapping[str, Sequence[str]], record: Mapping, seconds: float) -> list[str]:
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


def fewer_examples(task: Mapping) -> str | None:
    """What is to be said of a task (of results.json) some of whose items had no room for all examples."""
    count = task.get("counts", {}).get("fewer_examples")
    return None if not count else (f"{counted(count, 'item')} {'has' if count == 1 else 'have'} fewer than "
                                   f"{task['config']['num_fewshot']} examples, for want of room")
