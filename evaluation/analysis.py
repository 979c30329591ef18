"""What the report looks at beyond the figures: calibration, context length, places of answers, lengths, losses.

Pure functions of items (lines of samples/). Shapes: n items, c choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import labelled
from evaluation.statistics import interval

BINS = 10  # of confidence
MOST_PLACES = 8  # choices with more places are not drawn
_LENGTH_BINS, _LEAST_IN_BIN = 6, 15


@dataclass(frozen=True)
class Calibration:
    """How sure answers are, and how often right, in bins of their confidence; those without an item are left out."""

    middle: np.ndarray  # (bins,) of each bin
    confidence: np.ndarray  # (bins,) mean over its items
    accuracy: np.ndarray  # (bins,) share of its items that are right
    count: np.ndarray  # (bins,) its items
    error: float  # the expected calibration error
    mean_confidence: float
    mean_accuracy: float


@dataclass(frozen=True)
class LengthBin:
    """Items whose contexts are of about one length."""

    low: int  # tokens of the shortest context
    high: int  # and of the longest one
    count: int
    figure: float
    interval: tuple[float | None, float | None]  # 95%


def softmax(log_probs: Sequence[float]) -> np.ndarray:
    """(c,) probabilities of the choices among each other."""
    values = np.asarray(log_probs, dtype=np.float64)
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def calibration(items: Sequence[Mapping]) -> Calibration | None:
    """How often answers of a given confidence are right. None where there are no labelled items.

    Confidence: the softmax of the choices' log-probabilities, at the prediction. The error is the average over bins of
    |accuracy - confidence|, weighted by their items.
    """
    items = labelled(items)
    if not items:
        return None
    confidence = np.array([softmax(item["log_probs"])[item["prediction"]] for item in items])
    right = np.array([float(item["prediction"] == item["label"]) for item in items])
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    has = count > 0
    means = [np.bincount(place, values, BINS)[has] / count[has] for values in (confidence, right)]
    error = float(np.sum(count[has] * np.abs(means[0] - means[1])) / len(items))
    middle = (np.flatnonzero(has) + 0.5) / BINS
    return Calibration(middle, means[0], means[1], count[has], error, float(confidence.mean()), float(right.mean()))


def by_length(metric, statistics: np.ndarray, lengths: Sequence[int], identities: Sequence[int]) -> list[LengthBin]:
    """The figure for short to long contexts: bins of about equal numbers of items, at least two of them, or none.

    statistics: (n, k) of `metric`; identities: equal for the same item under several prompts, which an interval must
    not take for several items.
    """
    lengths, identities = np.asarray(lengths), np.asarray(identities)
    bins = min(_LENGTH_BINS, len(lengths) // _LEAST_IN_BIN)
    if bins < 2:
        return []
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1], method="nearest"))
    place = np.searchsorted(edges, lengths, side="right")
    found = []
    for number in np.unique(place):
        chosen = place == number
        array = statistics[chosen]
        with np.errstate(all="ignore"):
            figure = float(metric.figure(array.sum(axis=0)))
        if np.isfinite(figure):
            inside = lengths[chosen]
            low, high, _ = interval(metric, [_per_item(array, identities[chosen])])
            found.append(LengthBin(int(inside.min()), int(inside.max()), len(inside), figure, (low, high)))
    return found if len(found) > 1 else []


def _per_item(statistics: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """(items, k) sums over the rows of the same item; means where all items are alike, so that one that is right, or
    wrong, under every prompt is a right or wrong one."""
    _, place, count = np.unique(identities, return_inverse=True, return_counts=True)
    sums = np.stack([np.bincount(place, column) for column in statistics.T], axis=1)
    means = sums / count[:, None]
    return means if np.ptp(means, axis=0).max() == 0 else sums


def places(items: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray] | None:
    """(c,) share of items with the right, and with the predicted answer at each place; None for too many places."""
    items = labelled(items)
    if not items or max(len(item["log_probs"]) for item in items) > MOST_PLACES:
        return None
    number = max(len(item["log_probs"]) for item in items)
    shares = [np.bincount([item[key] for item in items], minlength=number) / len(items)
              for key in ("label", "prediction")]
    return shares[0], shares[1]


def by_choices(items: Sequence[Mapping]) -> list[tuple[int, int, float]]:
    """(number of choices, items, share that is right) where items differ in their number of choices; else []."""
    items = labelled(items)
    count = Counter(len(item["log_probs"]) for item in items)
    right = Counter(len(item["log_probs"]) for item in items if item["label"] == item["prediction"])
    if len(count) < 2:
        return []
    return [(number, count[number], right[number] / count[number]) for number in sorted(count)]


def most_frequent(items: Sequence[Mapping]) -> float | None:
    """Percentage that always giving the most frequent right place gets right."""
    labels = Counter(item["label"] for item in labelled(items))
    return 100 * max(labels.values()) / labels.total() if labels else None


def losses(items: Sequence[Mapping]) -> np.ndarray:
    """(n,) nats per token of the windows that have any."""
    return np.array([item["loss"] / item["tokens"] for item in items if item.get("tokens") and "loss" in item])


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over `width` neighbours; fewer at the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - width // 2, 0), np.minimum(places + (width + 1) // 2, len(values))
    return (sums[high] - sums[low]) / (high - low)


def answer_lengths(items: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray] | None:
    """(n,) characters of the answers, and of the reference nearest in length; None for items without texts."""
    items = [item for item in items if isinstance(item.get("prediction"), str) and item.get("targets")]
    if not items:
        return None
    predicted = np.array([len(item["prediction"].strip()) for item in items])
    wanted = np.array([min((len(target.strip()) for target in item["targets"]), key=lambda n: abs(n - length))
                       for item, length in zip(items, predicted, strict=True)])
    return predicted, wanted


def ranges(indices: Sequence[int], most: int | None = None) -> str:
    """[1, 2, 3, 7] -> "1–3, 7"; of more than `most` stretches, the first ones and how many items follow."""
    stretches: list[list[int]] = []
    for index in sorted(indices):
        if stretches and index == stretches[-1][-1] + 1:
            stretches[-1].append(index)
        else:
            stretches.append([index])
    shown = stretches[:most]
    text = ", ".join(str(each[0]) if len(each) == 1 else f"{each[0]}–{each[-1]}" for each in shown)
    rest = sum(len(each) for each in stretches[len(shown):])
    return f"{text} and {rest} more" if rest else text
