"""report.html of a training: its curves, validations with intervals, rows with predictions, settings, and all that a
user should know of its rows. Made from the run's folder; needs nothing else but the samples whose texts it shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from evaluation import report_samples
from evaluation.metrics import statistics_of
from evaluation.page import rendered
from evaluation.report_task import Plot
from evaluation.scored_rows import ScoredRows
from evaluation.statistics import interval
from evaluation.table import figure
from runtime.errors import UserError
from runtime.files import replacing
from runtime.reading import read_json
from runtime.show import counted
from tuning.data.sample import Sample
from tuning.plots import curve, validations_of
from tuning.run import CONTENTS, FACTS, PARAMETERS, SETTINGS, read_log

REPORT, VALIDATIONS = "report.html", "validation"
EPOCH, STEP = "epoch", "step"  # what a validation follows, as the log's lines name it
TEMPLATE = Path(__file__).with_name("report.html")
_MOST_SAMPLES, _MOST_PLOTS = 8, 3
_NEARNESS = ("rouge-1", "F1")  # of a text to its reference, one of these
_CURVES = {"loss": ("Loss", "nats"), "learning_rate": ("Learning rate", "rate"),
           "gradient_norm": ("Gradient norm", "before clipping")}


@dataclass(frozen=True)
class Validated:
    """What a validation found."""

    at: int  # the epoch or, in pretraining, the step that it followed
    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float | None, float | None]]  # of those figures that rows are enough for
    is_best: bool  # of all epochs: its weights were kept


def validation_file(folder: Path, at: int, unit: str = EPOCH) -> Path:
    """Where the rows of a validation are kept, in the form of `python -m tuning evaluate --output`."""
    return folder / VALIDATIONS / f"{unit}-{at}.json"


def write_rows(folder: Path, at: int, found: Mapping[str, Any], unit: str = EPOCH) -> None:
    path = validation_file(folder, at, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


def write_report(folder: Path, samples: Sequence[Sample] = (), notes: Sequence[str] = (),
                 read: Callable[[Sample], str] = lambda sample: sample.text) -> Path:
    """samples: of validation, whose texts are shown. notes: what is to be known of the rows (tuning.notes). read: a
    sample's text for people."""
    path = folder / REPORT
    try:
        with replacing(path) as temporary:
            temporary.write_text(report(folder, samples, notes, read), encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return path


def report(folder: Path, samples: Sequence[Sample] = (), notes: Sequence[str] = (),
           read: Callable[[Sample], str] = lambda sample: sample.text) -> str:
    """The page. UserError where the folder holds no training, or a damaged one."""
    facts, lines = read_json(folder / FACTS), read_log(folder)
    if not lines:
        raise UserError(f"{folder}: no step was done, so there is nothing to report")
    validated = [line for line in lines if line.get("validation")]
    unit = EPOCH if any(EPOCH in line for line in validated) else STEP
    kept = max((line[unit] for line in validated if line.get("is_best")), default=None)
    validations = [_validated(folder, line, unit, kept) for line in validated]
    names = list(dict.fromkeys(name for each in validations for name in each.figures))
    scored = _scored(validation_file(folder, validations[-1].at, unit)) if validations else None
    learned = read_json(folder / PARAMETERS) if (folder / PARAMETERS).is_file() else {}
    return rendered(
        TEMPLATE, title=f"Training of {folder.name}", facts=list(_facts(facts[SETTINGS], lines, validations, unit)),
        command=None, limited=None, notes=[*notes, *oddities(lines)],
        plots=list(_plots(lines, validations, names, unit)), validations=validations, names=names, unit=unit,
        rows=len(scored.items("", "")) if scored else 0,
        samples=_samples(scored, samples, read) if scored else [],
        provenance=[("Settings", facts[SETTINGS]),
                    ("What was read", {name: digest[:12] for name, digest in facts[CONTENTS].items()}),
                    ("What learns", {name.replace("_", " "): counted(len(each), "tensor")
                                     for name, each in learned.items()})])


def _scored(path: Path) -> ScoredRows | None:
    """None where there is no such file, or none of its rows has a figure."""
    try:
        return ScoredRows(path) if path.is_file() else None
    except UserError:
        return None


def _facts(settings: Mapping[str, Any], lines: Sequence[Mapping], validations: Sequence[Validated],
           unit: str) -> Iterator[tuple]:
    """What stands at the page's head, by name."""
    yield "task", str(settings.get("task", "–"))
    yield "steps", f"{len(lines):,}"
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    part = max(1, len(losses) // 10)
    if losses:
        yield "loss, first and last tenth", f"{sum(losses[:part]) / part:.4g}, {sum(losses[-part:]) / part:.4g}"
    for name, value in lines[-1].get("test", {}).items():
        yield f"{name} of the test documents", figure(value)
    best = next((each for each in validations if each.is_best), None)
    if best is not None:
        name, value = next(iter(best.figures.items()))
        yield f"best {name}", f"{figure(value)} in {unit} {best.at}"


def oddities(lines: Sequence[Mapping]) -> Iterator[str]:
    """What the log itself gives reason to say."""
    empty = [line["step"] for line in lines if line.get("empty")]
    if empty:
        yield (f"{len(empty)} of {len(lines)} steps passed without learning, the first of them step {empty[0]}: no "
               "sample of their batches had room for its blanks")
    skipped = [line["step"] for line in lines if line.get("skipped")]
    if skipped:
        yield (f"{len(skipped)} of {len(lines)} steps moved nothing, the first of them step {skipped[0]}: the gradient "
               "overflowed, and the loss' scale was halved")
    zero = [line["step"] for line in lines if line["loss"] == 0]
    if zero:
        yield f"{len(zero)} of {len(lines)} steps had a loss of exactly 0, the first of them step {zero[0]}"


def _validated(folder: Path, line: Mapping[str, Any], unit: str, kept: int | None) -> Validated:
    found, run = {}, _scored(validation_file(folder, line[unit], unit))
    if run is not None:
        for name, metric in run.metrics(next(iter(run.tasks)), run.items("", "")).items():
            if name in line["validation"]:
                low, high, _ = interval(metric, [statistics_of(metric, run.items("", ""))])
                found[name] = (low, high)
    return Validated(line[unit], line["validation"], found, line[unit] == kept)


def _plots(lines: Sequence[Mapping], validations: Sequence[Validated], names: Sequence[str],
           unit: str) -> Iterator[Plot]:
    ends = [line["step"] for line in lines if "epoch" in line]
    for key, (title, measure) in _CURVES.items():
        known = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if len(known) > 1:
            steps, values = zip(*known, strict=True)
            caption = f"{values[0]:.3g} in the first step, {values[-1]:.3g} in the last"
            yield Plot(title, caption, Markup(curve(steps, values, measure, ends)))
    for name in names[:_MOST_PLOTS] if len(validations) > 1 else ():
        having = [each for each in validations if name in each.figures]
        best = next((each.at for each in having if each.is_best), None)
        kept = "" if best is None else f"; dashed: the {unit} that was kept"
        yield Plot(f"{name} by {unit}", f"bars: 95% intervals{kept}", Markup(validations_of(
            [each.at for each in having], [each.figures[name] for each in having],
            [each.intervals.get(name, (None, None)) for each in having], name, unit, best)))


def _samples(scored: ScoredRows, samples: Sequence[Sample], read: Callable[[Sample], str]) -> list[dict[str, Any]]:
    """Rows that a reader should see, in the form that evaluation/parts.html shows."""
    known, shown = {sample.guid: sample for sample in samples}, []
    items = [_item(row) for row in scored.items("", "") if row["index"] in known]
    if not items:
        return []
    score = [float(item["prediction"] == item["label"]) if isinstance(item.get("label"), int) else
             next((float(item[name]) for name in _NEARNESS if name in item), 0.0) for item in items]
    if max(score) > 1:  # in percent
        score = [each / 100 for each in score]
    for why, place in report_samples.chosen(items, score)[:_MOST_SAMPLES]:
        item, sample = items[place], known[items[place]["index"]]
        row = {"inputs_pretokenized": read(sample)}
        if texts := sample.meta.get("choices"):
            row["choices_pretokenized"] = list(texts)
        is_judged = isinstance(item.get("label"), int)
        shown.append(report_samples.shown(item, why, "validation", row, score[place] if is_judged else None))
    return shown


def _item(row: Mapping[str, Any]) -> dict[str, Any]:
    """As items of an evaluation are."""
    found = {name: value for name, value in row.items() if name != "loss" or "ref" not in row}
    if "scores" in row:
        found["log_probs"] = row["scores"]
    if "ref" in row:
        found["targets"] = [row["ref"]]
    return found
