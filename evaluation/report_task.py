"""A task's part of report.html: its figures, what its items show when looked at in other ways, and some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from evaluation import analysis, plots
from evaluation.metrics import METRICS, Metric, guessed, statistics_of
from evaluation.recorded import RecordedRun
from evaluation.report_samples import chosen, shown, source_rows
from evaluation.statistics import blocks_of
from evaluation.table import fewer_examples, figure, kind_of, long_items
from runtime.errors import UserError
from runtime.show import counted

KINDS = {"mul": "multiple choice", "gen": "generation", "lm": "language model", "other": "own task"}
_MOST_METRICS, _MOST_LINES, _MOST_SERIES = 3, 80, 4


class Plot(NamedTuple):
    title: str
    caption: str
    svg: Markup


class TaskReport:
    """Reads a task's items once; the template asks for the values that it shows."""

    def __init__(self, run: RecordedRun, name: str, seconds: float | None = None, is_open: bool = True):
        """seconds: that it took. is_open: whether its sample items are shown unasked."""
        self.run, self.name, self.entry, self.is_open = run, name, run.tasks[name], is_open
        self.files = {file: run.items(name, file) for file in self.entry["files"]}
        self.items = [item for items in self.files.values() for item in items]
        self.names = list(dict.fromkeys(name for file in self.entry["files"].values() for name in file["metrics"]))
        self.kind = KINDS.get(self.entry["config"]["type"], self.entry["config"]["type"])
        self.settings = {"file": self.entry["file"], "sha256": self.entry["sha256"]} | self.entry["config"]
        counts = self.entry["counts"]
        scored = f"{counts['scored']:,}" + (f" of {counts['expected']:,}" * (counts["scored"] != counts["expected"]))
        self.facts = [f"{scored} items", counted(len(self.files), "file"),
                      *([] if seconds is None else [f"{seconds:.1f} s"])]
        try:
            by_file = [run.metrics(name, items) for items in self.files.values()]
        except UserError:  # the task's own module is not there any more
            by_file = [{}]
        self.metrics = {name: metric for metrics in by_file for name, metric in metrics.items()}
        # (n, k) of all items, of the metrics that all files have
        self.statistics = self._statistics([name for name in by_file[0] if all(name in each for each in by_file)])
        self._told_apart = self._without_repetitions()

    def _statistics(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        try:
            return {name: np.concatenate([statistics_of(self.metrics[name], items) for items in self.files.values()])
                    for name in names}
        except UserError:
            return {}

    def _without_repetitions(self) -> list[str]:
        """The metrics, without those of one kind of items and those that say the same as an earlier one everywhere."""
        found: dict[tuple, str] = {}
        for name in self.names:
            if kind_of(name, self.names)[1] is None:
                found.setdefault(tuple(file["metrics"].get(name) for file in self.entry["files"].values()), name)
        return list(found.values())[:_MOST_METRICS]

    def metric(self, name: str) -> Metric | None:
        return self.metrics.get(name) or METRICS.get(name)

    def guessing(self, metric: Metric | None) -> float | None:
        """What a guess would reach of a metric over all items."""
        return metric.chance(self.items) if metric is not None and metric.chance is not None else None

    def figures(self) -> Iterator[tuple[str, float | None, Sequence]]:
        """(name, average, interval) of every group's metrics."""
        for group, metrics in self.entry["groups"].items():
            prefix = "" if len(self.entry["groups"]) == 1 else f"{group}: "
            for name in self._told_apart:
                if name in metrics:
                    yield f"{prefix}{name}", metrics[name]["average"], metrics[name]["interval"]

    def hints(self) -> Iterator[str]:
        if line := fewer_examples(self.entry):
            yield f"{line}."
        guess = guessed(self.items)
        if guess is not None:
            yield (f"Guessing would reach {figure(guess)}, and always choosing the place that is right most often "
                   f"{figure(analysis.most_frequent(self.items))}.")
        if by_choices := analysis.by_choices(self.items):
            yield "By number of choices: " + ", ".join(
                f"{number}: {100 * share:.1f} (n = {count})" for number, count, share in by_choices) + "."

    def marked(self) -> Iterator[tuple[str, list[tuple[str, int, str]]]]:
        """Which items were cut off, or are longer than the model takes: (how many of what, [(file, n, indices)])."""
        limit = self.entry["config"].get("max_seq_length")
        for field, what in (
                ("truncated_items", f"truncated: their text was longer than max_seq_length ({limit}) allows"),
                ("overlong_items", long_items(self.run.results).removeprefix("long: items "))):
            found = [(file, len(each[field]), analysis.ranges(each[field]))
                     for file, each in self.entry["files"].items() if each.get(field)]
            if found:
                yield f"{sum(count for _, count, _ in found):,} {what}", found

    def samples(self) -> list[dict]:
        """Some items of the first file, each as the template shows it."""
        file, items = next(iter(self.files.items()))
        score = self._scores()
        score = None if score is None else score[:len(items)]
        rows = source_rows(self.run.config(self.name), file, self.entry["files"][file]["sha256"])
        found = []
        for why, place in chosen(items, score):
            index = items[place]["index"]
            row = rows[index] if rows is not None and 0 <= index < len(rows) else {}
            found.append(shown(items[place], why, file, row, None if score is None else float(score[place])))
        return found

    def _scores(self) -> np.ndarray | None:
        """(n,) how right each item is, from 0 to 1, by the first metric that says so. None where nothing is right or
        wrong: choices without a label."""
        if any("log_probs" in item and item.get("label") is None for item in self.items):
            return None
        for name, array in self.statistics.items():
            if self.metrics[name].higher_is_better and array.shape == (len(self.items), 2) \
                    and (array[:, 1] == 1).all() and (array[:, 0] >= 0).all() and (array[:, 0] <= 1).all():
                return array[:, 0]
        return None

    def plots(self) -> list[Plot]:
        drawn = [self._spread(name) for name in self._told_apart] + [self._by_kind(name) for name in self._told_apart]
        drawn += [self._calibration(), self._places(), self._by_length(), self._windows(), self._answers()]
        return [Plot(title, caption, Markup(svg)) for title, caption, svg in filter(None, drawn)]

    def _spread(self, metric: str) -> tuple[str, str, str]:
        rows, groups = [], self.entry["groups"]
        files = {file: each for file, each in self.entry["files"].items() if metric in each["metrics"]}
        for group, metrics in groups.items():
            if metric in metrics and (len(files) > 1 or len(groups) > 1):
                label = "average" if len(groups) == 1 else f"{group}, average"
                rows.append((label, metrics[metric]["average"], *metrics[metric]["interval"], True))
            of_group = [file for file in files if files[file]["group"] == group]
            names = _without_common(of_group)
            of_group.sort(key=lambda file: -(files[file]["metrics"][metric] or 0) if len(of_group) > 6 else 0)
            rows += [(names[file], files[file]["metrics"][metric], *files[file]["intervals"][metric], False)
                     for file in of_group]
        values = [value for each in files.values() if (value := each["metrics"][metric]) is not None] or [None]
        text = f"from {figure(min(values))} to {figure(max(values))}" if len(values) > 1 else figure(values[0])
        mark = self.guessing(self.metric(metric))
        hints = [text, f"the first {_MOST_LINES} lines of {len(rows)}" if len(rows) > _MOST_LINES else "",
                 "diamonds: averages" if rows and rows[0][4] else "", "bars: 95% intervals",
                 "dotted: guessing" if mark is not None else ""]
        is_prompts = len(files) == 1 or len(blocks_of(list(self.files.values()), list(self.files))) < len(self.files)
        return (f"{metric} by {'prompt' if is_prompts else 'file'}", "; ".join(filter(None, hints)),
                plots.spread(rows[:_MOST_LINES], metric, mark))

    def _by_kind(self, metric: str) -> tuple[str, str, str] | None:
        """A figure that is also given for each kind of items, as "SS (gender)"."""
        rows = []
        for group, metrics in self.entry["groups"].items():
            prefix = "" if len(self.entry["groups"]) == 1 else f"{group}, "
            for name, each in metrics.items():
                base, kind = kind_of(name, metrics)
                if base == metric:
                    rows.append((f"{prefix}{kind or 'all'} (n = {each['n']['scored']})", each["average"],
                                 *each["interval"], kind is None))
        if len(rows) <= len(self.entry["groups"]):
            return None
        return f"{metric} by kind", "bars: 95% intervals", plots.spread(rows[:_MOST_LINES], metric)

    def _calibration(self) -> tuple[str, str, str] | None:
        found = analysis.calibration(self.items)
        if found is None:
            return None
        gap = found.mean_confidence - found.mean_accuracy
        verdict = "about right" if abs(gap) < 0.02 else "surer than right" if gap > 0 else "less sure than right"
        return ("Calibration", f"expected calibration error {found.error:.3f}; {verdict}: mean confidence "
                f"{found.mean_confidence:.2f}, share right {found.mean_accuracy:.2f}", plots.reliability(found))

    def _places(self) -> tuple[str, str, str] | None:
        found = analysis.places(self.items)
        if found is None:
            return None
        right, predicted = found
        place = int(np.argmax(np.abs(predicted - right)))
        return ("Answers by place", f"the choice at place {place} is right in {100 * right[place]:.0f}% and chosen in "
                f"{100 * predicted[place]:.0f}%", plots.places(right, predicted))

    def _by_length(self) -> tuple[str, str, str] | None:
        name, array = next(iter(self.statistics.items()), (None, ()))
        if len(array) != len(self.items) or not all("input_length" in item for item in self.items) \
                or "loss" in self.items[0]:
            return None
        metric = self.metrics[name]
        bins = analysis.by_length(metric, array, [item["input_length"] for item in self.items], self._identities())
        if len({each.figure for each in bins}) < 2:  # all wrong, say: a line that tells nothing
            return None
        return (f"{name} by length of the context", f"{figure(bins[0].figure)} for the shortest, "
                f"{figure(bins[-1].figure)} for the longest; bars: 95% intervals",
                plots.lengths(bins, name, self.guessing(metric)))

    def _identities(self) -> list[int]:
        """A number for every item, the same for one item under several prompts."""
        lists, begin = list(self.files.values()), 0
        numbers: list[range] = [range(0)] * len(lists)
        for block in blocks_of(lists, list(self.files)):
            for place in block:
                numbers[place] = range(begin, begin + len(lists[place]))
            begin = numbers[block[0]].stop
        return [number for each in numbers for number in each]

    def _windows(self) -> tuple[str, str, str] | None:
        series = [(file, analysis.losses(items)) for file, items in self.files.items()]
        series = [(file, values) for file, values in series if len(values)]
        if not series:
            return None
        every = np.concatenate([values for _, values in series])
        note = f"; {_MOST_SERIES} of {len(series)} files" if len(series) > _MOST_SERIES else ""
        return ("Loss along the text", f"{every.mean():.3f} nats per token, from {every.min():.3f} to "
                f"{every.max():.3f}{note}", plots.windows(series[:_MOST_SERIES]))

    def _answers(self) -> tuple[str, str, str] | None:
        found = analysis.answer_lengths(self.items)
        if found is None:
            return None
        predicted, wanted = found
        limit = self.entry["config"].get("max_gen_length")
        cut = sum(len(item.get("ids") or ()) >= limit for item in self.items) if limit else 0
        extra = [f"{int((predicted == 0).sum()):,} empty" if (predicted == 0).any() else "",
                 f"{cut:,} as long as max_gen_length ({limit})" if cut else ""]
        return ("Length of the answers", "; ".join([
            f"median length {np.median(predicted):g}, of the references {np.median(wanted):g}", *filter(None, extra)]),
            plots.answer_lengths(predicted, wanted))


def _without_common(files: Sequence[str]) -> dict[str, str]:
    """Names of a group's files without what all of them share: folders at either end, and the ending."""
    parts = [file.split("/") for file in files]
    for end in (0, -1):
        while len(files) > 1 and min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            parts = [part[1:] if end == 0 else part[:-1] for part in parts]
    suffixes = {Path(part[-1]).suffix for part in parts}
    cut = len(suffixes.pop()) if len(suffixes) == 1 else 0
    return {file: "/".join(part)[:-cut or None] for file, part in zip(files, parts, strict=True)}
