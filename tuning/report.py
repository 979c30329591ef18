"""report.html of a training: its curves, validations with intervals, rows with predictions, settings, and all that a
user should know of its rows. Made from the run's folder; needs nothing else but the samples whose texts it shows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
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
from tuning.plots import by_epoch, curve
from tuning.run import CONTENTS, FACTS, PARAMETERS, SETTINGS, read_log

REPORT, VALIDATIONS, NOTES = "report.html", "validation", "notes.json"
TEMPLATE = Path(__file__).with_name("report.html")
_MOST_SAMPLES, _MOST_PLOTS = 8, 3
_CURVES = {"loss": ("Loss", "nats"), "learning_rate": ("Learning rate", "rate"),
           "gradient_norm": ("Gradient norm", "before clipping")}


@dataclass(frozen=True)
class Validated:
    """What an epoch's validation found."""

    epoch: int
    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float | None, float | None]]  # of those figures that rows are enough for
    is_best: bool  # of all epochs: its weights were kept


def validation_file(folder: Path, epoch: int) -> Path:
    """Where the rows of an epoch's validation are kept, in the form of `python -m tuning evaluate --output`."""
    return folder / VALIDATIONS / f"epoch-{epoch}.json"


def write_rows(folder: Path, epoch: int, found: Mapping[str, Any]) -> None:
    path = validation_file(folder, epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, ensure_ascii=False) + "\n", encoding="utf-8")


def write_report(folder: Path, samples: Sequence[Sample] = (), notes: Sequence[str] = ()) -> Path:
    """samples: of validation, whose texts are shown. notes: what is to be known of the rows (tuning.notes)."""
    path = folder / REPORT
    try:
        with replacing(path) as temporary:
            temporary.write_text(report(folder, samples, notes), encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return path


def report(folder: Path, samples: Sequence[Sample] = (), notes: Sequence[str] = ()) -> str:
    """The page. UserError where the folder holds no training, or a damaged one."""
    facts, lines = read_json(folder / FACTS), read_log(folder)
    if not lines:
        raise UserError(f"{folder}: no step was done, so there is nothing to report")
    validated = [line for line in lines if line.get("validation")]
    kept = max((line["epoch"] for line in validated if line.get("is_best")), default=None)
    validations = [_validated(folder, line, kept) for line in validated]
    names = list(dict.fromkeys(name for each in validations for name in each.figures))
    last = validation_file(folder, validations[-1].epoch) if validations else None
    scored = ScoredRows(last) if last is not None and last.is_file() else None
    learned = read_json(folder / PARAMETERS) if (folder / PARAMETERS).is_file() else {}
    return rendered(
        TEMPLATE, title=f"Training of {folder.name}", facts=list(_facts(facts[SETTINGS], lines, validations)),
        command=None, limited=None, notes=[*notes, *_odd(lines)], plots=list(_plots(lines, validations, names)),
        validations=validations, names=names, rows=len(scored.items("", "")) if scored else 0,
        samples=_samples(scored, samples) if scored else [],
        provenance=[("Settings", facts[SETTINGS]),
                    ("What was read", {name: digest[:12] for name, digest in facts[CONTENTS].items()}),
                    ("What learns", {name.replace("_", " "): counted(len(each), "tensor")
                                     for name, each in learned.items()})])


def _facts(settings: Mapping[str, Any], lines: Sequence[Mapping], validations: Sequence[Validated]) -> Iterator[tuple]:
    """What stands at the page's head, by name."""
    yield "task", str(settings.get("task", "–"))
    yield "steps", f"{len(lines):,}"
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    part = max(1, len(losses) // 10)
    if losses:
        yield "loss, first and last tenth", f"{sum(losses[:part]) / part:.4g}, {sum(losses[-part:]) / part:.4g}"
    best = next((each for each in validations if each.is_best), None)
    if best is not None:
        name, value = next(iter(best.figures.items()))
        yield f"best {name}", f"{figure(value)} in epoch {best.epoch}"


def _odd(lines: Sequence[Mapping]) -> Iterator[str]:
    """What the log itself gives reason to say."""
    skipped = [line["step"] for line in lines if line.get("skipped")]
    if skipped:
        yield (f"{len(skipped)} of {len(lines)} steps moved nothing, the first of them step {skipped[0]}: the gradient "
               "overflowed, and the loss' scale was halved")
    zero = [line["step"] for line in lines if line["loss"] == 0]
    if zero:
        yield f"{len(zero)} of {len(lines)} steps had a loss of exactly 0, the first of them step {zero[0]}"


def _validated(folder: Path, line: Mapping[str, Any], kept: int | None) -> Validated:
    path, found = validation_file(folder, line["epoch"]), {}
    if path.is_file():
        run = ScoredRows(path)
        for name, metric in run.metrics(next(iter(run.tasks)), run.items("", "")).items():
            if name in line["validation"]:
                low, high, _ = interval(metric, [statistics_of(metric, run.items("", ""))])
                found[name] = (low, high)
    return Validated(line["epoch"], line["validation"], found, line["epoch"] == kept)


def _plots(lines: Sequence[Mapping], validations: Sequence[Validated], names: Sequence[str]) -> Iterator[Plot]:
    ends = [line["step"] for line in lines if "epoch" in line]
    for key, (title, unit) in _CURVES.items():
        known = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if len(known) > 1:
            steps, values = zip(*known, strict=True)
            caption = f"{values[0]:.3g} in the first step, {values[-1]:.3g} in the last"
            yield Plot(title, caption, Markup(curve(steps, values, unit, ends)))
    for name in names[:_MOST_PLOTS] if len(validations) > 1 else ():
        having = [each for each in validations if name in each.figures]
        best = next((each.epoch for each in having if each.is_best), None)
        yield Plot(f"{name} by epoch", "bars: 95% intervals; dashed: the epoch that was kept", Markup(by_epoch(
            [each.epoch for each in having], [each.figures[name] for each in having],
            [each.intervals.get(name, (None, None)) for each in having], name, best)))


def _samples(scored: ScoredRows, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Rows that a reader should see, in the form that evaluation/parts.html shows."""
    known, shown = {sample.guid: sample for sample in samples}, []
    items = [_item(row) for row in scored.items("", "") if row["index"] in known]
    if not items:
        return []
    score = [float(item["prediction"] == item["label"]) if isinstance(item.get("label"), int) else
             float(item.get("rouge-1", 0.0)) for item in items]
    for why, place in report_samples.chosen(items, score)[:_MOST_SAMPLES]:
        item, sample = items[place], known[items[place]["index"]]
        row = {"inputs_pretokenized": sample.text}
        if texts := sample.meta.get("choices"):
            row["choices_pretokenized"] = list(texts)
        is_judged = isinstance(item.get("label"), int)
        shown.append(report_samples.shown(item, why, "validation", row, score[place] if is_judged else None))
    return shown


def _item(row: Mapping[str, Any]) -> dict[str, Any]:
    """As items of an evaluation are."""
    found = dict(row)
    if "scores" in row:
        found["log_probs"] = row["scores"]
    if "ref" in row:
        found["targets"] = [row["ref"]]
    return found
