"""How far a figure can be trusted: intervals, differences between two runs, and tests.

A metric is a function of sums over items (``metric.figure(sums)``, see evaluation/metrics.py), so a bootstrap resample
is nothing but a reweighting of the items' statistics. Everything here is deterministic: a fixed seed, and the order of
the items does not matter. Shapes: n items, k statistics of an item, r resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 1000
WILSON = "Wilson 95%"
BOOTSTRAP = f"bootstrap 95%, {RESAMPLES} resamples"
TOO_FEW = "none: one item"
_SEED = 20220804
_CHUNK = 4_000_000  # weights in memory at a time

Limits = tuple[float | None, float | None]
Interval = tuple[float | None, float | None, str]


def wilson(successes: float, trials: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share, both ends within [0, 1]. Right also where all or none are right."""
    from scipy.special import ndtri

    if trials <= 0:
        return 0.0, 1.0
    z = float(ndtri(0.5 + confidence / 2))
    share, scale = successes / trials, 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / scale
    half = z / scale * (share * (1 - share) / trials + z * z / (4 * trials * trials)) ** 0.5
    # At 0 and 1 the formula meets the end exactly; floating point may miss it by a hair.
    low = 0.0 if successes <= 0 else max(0.0, middle - half)
    high = 1.0 if successes >= trials else min(1.0, middle + half)
    return low, high


def interval(metric, arrays: Sequence, weights: Sequence[float] | None = None,
             names: Sequence[str] | None = None) -> Interval:
    """The 95% interval of a file's figure (one array) or of a group's average over its files, and how it was found.

    arrays: (n_i, k) statistics of each file's items; weights: of the files in the average (default: their items);
    names: of the files, by which the same items under different prompts are known (see `blocks_of`).

    Shares get Wilson's interval. Files that hold the same items under different prompts must not count as more items
    than there are: the average over them is bootstrapped, the same items drawn in every file. Where all answers are
    right, or all wrong, a bootstrap would see no uncertainty: Wilson's interval then, every item counted once. Low and
    high are None where there is no interval to be had (a bootstrap of a single item).
    """
    arrays = [np.asarray(array, dtype=np.float64) for array in arrays]
    scale = share_scale(metric, arrays)
    if scale is not None:
        sums = [array.sum(axis=0) for array in arrays]
        successes, trials = (float(sum(part[place] for part in sums)) for place in (0, 1))
        blocks = blocks_of(arrays, names)
        is_pooled = np.allclose(_shares(arrays, weights), [part[1] / trials for part in sums])
        if (len(blocks) == len(arrays) and is_pooled) or successes in (0, trials):
            items = sum(float(sums[place][1]) / len(block) for block in blocks for place in block)
            low, high = wilson(successes * (items / trials), items)
            return low * scale, high * scale, WILSON
    if _is_single(arrays):
        return None, None, TOO_FEW
    low, high = _percentiles(_resampled_averages(metric, [arrays], weights, names)[0])
    return low, high, (BOOTSTRAP if low is not None else "none: no figure in the resamples")


@dataclass(frozen=True)
class Difference:
    """B minus A of a metric's average over files, with its paired bootstrap interval; None: there is one item only."""

    value: float
    low: float | None
    high: float | None


def paired_bootstrap(metric, pairs: Sequence[tuple], weights: Sequence[float] | None = None,
                     names: Sequence[str] | None = None) -> Difference:
    """pairs: per file the statistics (n_i, k) of run A and of run B for the same items in the same order.

    An item is drawn in both runs at once, so what makes it hard for both cancels out.
    """
    runs = [[np.asarray(pair[run], dtype=np.float64) for pair in pairs] for run in (0, 1)]
    for one, other in zip(*runs, strict=True):
        if one.shape != other.shape:
            raise ValueError(f"a pair has statistics of shapes {one.shape} and {other.shape}")
    value = average(metric, runs[1], weights) - average(metric, runs[0], weights)
    if _is_single([np.concatenate(pair, axis=1) for pair in zip(*runs, strict=True)]):
        return Difference(value, None, None)
    one, other = _resampled_averages(metric, runs, weights, names)
    return Difference(value, *_percentiles(other - one))


def average(metric, arrays: Sequence, weights: Sequence[float] | None = None) -> float:
    """The figure of every file, averaged with weights (default: the files' items)."""
    figures = [float(metric.figure(np.asarray(array, dtype=np.float64).sum(axis=0))) for array in arrays]
    return float(np.dot(figures, _shares(arrays, weights)))


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p of McNemar's test. only_a, only_b: items that only run A, or only run B, has right."""
    from scipy.stats import binomtest

    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts of items cannot be negative: {only_a}, {only_b}")
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given: no more than 5% chance of any false alarm below 0.05."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def blocks_of(arrays: Sequence, names: Sequence[str] | None = None) -> list[list[int]]:
    """Places of files, those put together that hold the same items under different prompts.

    Such files have the same name in different folders (plain/test.jsonl, question/test.jsonl) and as many rows. Where
    no names are given, as many rows have to do, in all files.
    """
    by_name: dict[str | None, list[int]] = {}
    for place in range(len(arrays)):
        by_name.setdefault(names[place].rsplit("/", 1)[-1] if names is not None else None, []).append(place)
    blocks = []
    for block in by_name.values():
        is_same = len({len(arrays[place]) for place in block}) == 1
        blocks += [block] if is_same else [[place] for place in block]
    return blocks


def share_scale(metric, arrays: Sequence) -> float | None:
    """100 for a percentage, 1 for a share: what a figure that counts successes in trials is multiplied with.

    None for all other figures. Trials that are no items (weights, say) are not counted by Wilson's formula. The mean of
    percentages that are all 0 counts, too: it is at most the share of items above 0, whose interval it is given. So do
    those that are all 100.
    """
    if any(array.shape[1] != 2 for array in arrays):
        return None
    values = np.concatenate(list(arrays))
    if not np.isin(values, (0.0, 1.0)).all() or (values[:, 0] > values[:, 1]).any() or values[:, 1].sum() == 0:
        return None
    scale = float(metric.figure(np.array([1.0, 1.0])))
    is_one_sided = scale == 100 and values[:, 0].sum() in (0, values[:, 1].sum())
    return scale if metric.interval == "wilson" or is_one_sided else None


def _is_single(arrays: Sequence) -> bool:
    """Whether no file has two items that count: one of another kind than the figure's has nothing but zeros."""
    return max(int(array.any(axis=1).sum()) for array in arrays) < 2


def _shares(arrays: Sequence, weights: Sequence[float] | None) -> np.ndarray:
    """What each file counts for in the average; together 1."""
    counted = np.array([len(array) for array in arrays] if weights is None else weights, dtype=np.float64)
    return counted / counted.sum()


def _resampled_averages(metric, runs: Sequence[Sequence], weights: Sequence[float] | None,
                        names: Sequence[str] | None) -> list[np.ndarray]:
    """Per run, (r,) averages over files of the resampled figures. The same items are drawn in all runs."""
    shares = _shares(runs[0], weights)
    totals = [np.zeros(RESAMPLES) for _ in runs]
    for number, block in enumerate(blocks_of(runs[0], names)):
        columns = [runs[run][file] for run in range(len(runs)) for file in block]
        drawn = iter(_resampled_sums(columns, np.random.default_rng((_SEED, number))))
        for total in totals:
            for file in block:
                with np.errstate(all="ignore"):  # a resample may hold nothing that counts: no figure, left out
                    total += metric.figure(next(drawn)) * shares[file]
    return totals


def _resampled_sums(arrays: Sequence, rng: np.random.Generator) -> list[np.ndarray]:
    """(r, k_i) sums over resampled items for every array; row j of all arrays is the same item.

    Items with equal statistics are drawn together: their number in a resample is multinomial. A hundred thousand
    right-or-wrong items are then two categories, and memory stays bounded in any case.
    """
    widths = np.cumsum([array.shape[1] for array in arrays])[:-1]
    distinct, counts = np.unique(np.concatenate(list(arrays), axis=1), axis=0, return_counts=True)
    items = counts.sum()
    step = max(1, _CHUNK // len(distinct))
    sums = [
        rng.multinomial(items, counts / items, size=min(step, RESAMPLES - start)).astype(np.float64) @ distinct
        for start in range(0, RESAMPLES, step)
    ]
    return np.split(np.concatenate(sums), widths, axis=1)


def _percentiles(values: np.ndarray) -> Limits:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return None, None
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
