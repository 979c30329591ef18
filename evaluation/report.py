"""report.html: a run as one page that needs nothing but itself, made from results.json and samples/.

Here and in evaluation/report_task.py are the values that it shows, in evaluation/report.html is how.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from evaluation.metrics import Metric, notes_on
from evaluation.output import REPORT, TIMINGS
from evaluation.page import rendered
from evaluation.recorded import RecordedRun
from evaluation.report_task import TaskReport
from evaluation.table import NO_INTERVAL, kind_of, limited, long_items
from runtime.errors import UserError
from runtime.files import replacing
from runtime.reading import LARGE, read_json
from runtime.show import duration

TEMPLATE = Path(__file__).with_name("report.html")
_SHORT = 3  # tasks of a page whose sample items are shown unasked
_COLUMNS = ("task", "group", "metric", "average", "95% interval", "", "n", "cut", "long", "max", "median")
_NUMBERS = ("n", "cut", "long", "max", "median", "average")


def write_report(folder: str | Path, own_code: bool = False) -> Path:
    """Write report.html into the output folder of a finished run. own_code: as of RecordedRun. Raises UserError where
    there is no such run, or where its samples cannot be read."""
    run = RecordedRun(folder, own_code)
    path = run.folder / REPORT
    page = report(run, _timings(run.folder))
    try:
        with replacing(path) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return path


def _timings(folder: Path) -> dict | None:
    try:
        found = read_json(folder / TIMINGS, LARGE)
    except UserError:
        return None
    return found if isinstance(found, dict) else None


def report(run: RecordedRun, timings: Mapping | None = None) -> str:
    """The page. timings: of timings.json, where there is one."""
    timings = timings or {}
    seconds = {name: each.get("seconds") for name, each in (timings.get("tasks") or {}).items()}
    tasks = {name: TaskReport(run, name, seconds.get(name), len(run.done) <= _SHORT) for name in run.done}
    has_long = any(task["counts"].get("overlong") for task in run.done.values())
    checkpoint, command, part = run.results.get("checkpoint") or {}, timings.get("command"), limited(run.results)
    return rendered(
        TEMPLATE,
        title=f"Evaluation of {Path(str(checkpoint.get('path') or 'a model')).name}",
        facts=_facts(run, timings), command=command if isinstance(command, str) else None,
        limited=part and f"{part[:1].upper()}{part[1:]}.", numbers=_NUMBERS,
        columns=[name for name in _COLUMNS if name != "long" or has_long], lines=list(_lines(run, tasks)),
        note=_note(run, has_long), tasks=tasks.values(),
        missing=[(name, task.get("reason") or "there were no data") for name, task in run.tasks.items()
                 if name not in run.done],
        provenance=_provenance(run.results, timings))


def _facts(run: RecordedRun, timings: Mapping) -> list[tuple[str, str]]:
    """What stands at the page's head, by name."""
    settings, counts = run.results.get("settings") or {}, [task["counts"] for task in run.done.values()]
    facts = [("tasks", f"{len(run.done):,}"), ("items", f"{sum(each['scored'] for each in counts):,}"),
             ("truncated", f"{sum(each['truncated'] for each in counts):,}"),
             ("checkpoint", str((run.results.get("checkpoint") or {}).get("sha256") or "–")[:12])]
    facts += [(name, str(settings[name])) for name in ("dtype", "quantization", "device") if settings.get(name)]
    if isinstance(timings.get("started"), str):
        facts.append(("date", timings["started"][:16].replace("T", " ")))
    if timings.get("seconds"):
        facts.append(("time", duration(timings["seconds"])))
    return facts


def _lines(run: RecordedRun, tasks: Mapping[str, TaskReport]) -> Iterator[dict]:
    """The lines of the table: one for each figure of each group, with the task's name in its first one."""
    for name in run.tasks:
        if name not in tasks:
            yield {"task": name}
            continue
        task, shown = tasks[name], name
        for group, metrics in task.entry["groups"].items():
            group = "" if list(task.entry["groups"]) == ["all"] else group
            for metric, values in metrics.items():
                base, kind = kind_of(metric, metrics)
                yield {"task": shown, "group": group, "kind": kind, "metric": base, **values,
                       "n": {"overlong": 0, **values["n"]}, "track": _track(task.metric(metric), values, task)}
                shown = group = ""


def _track(metric: Metric | None, values: Mapping, task: TaskReport) -> dict | None:
    """Where the average, its interval and guessing lie on the line that the metric's figures are drawn on, in percent
    of it; None where it has none. A metric that is not to be had is taken for a percentage."""
    scale = 100.0 if metric is None else metric.scale
    low, high = values["interval"]
    known = [value for value in (values["average"], low, high) if value is not None]
    if scale is None or values["average"] is None or not all(0 <= value <= scale for value in known):
        return None
    guessing = task.guessing(metric)
    return {"place": 100 * values["average"] / scale, "low": None if low is None else 100 * low / scale,
            "width": None if low is None else 100 * (high - low) / scale,
            "mark": None if guessing is None else 100 * guessing / scale}


def _note(run: RecordedRun, has_long: bool) -> str:
    """What a reader of the table must know."""
    every = [(metric, values["interval_method"]) for task in run.done.values() for metrics in task["groups"].values()
             for metric, values in metrics.items()]
    methods = dict.fromkeys(method for _, method in every)
    return "; ".join([
        "n: items scored", "cut: those whose text was too long", *[long_items(run.results)] * has_long,
        "max, median, average: over prompts (files), the average weighted by their items",
        f"intervals: {'; '.join(each for each in methods if not each.startswith('none'))}",
        *[f"-: {NO_INTERVAL}"] * any(each.startswith("none") for each in methods),
        "lines: 0 to 100, dotted: guessing", *notes_on(metric for metric, _ in every)]) + "."


def _provenance(results: Mapping, timings: Mapping) -> list[tuple[str, Mapping]]:
    parts = [(title, results.get(title.lower()))
             for title in ("Checkpoint", "Tokenizer", "Code", "Settings", "Versions")]
    if timings:
        parts.append(("This run", {key: value for key, value in timings.items() if key not in ("tasks", "schema")}))
    return [(title, values) for title, values in parts if isinstance(values, Mapping)]
