"""Figures of a file's items. Pure functions; texts come decoded, numbers are plain, no model and no torch.

An item is a line of samples/: {"prediction", "label", "log_probs", ...} (docs/results.md). A figure is a function of
sums over items, so the same definition serves a file, a bootstrap's resample and a comparison of two runs.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import filterfalse
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError

if TYPE_CHECKING:
    import numpy

ALL_TYPES = ("mul", "gen", "lm", "other")
LARGEST_EXPONENT = 20.0  # perplexities end at exp(20), as the original's
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Metric:
    """A figure by its name."""

    name: str
    statistics: Callable[[Mapping[str, Any]], tuple[float, ...]]  # item -> k numbers
    figure: Callable[[numpy.ndarray], numpy.ndarray]  # sums of these over items, (..., k) -> the figures (...)
    interval: str = "bootstrap"  # "wilson" where an item is right or wrong: its statistics are (0 or 1, 1)
    higher_is_better: bool = True
    types: tuple[str, ...] = ALL_TYPES  # of tasks whose items have what it needs
    applies: Callable[[Mapping[str, Any]], bool] | None = None  # does an item count? If not, its statistics are zeros
    note: str = ""  # what a reader of the figure must know
    scale: float | None = 100.0  # reports draw the figure on a line from 0 to here; None: it has no such line
    chance: Callable[[Sequence[Mapping[str, Any]]], float | None] | None = None  # items -> the figure of a guess


def statistics_of(metric: Metric, items: Sequence[Mapping[str, Any]]) -> numpy.ndarray:
    """(n, k) float64. UserError where there are no items or a statistic is no finite number."""
    import numpy

    if not items:
        raise UserError(f"metric {metric.name}: there are no items to measure")
    rows = []
    for item in items:
        try:
            found = tuple(metric.statistics(item))
        except Exception as error:  # whatever a function of the user's own may raise
            fault = f"{type(error).__name__}: {error}"
            raise UserError(f"metric {metric.name}: item {item.get('index')}: {fault}") from error
        if wrong := [value for value in found if not _is_finite(value)]:
            value = "nothing" if wrong[0] is None else repr(wrong[0])[:60]
            raise UserError(f"metric {metric.name}: item {item.get('index')}: {value} where a finite number is needed")
        rows.append(tuple(map(float, found)))
    return numpy.array(rows, dtype=numpy.float64)


def _is_finite(value: Any) -> bool:
    try:
        return not isinstance(value, str) and math.isfinite(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return False


def evaluate(metric: Metric, items: Sequence[Mapping[str, Any]]) -> float:
    """The figure of a file's items."""
    return float(metric.figure(statistics_of(metric, items).sum(axis=0)))


# Figures: sums over items -> the number that is reported


def mean(sums):
    """Sums (..., 2) of a value and of ones -> the mean."""
    return sums[..., 0] / sums[..., 1]


def percentage(sums):
    """Sums (..., 2) of a value in [0, 1] and of ones -> the mean times 100."""
    return 100.0 * sums[..., 0] / sums[..., 1]


def perplexity(sums):
    """Sums (..., 2) of losses in nats and of words -> exp(loss per word), which ends at exp(20)."""
    import numpy

    return numpy.exp(numpy.minimum(LARGEST_EXPONENT, sums[..., 0] / sums[..., 1]))


def bits_per_byte(sums):
    """Sums (..., 2) of losses in nats and of UTF-8 bytes -> bits per byte."""
    return sums[..., 0] / sums[..., 1] / math.log(2)


# Statistics: item -> numbers


def is_right(item) -> tuple[float, float]:
    """Multiple choice: the label is predicted. Text: the prediction is one of the targets but for blanks around it."""
    if isinstance(item["prediction"], str):
        right = item["prediction"].strip() in [target.strip() for target in item["targets"]]
    elif item["label"] is None:
        raise ValueError("the row has no label")
    else:
        right = item["prediction"] == item["label"]
    return float(right), 1.0


def likeliest_per(lengths: str) -> Callable[[Mapping[str, Any]], tuple[float, float]]:
    """Whether the label's choice has the highest log-probability divided by its length. lengths: a field of items."""
    def is_right_by_length(item) -> tuple[float, float]:
        if item["label"] is None:
            raise ValueError("the row has no label")
        if lengths not in item:
            raise ValueError("the row has its choices as ids, and not as texts")
        scores = [value / max(1, length) for value, length in zip(item["log_probs"], item[lengths], strict=True)]
        return float(scores.index(max(scores)) == item["label"]), 1.0

    return is_right_by_length


def exact_match(item) -> tuple[float, float]:
    return max(float(normalized(item["prediction"]) == normalized(target)) for target in item["targets"]), 1.0


def word_f1(item) -> tuple[float, float]:
    words = normalized(item["prediction"]).split()
    return max(overlap_f1(words, normalized(target).split()) for target in item["targets"]), 1.0


def character_f1(item) -> tuple[float, float]:
    found = characters(item["prediction"])
    return max(overlap_f1(found, characters(target)) for target in item["targets"]), 1.0


def normalized_match(item) -> tuple[float, float]:
    found = without_punctuation(item["prediction"])
    return max(float(found == without_punctuation(target)) for target in item["targets"]), 1.0


def normalized_f1(item) -> tuple[float, float]:
    words = without_punctuation(item["prediction"]).split()
    return max(overlap_f1(words, without_punctuation(target).split()) for target in item["targets"]), 1.0


def loss_and_words(item) -> tuple[float, float]:
    return item["loss"], item["words"]


def loss_and_bytes(item) -> tuple[float, float]:
    return item["loss"], item["bytes"]


def normalized(text: str) -> str:
    """Small letters, without ASCII punctuation and the words a, an, the; one blank between words."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def without_punctuation(text: str) -> str:
    """`normalized` for any script: what NFKC holds for the same is the same, and no punctuation counts."""
    return normalized("".join(filterfalse(is_punctuation, unicodedata.normalize("NFKC", text))))


def characters(text: str) -> list[str]:
    """The characters that count in a language written without blanks: no blanks, no punctuation of any script."""
    return [character for character in text.lower() if not character.isspace() and not is_punctuation(character)]


def is_punctuation(character: str) -> bool:
    """Of any script, and the signs that ASCII counts as such."""
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def overlap_f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two multisets; nothing against nothing is right."""
    if not found or not wanted:
        return float(not found and not wanted)
    common = (Counter(found) & Counter(wanted)).total()
    return 2.0 * common / (len(found) + len(wanted))


# Chance: items -> what a guess would reach


def labelled(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Items of multiple choice with a right answer and something to choose from."""
    return [item for item in items if isinstance(item.get("label"), int) and isinstance(item.get("prediction"), int)
            and len(item.get("log_probs") or ()) > 1 and 0 <= item["label"] < len(item["log_probs"])]


def guessed(items: Sequence[Mapping[str, Any]]) -> float | None:
    """Percentage that guessing gets right; None where nothing is to be chosen."""
    shares = [1 / len(item["log_probs"]) for item in labelled(items)]
    return 100 * math.fsum(shares) / len(shares) if shares else None


# With one label an item, and counted over all classes together (micro-averaged), precision, recall and their F1 are all
# the share of right predictions.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("Accuracy", is_right, percentage, "wilson", types=("mul", "gen", "other"), chance=guessed),
        Metric("F1_mul", is_right, percentage, "wilson", types=("mul", "other"), chance=guessed),
        Metric("Precision", is_right, percentage, "wilson", types=("mul", "other"), chance=guessed),
        Metric("Recall", is_right, percentage, "wilson", types=("mul", "other"), chance=guessed),
        Metric("Accuracy_per_token", likeliest_per("choice_lengths"), percentage, "wilson", types=("mul",),
               chance=guessed),
        Metric("Accuracy_per_character", likeliest_per("choice_characters"), percentage, "wilson", types=("mul",),
               chance=guessed),
        Metric("Accuracy_per_byte", likeliest_per("choice_bytes"), percentage, "wilson", types=("mul",),
               chance=guessed),
        Metric("EM", exact_match, percentage, "wilson", types=("gen", "other")),
        Metric("F1", word_f1, percentage, types=("gen", "other")),
        Metric("EM_normalized", normalized_match, percentage, "wilson", types=("gen", "other")),
        Metric("F1_normalized", normalized_f1, percentage, types=("gen", "other")),
        Metric("F1_char", character_f1, percentage, types=("gen", "other")),
        Metric("PPL", loss_and_words, perplexity, higher_is_better=False, types=("lm", "other"),
               note="perplexity per word, which is far above that per token", scale=None),
        Metric("BPB", loss_and_bytes, bits_per_byte, higher_is_better=False, types=("lm", "other"), scale=None),
    )
}


def notes_on(names: Iterable[str]) -> list[str]:
    """What a reader of these figures must know, as "PPL: ..."; of figures of one kind of items once."""
    known = dict.fromkeys(name.partition(" (")[0] for name in names)
    return [f"{name}: {METRICS[name].note}" for name in known if name in METRICS and METRICS[name].note]


def by_kind(metrics: Mapping[str, Metric], field: str, items: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    """The metrics over all items, and again over those of each kind: "Accuracy (easy)" where item[field] is "easy".

    Raises UserError for an item without a kind.
    """
    for item in items:
        if not isinstance(item.get(field), str):
            raise UserError(f"item {item.get('index')}: {field} must be text")
    kinds = sorted({item[field] for item in items})
    return {**metrics, **{f"{name} ({kind})": _of_kind(f"{name} ({kind})", metric, field, kind)
                          for kind in kinds for name, metric in metrics.items()}}


def _of_kind(name: str, metric: Metric, field: str, kind: str) -> Metric:
    def applies(item) -> bool:
        return item[field] == kind

    def statistics(item) -> tuple[float, ...]:
        numbers = metric.statistics(item)
        return numbers if applies(item) else (0.0,) * len(numbers)

    def chance(items) -> float | None:
        return metric.chance and metric.chance([item for item in items if applies(item)])

    return replace(metric, name=name, statistics=statistics, applies=applies, chance=chance)
