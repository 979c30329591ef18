"""A task's part of report.html: its figures, what its items show when looked at in other ways, and some of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation import analysis, plots
from evaluation.markup import Html, joined, tag
from evaluation.metrics import statistics_of
from evaluation.recorded import RecordedRun
from evaluation.report_samples import chosen, shown, source_rows
from evaluation.statistics import blocks_of
from evaluation.table import figure, kind_of, limits, long_items
from runtime.errors import UserError

KINDS = {"mul": "multiple choice", "gen": "generation", "lm": "language model", "other": "own task"}
_MOST_METRICS, _MOST_LINES, _MOST_SERIES = 3, 80, 4
_OF_LABELS = ("Accuracy", "F1_mul", "Precision", "Recall")  # figures that guessing has a share of


class TaskReport:
    """Reads a task's items once; `html` is the section."""

    def __init__(self, run: RecordedRun, name: str, seconds: float | None = None, is_open: bool = True):
        self.run, self.name, self.entry, self.seconds, self.is_open = run, name, run.tasks[name], seconds, is_open
        self.files = {file: run.items(name, file) for file in self.entry["files"]}
        self.items = [item for items in self.files.values() for item in items]
        self.metrics, self.statistics = self._measured()
        self.chance = analysis.chance(self.items)

    def _measured(self) -> tuple[dict, dict[str, np.ndarray]]:
        """The metrics that all files have, and their (n, k) statistics of all items; none where the task's own module
        is not there any more."""
        try:
            by_file = {file: self.run.metrics(self.name, items) for file, items in self.files.items()}
            first = next(iter(by_file.values()))
            metrics = {name: metric for name, metric in first.items() if all(name in each for each in by_file.values())}
            return metrics, {name: np.concatenate([statistics_of(by_file[file][name], items)
                                                   for file, items in self.files.items()]) for name in metrics}
        except UserError:
            return {}, {}

    def html(self) -> Html:
        kind = KINDS.get(self.entry["config"]["type"], self.entry["config"]["type"])
        counts = self.entry["counts"]
        facts = [f"{counts['scored']:,} items" if counts["scored"] == counts["expected"]
                 else f"{counts['scored']:,} of {counts['expected']:,} items", _number(len(self.files), "file")]
        if self.seconds is not None:
            facts.append(f"{self.seconds:.1f} s")
        head = tag("div", tag("h2", self.name), tag("span", kind, class_="kind"),
                   tag("span", " · ".join(facts), class_="faint"),
                   tag("a", "↑", href="#top", class_="up", title="to the table"), class_="head")
        return tag("section", head, self._figures(), tag("div", self._plots(), class_="plots"), self._truncated(),
                   self._overlong(), self._samples(), self._files(), self._config(), class_="card",
                   id=anchor(self.name))

    def _figures(self) -> Html:
        shown_figures, names = [], self._told_apart()
        for group, metrics in self.entry["groups"].items():
            prefix = "" if len(self.entry["groups"]) == 1 else f"{group}: "
            shown_figures += [
                tag("div", tag("small", f"{prefix}{name}"), tag("strong", figure(metrics[name]["average"])),
                    tag("small", limits(metrics[name]["interval"]), class_="number"))
                for name in names if name in metrics]
        hints = []
        if self.chance is not None:
            hints.append(f"Guessing would reach {figure(self.chance)}, and always choosing the place that is right "
                         f"most often {figure(analysis.most_frequent(self.items))}.")
        by_choices = analysis.by_choices(self.items)
        if by_choices:
            hints.append("By number of choices: " + ", ".join(
                f"{number}: {100 * share:.1f} (n = {count})" for number, count, share in by_choices) + ".")
        return joined([tag("div", shown_figures, class_="figures"), [tag("p", hint, class_="faint") for hint in hints]])

    def _plots(self) -> list[Html]:
        names = self._told_apart()
        found = [self._spread(name) for name in names] + [self._by_kind(name) for name in names]
        found += [self._calibration(), self._places(), self._by_length(), self._windows(), self._answers()]
        return [each for each in found if each is not None]

    def _told_apart(self) -> list[str]:
        """The metrics, without those of one kind of items and those that say the same as an earlier one everywhere."""
        seen, found = [], []
        names = list(dict.fromkeys(name for file in self.entry["files"].values() for name in file["metrics"]))
        for name in names:
            if kind_of(name, names)[1] is not None:
                continue
            values = [file["metrics"].get(name) for file in self.entry["files"].values()]
            if values not in seen:
                seen.append(values)
                found.append(name)
        return found[:_MOST_METRICS]

    def _spread(self, metric: str) -> Html:
        rows, groups = [], self.entry["groups"]
        files = {file: each for file, each in self.entry["files"].items() if metric in each["metrics"]}
        for group, metrics in groups.items():
            if metric in metrics:
                low, high = metrics[metric]["interval"]
                label = "average" if len(groups) == 1 else f"{group}, average"
                if len(files) > 1 or len(groups) > 1:
                    rows.append((label, metrics[metric]["average"], low, high, True))
            of_group = [file for file in files if files[file]["group"] == group]
            names = _without_common(of_group)
            of_group.sort(key=lambda file: -(files[file]["metrics"][metric] or 0) if len(of_group) > 6 else 0)
            rows += [(names[file], files[file]["metrics"][metric], *files[file]["intervals"][metric], False)
                     for file in of_group]
        values = [value for each in files.values() if (value := each["metrics"][metric]) is not None] or [None]
        text = (f"from {figure(min(values))} to {figure(max(values))}" if len(values) > 1 else figure(values[0]))
        mark = self.chance if metric in _OF_LABELS else None
        hints = [text, f"the first {_MOST_LINES} lines of {len(rows)}" if len(rows) > _MOST_LINES else "",
                 "diamonds: averages" if rows and rows[0][4] else "", "bars: 95% intervals",
                 "dotted: guessing" if mark is not None else ""]
        is_prompts = len(files) == 1 or len(blocks_of(list(self.files.values()), list(self.files))) < len(self.files)
        return _plot(f"{metric} by {'prompt' if is_prompts else 'file'}", "; ".join(filter(None, hints)),
                     plots.spread(rows[:_MOST_LINES], metric, mark))

    def _by_kind(self, metric: str) -> Html | None:
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
        return _plot(f"{metric} by kind", "bars: 95% intervals", plots.spread(rows[:_MOST_LINES], metric))

    def _calibration(self) -> Html | None:
        found = analysis.calibration(self.items)
        if found is None:
            return None
        gap = found.mean_confidence - found.mean_accuracy
        verdict = "about right" if abs(gap) < 0.02 else "surer than right" if gap > 0 else "less sure than right"
        return _plot("Calibration", f"expected calibration error {found.error:.3f}; {verdict}: mean confidence "
                     f"{found.mean_confidence:.2f}, share right {found.mean_accuracy:.2f}", plots.reliability(found))

    def _places(self) -> Html | None:
        found = analysis.places(self.items)
        if found is None:
            return None
        right, predicted = found
        place = int(np.argmax(np.abs(predicted - right)))
        return _plot("Answers by place", f"the choice at place {place} is right in {100 * right[place]:.0f}% and "
                     f"chosen in {100 * predicted[place]:.0f}%", plots.places(right, predicted))

    def _by_length(self) -> Html | None:
        if not self.metrics or not all("input_length" in item for item in self.items) or "loss" in self.items[0]:
            return None
        name, metric = next(iter(self.metrics.items()))
        if len(self.statistics[name]) != len(self.items):
            return None
        bins = analysis.by_length(metric, self.statistics[name], [item["input_length"] for item in self.items],
                                  self._identities())
        if len({each.figure for each in bins}) < 2:  # all wrong, say: a line that tells nothing
            return None
        return _plot(f"{name} by length of the context",
                     f"{figure(bins[0].figure)} for the shortest, {figure(bins[-1].figure)} for the longest; bars: 95% "
                     "intervals", plots.lengths(bins, name, self.chance if name in _OF_LABELS else None))

    def _identities(self) -> list[int]:
        """A number for every item, the same for one item under several prompts."""
        lists, begin = list(self.files.values()), 0
        numbers: list[range] = [range(0)] * len(lists)
        for block in blocks_of(lists, list(self.files)):
            for place in block:
                numbers[place] = range(begin, begin + len(lists[place]))
            begin = numbers[block[0]].stop
        return [number for each in numbers for number in each]

    def _windows(self) -> Html | None:
        series = [(file, analysis.losses(items)) for file, items in self.files.items()]
        series = [(file, values) for file, values in series if len(values)]
        if not series:
            return None
        every = np.concatenate([values for _, values in series])
        note = f"; {_MOST_SERIES} of {len(series)} files" if len(series) > _MOST_SERIES else ""
        return _plot("Loss along the text", f"{every.mean():.3f} nats per token, from {every.min():.3f} to "
                     f"{every.max():.3f}{note}", plots.windows(series[:_MOST_SERIES]))

    def _answers(self) -> Html | None:
        found = analysis.answer_lengths(self.items)
        if found is None:
            return None
        predicted, wanted = found
        limit = self.entry["config"].get("max_gen_length")
        cut = sum(len(item.get("ids") or ()) >= limit for item in self.items) if limit else 0
        extra = [f"{int((predicted == 0).sum()):,} empty" if (predicted == 0).any() else "",
                 f"{cut:,} as long as max_gen_length ({limit})" if cut else ""]
        return _plot("Length of the answers", "; ".join([
            f"median length {np.median(predicted):g}, of the references {np.median(wanted):g}", *filter(None, extra)]),
            plots.answer_lengths(predicted, wanted))

    def _truncated(self) -> Html | None:
        limit = self.entry["config"].get("max_seq_length")
        return self._listed("truncated_items", f"truncated: their text was longer than max_seq_length ({limit}) allows")

    def _overlong(self) -> Html | None:
        return self._listed("overlong_items", long_items(self.run.results).removeprefix("long: items "))

    def _listed(self, field: str, what: str) -> Html | None:
        """How many items are so, and which."""
        found = {file: each[field] for file, each in self.entry["files"].items() if each.get(field)}
        if not found:
            return None
        lines = [tag("p", tag("b", file), f" ({len(indices)}): {analysis.ranges(indices)}")
                 for file, indices in found.items()]
        return tag("details", tag("summary", f"{sum(map(len, found.values())):,} {what}", class_="cut"), lines)

    def _samples(self) -> Html:
        file, items = next(iter(self.files.items()))
        score = self._scores()
        score = None if score is None else score[:len(items)]
        rows = source_rows(self.entry, file)
        found = []
        for why, place in chosen(items, score):
            index = items[place]["index"]
            row = rows[index] if rows is not None and 0 <= index < len(rows) else None
            found.append(shown(items[place], why, file, row, None if score is None else float(score[place])))
        title = f"{len(found)} sample items" if len(found) > 1 else "a sample item"
        return tag("details", tag("summary", title), found, open=True if self.is_open else None)

    def _scores(self) -> np.ndarray | None:
        """(n,) how right each item is, from 0 to 1, by the first metric that says so. None where nothing is right or
        wrong: choices without a label."""
        if any("log_probs" in item and item.get("label") is None for item in self.items):
            return None
        for name, metric in self.metrics.items():
            array = self.statistics[name]
            if metric.higher_is_better and array.shape == (len(self.items), 2) and (array[:, 1] == 1).all() \
                    and (array[:, 0] >= 0).all() and (array[:, 0] <= 1).all():
                return array[:, 0]
        return None

    def _files(self) -> Html:
        names = list(dict.fromkeys(name for each in self.entry["files"].values() for name in each["metrics"]))
        lines = []
        for file, each in self.entry["files"].items():
            cells = [tag("td", figure(each["metrics"].get(name)), " ", tag(
                "span", limits(each["intervals"].get(name)), class_="faint"), class_="right") for name in names]
            lines.append(tag("tr", tag("td", file, class_="name"), tag("td", each["group"]), tag(
                "td", f"{each['scored']:,}", class_="right"), cells, tag("td", tag("code", each["sha256"][:12]))))
        head = tag("tr", [tag("th", name) for name in ("file", "group")], tag("th", "n", class_="right"),
                   [tag("th", name, class_="right") for name in names], tag("th", "sha256"))
        table = tag("div", tag("table", tag("thead", head), tag("tbody", lines)), class_="scroll")
        return tag("details", tag("summary", f"{_number(len(lines), 'file')} with figures and hashes"), table)

    def _config(self) -> Html:
        values = {"file": self.entry["file"], "sha256": self.entry["sha256"]} | self.entry["config"]
        return tag("details", tag("summary", "settings of the task"), definitions(values))


def definitions(values: Mapping[str, object]) -> Html:
    """A list of names and values."""
    return tag("dl", [(tag("dt", name), tag("dd", _value(value), class_="mono")) for name, value in values.items()])


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else "–" if value is None else str(value)


def anchor(name: str) -> str:
    """A fragment identifier without blanks; distinct names that differ in blanks only are not worth more."""
    return "task-" + "-".join(name.split())


def _plot(title: str, caption: str, svg: str) -> Html:
    return tag("figure", tag("figcaption", tag("b", title), caption), Html(svg), role="img", aria_label=title)


def _without_common(files: Sequence[str]) -> dict[str, str]:
    """Names of a group's files without what all of them share: folders at either end, and the ending."""
    parts = [file.split("/") for file in files]
    for end in (0, -1):
        while len(files) > 1 and min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            parts = [part[1:] if end == 0 else part[:-1] for part in parts]
    suffixes = {Path(part[-1]).suffix for part in parts}
    cut = len(suffixes.pop()) if len(suffixes) == 1 else 0
    return {file: "/".join(part)[:-cut or None] for file, part in zip(files, parts, strict=True)}


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"
