"""report.html: a run as one page that needs nothing but itself, made from results.json and samples/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evaluation.markup import Html, tag
from evaluation.metrics import notes_on
from evaluation.recorded import RecordedRun
from evaluation.report_style import STYLE
from evaluation.report_task import TaskReport, anchor, definitions
from evaluation.table import NO_INTERVAL, figure, kind_of, limited, limits, long_items
from runtime.errors import UserError
from runtime.files import replacing
from runtime.reading import LARGE, read_json
from runtime.show import duration

REPORT, TIMINGS = "report.html", "timings.json"
_SHORT = 3  # tasks of a page whose sample items are shown unasked


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


def report(run: RecordedRun, timings: Mapping | None = None) -> str:
    """The page. timings: of timings.json, where there is one."""
    seconds = {name: each.get("seconds") for name, each in ((timings or {}).get("tasks") or {}).items()}
    is_short = len(run.done) <= _SHORT
    reports = [TaskReport(run, name, seconds.get(name), is_short) for name in run.done]
    chances = {each.name: each.chance for each in reports}
    title = f"Evaluation of {_model_name(run.results)}"
    head = tag("head", tag("meta", charset="utf-8"),
               tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
               tag("title", title), tag("style", Html(STYLE)))
    body = tag("body", tag("h1", title, id="top"), _facts(run, timings), _command(timings), _notes(run),
               _summary(run, chances), [each.html() for each in reports], _missing(run),
               _provenance(run.results, timings))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _model_name(results: Mapping) -> str:
    return Path(str((results.get("checkpoint") or {}).get("path") or "a model")).name


def _facts(run: RecordedRun, timings: Mapping | None) -> Html:
    settings, counts = run.results.get("settings") or {}, [task["counts"] for task in run.done.values()]
    facts = [("tasks", f"{len(run.done):,}"), ("items", f"{sum(each['scored'] for each in counts):,}"),
             ("truncated", f"{sum(each['truncated'] for each in counts):,}"),
             ("checkpoint", str((run.results.get("checkpoint") or {}).get("sha256") or "–")[:12])]
    facts += [(name, str(settings[name])) for name in ("dtype", "quantization", "device") if settings.get(name)]
    if timings and isinstance(timings.get("started"), str):
        facts.append(("date", timings["started"][:16].replace("T", " ")))
    if timings and timings.get("seconds"):
        facts.append(("time", duration(timings["seconds"])))
    return tag("div", [tag("span", tag("span", f"{name} ", class_="faint"), tag("b", value)) for name, value in facts],
               class_="facts number")


def _command(timings: Mapping | None) -> Html | None:
    command = (timings or {}).get("command")
    return tag("p", tag("code", command), class_="faint") if isinstance(command, str) else None


def _notes(run: RecordedRun) -> Html | None:
    part = limited(run.results)
    return tag("p", f"{part[:1].upper()}{part[1:]}.", class_="note") if part else None


def _summary(run: RecordedRun, chances: Mapping[str, float | None]) -> Html:
    has_long = any(task["counts"].get("overlong") for task in run.done.values())
    names = ["task", "group", "metric", "average", "95% interval", "", "n", "cut", "long", "max", "median"]
    if not has_long:
        names.remove("long")
    numbers = ("n", "cut", "long", "max", "median", "average")
    head = tag("tr", [tag("th", name, class_=_classes("right" if name in numbers else "", name)) for name in names])
    lines, methods, known = [], {}, {}
    for name, task in run.tasks.items():
        if name not in run.done:
            lines.append(tag("tr", tag("td", tag("a", name, href=f"#{anchor(name)}"), class_="name"),
                             tag("td", "missing", class_="missing", colspan=str(len(names) - 1))))
            continue
        first = True
        for group, metrics in task["groups"].items():
            group = None if list(task["groups"]) == ["all"] else group
            for place, (metric, each) in enumerate(metrics.items()):
                methods.setdefault(each["interval_method"], None)
                known.setdefault(metric, None)
                base, kind = kind_of(metric, metrics)
                where = tag("span", kind, class_="faint") if kind else group if place == 0 else None
                lines.append(_line(name if first else None, where, base, each, chances[name], has_long))
                first = False
    note = "; ".join([
        "n: items scored", "cut: those whose text was too long", *[long_items(run.results)] * has_long,
        "max, median, average: over prompts (files), the average weighted by their items",
        f"intervals: {'; '.join(each for each in methods if not each.startswith('none'))}",
        *[f"-: {NO_INTERVAL}"] * any(each.startswith("none") for each in methods),
        "lines: 0 to 100, dotted: guessing", *notes_on(known)]) + "."
    return tag("div", tag("div", tag("table", tag("thead", head), tag("tbody", lines)), class_="scroll"),
               tag("p", note, class_="faint"), class_="card")


def _classes(classes: str, column: str) -> str | None:
    """With the mark of the columns that narrow screens do without."""
    return f"{classes} wide".strip() if column == "" else classes or None


def _line(task: str | None, group: Html | str | None, metric: str, values: Mapping, chance: float | None,
          has_long: bool) -> Html:
    n = values["n"]
    is_whole = n["scored"] == n["expected"]
    scored = tag("td", f"{n['scored']:,}" if is_whole else f"{n['scored']:,}/{n['expected']:,}",
                 class_="right" if is_whole else "right cut")
    name = tag("a", task, href=f"#{anchor(task)}") if task else None
    return tag("tr", [tag("td", each, class_="name") for each in (name, group, metric)],
               tag("td", tag("b", figure(values["average"])), class_="right"),
               tag("td", limits(values["interval"])), tag("td", _track(metric, values, chance), class_="wide"), scored,
               [tag("td", f"{count:,}" if count else None, class_="right cut")
                for count in (n["truncated"], *[n.get("overlong")] * has_long)],
               [tag("td", figure(values[key]), class_="right") for key in ("max", "median")])


def _track(metric: str, values: Mapping, chance: float | None) -> Html | None:
    """The average with its interval on a line from 0 to 100, for what is a percentage."""
    low, high = values["interval"]
    known = [value for value in (values["average"], low, high) if value is not None]
    if metric in ("PPL", "BPB") or not all(0 <= value <= 100 for value in known):
        return None
    band = None if low is None else tag("i", style=f"left:{low:.2f}%;width:{high - low:.2f}%")
    mark = tag("u", style=f"left:{chance:.2f}%") if chance is not None and metric == "Accuracy" else None
    return tag("span", mark, band, tag("b", style=f"left:{values['average']:.2f}%"), class_="track", aria_hidden="true")


def _missing(run: RecordedRun) -> list[Html]:
    return [tag("section", tag("div", tag("h2", name), tag("span", "missing", class_="kind missing"), class_="head"),
                tag("p", task.get("reason") or "there were no data"), class_="card", id=anchor(name))
            for name, task in run.tasks.items() if name not in run.done]


def _provenance(results: Mapping, timings: Mapping | None) -> Html:
    parts = [(title, results.get(key)) for title, key in (
        ("Checkpoint", "checkpoint"), ("Tokenizer", "tokenizer"), ("Code", "code"), ("Settings", "settings"),
        ("Versions", "versions"))]
    if timings:
        parts.append(("This run", {key: value for key, value in timings.items() if key not in ("tasks", "schema")}))
    return tag("section", tag("h2", "What the figures rest on"),
               [(tag("h3", title), definitions(values)) for title, values in parts if isinstance(values, Mapping)],
               class_="card", id="provenance")


def _timings(folder: Path) -> dict | None:
    try:
        found = read_json(folder / TIMINGS, LARGE)
    except UserError:
        return None
    return found if isinstance(found, dict) else None
