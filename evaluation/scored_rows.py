"""A file of `python -m tuning evaluate` or `score-text`, as a run that can be compared with another over the same rows.

Its rows are paired by their guid, or by their number where they have none. Figures are made of rows alone:

    prediction and label    accuracy, and the F1 that the file names
    value                   of a text's last word its accuracy, else the loss of a window
    any other number        its mean, as of ROUGE
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from evaluation.metrics import Metric, evaluate, mean, percentage
from runtime.errors import UserError, shown
from runtime.reading import LARGE, read_json

PAIRS = "pairs"  # the task's name where the file names none, as of score-text
_ACCURACIES, _F1_OF_1, _MACRO = ("accuracy", "acc"), ("f1", "f1a"), "f1-macro"
_LOSSES = ("loss", "loss a window")
_NO_FIGURES = {"guid", "index", "prediction", "label"}


class ScoredRows:
    """What `compare` asks of a recorded run."""

    def __init__(self, path: str | Path):
        """UserError for a file that holds no rows with figures."""
        self.folder = Path(path)
        found = read_json(self.folder, LARGE)
        rows = found.get("rows") if isinstance(found, dict) else None
        if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: no rows; compare takes a file of `python -m tuning evaluate` or `score-text`, or "
                            "the folder of an evaluation")
        recorded = found.get("metrics") or found.get("mean")
        self._recorded = {name: value for name, value in recorded.items() if _is_number(value)} if isinstance(
            recorded, dict) else {}
        self._items = [_item(number, row) for number, row in enumerate(rows) if "error" not in row]
        if not self._items:
            raise UserError(f"{path}: none of its rows could be scored")
        task, file = (str(found.get(name) or PAIRS) for name in ("task", "split"))
        figures = self.metrics(task, self._items)
        if not figures:
            raise UserError(f"{path}: its rows have no figures that could be compared, as a prediction and its label")
        averages = {name: {"average": self._recorded.get(name, evaluate(metric, self._items))}
                    for name, metric in figures.items()}
        self.results = {"settings": {name: found[name] for name in ("load", "adapter") if name in found}}
        self.tasks = self.done = {task: {
            "file": str(path), "sha256": None, "files": {file: {"sha256": None, "n": len(self._items)}},
            "groups": {"all": averages}}}

    def items(self, task: str, file: str) -> list[dict]:
        return self._items

    def groups(self, task: str) -> dict[str, list[str]]:
        return {"all": list(self.done[task]["files"])}

    def metrics(self, task: str, items: Sequence[Mapping]) -> dict[str, Metric]:
        """By the names that the file itself has."""
        found: dict[str, Metric] = {}
        has_labels = all(_is_whole(item.get(name)) for item in items for name in ("prediction", "label"))
        if has_labels and "EM" not in self._recorded:  # several candidates may be the same right answer
            classes = 1 + max(max(item["prediction"], item["label"], _choices(item) - 1) for item in items)
            name = next((name for name in _ACCURACIES if name in self._recorded), _ACCURACIES[0])
            found[name] = Metric(name, _is_right, percentage, "wilson")
            for name in (*_F1_OF_1, _MACRO):
                if name in self._recorded:
                    found[name] = _f1(name, range(classes) if name == _MACRO else (1,))
        for name in items[0]:
            if name not in _NO_FIGURES and all(_is_number(item.get(name)) for item in items):
                found |= _mean_of(name, task, items)
        return found


def check_same(one: ScoredRows, other: ScoredRows) -> None:
    """UserError for rows of one name that are not of the same data."""
    before = {item["index"]: item for item in one.items("", "")}
    for item in other.items("", ""):
        for name in ("label", "ref"):
            wanted = before.get(item["index"], item).get(name)
            if wanted != item.get(name):
                raise UserError(f"{one.folder} and {other.folder} are not of the same data: the {name} of row "
                                f"{item['index']} is {shown(wanted)} and {shown(item.get(name))}")


def _item(number: int, row: Mapping[str, Any]) -> dict[str, Any]:
    return {"index": str(row.get("guid", row.get("index", number))), **{
        name: value for name, value in row.items() if name != "index"}}


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and value >= 0


def _choices(item: Mapping[str, Any]) -> int:
    scores = item.get("scores")
    return len(scores) if isinstance(scores, list) else 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _is_right(item: Mapping[str, Any]) -> tuple[float, float]:
    return float(item["prediction"] == item["label"]), 1.0


def _mean_of(name: str, task: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    shown_name = name if name != "value" else "accuracy" if task == "lambda" else "loss a window"
    is_share = all(item[name] in (0, 1) for item in items)
    return {shown_name: Metric(shown_name, lambda item: (float(item[name]), 1.0), mean,
                               "wilson" if is_share else "bootstrap", shown_name not in _LOSSES, scale=None)}


def _f1(name: str, classes: Iterable[int]) -> Metric:
    """From 0 to 1: the mean of the F1 of those classes that are predicted or right."""
    def statistics(item: Mapping[str, Any]) -> tuple[float, ...]:
        found = [(each == item["prediction"], each == item["label"]) for each in classes]
        return tuple(float(value) for predicted, right in found for value in (2 * (predicted and right),
                                                                              predicted + right))

    def figure(sums: numpy.ndarray) -> numpy.ndarray:
        sums = numpy.asarray(sums).reshape(*numpy.shape(sums)[:-1], -1, 2)
        occurs = sums[..., 1] > 0
        each = numpy.where(occurs, sums[..., 0] / numpy.maximum(sums[..., 1], 1), 0.0)
        return each.sum(-1) / numpy.maximum(occurs.sum(-1), 1)

    return Metric(name, statistics, figure, scale=1.0)
