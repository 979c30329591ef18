"""What the report looks at beyond the figures, by hand and at its limits."""

import itertools
import math

import numpy as np
import pytest

from evaluation import analysis
from evaluation.metrics import METRICS, guessed
from tests.recorded_runs import choice_item, text_item


def test_calibration_by_hand():
    """Two items at confidence 1/2, one right; two at 4/5, none right: 2/4 * 0 + 2/4 * 0.8."""
    items = [choice_item(i, 0, label) | {"log_probs": [math.log(top), math.log(1 - top)]}
             for i, (top, label) in enumerate([(0.5, 0), (0.5, 1), (0.8, 1), (0.8, 1)])]
    found = analysis.calibration(items)
    assert found.error == pytest.approx(0.4)
    assert found.confidence == pytest.approx([0.5, 0.8]) and found.accuracy == pytest.approx([0.5, 0.0])
    assert list(found.count) == [2, 2]


def test_a_perfectly_calibrated_model_has_almost_no_error():
    rng = np.random.default_rng(1)
    top = rng.uniform(0.5, 1, 20000)
    items = [choice_item(i, 0, int(rng.random() > p)) | {"log_probs": [math.log(p), math.log1p(-p)]}
             for i, p in enumerate(top)]
    assert analysis.calibration(items).error < 0.015


def test_certainty_is_within_the_last_bin():
    found = analysis.calibration([choice_item(0, 0) | {"log_probs": [0.0, -1e9]}])
    assert found.error == 0 and list(found.confidence) == [1.0]


def test_items_without_label_have_no_calibration():
    assert analysis.calibration([choice_item(0, 0, None)]) is None
    assert analysis.calibration([text_item(0, "a", ["a"])]) is None


def test_by_length_counts_every_item_once():
    lengths = list(range(100))
    statistics = np.array([[float(length < 50), 1.0] for length in lengths])
    bins = analysis.by_length(METRICS["Accuracy"], statistics, lengths, range(100))
    assert sum(each.count for each in bins) == 100 and bins[0].low == 0 and bins[-1].high == 99
    assert bins[0].figure == 100 and bins[-1].figure == 0
    assert all(one.high < other.low for one, other in itertools.pairwise(bins))


def test_prompts_do_not_narrow_the_interval():
    statistics = np.array([[float(index % 3 == 0), 1.0] for index in range(1200)])
    lengths = np.arange(1200)
    alone = analysis.by_length(METRICS["Accuracy"], statistics, lengths, lengths)
    doubled = analysis.by_length(METRICS["Accuracy"], np.repeat(statistics, 2, 0), np.repeat(lengths, 2),
                                 np.repeat(lengths, 2))
    width = [bins[0].interval[1] - bins[0].interval[0] for bins in (alone, doubled)]
    assert width[1] == pytest.approx(width[0], rel=0.1)


def test_items_that_are_right_under_every_prompt_are_not_certain():
    twice = np.repeat(range(60), 2)
    bins = analysis.by_length(METRICS["Accuracy"], np.ones((120, 2)), twice, twice)
    assert all(each.interval[0] < 90 and each.interval[1] == 100 for each in bins) and len(bins) > 1


def test_few_items_or_equal_lengths_are_not_divided():
    ones = np.ones((100, 2))
    assert analysis.by_length(METRICS["Accuracy"], ones[:20], range(20), range(20)) == []
    assert analysis.by_length(METRICS["Accuracy"], ones, [7] * 100, range(100)) == []


def test_guessing_and_the_most_frequent_place():
    items = [choice_item(0, 0, 0, 2), choice_item(1, 0, 1, 4), choice_item(2, 0, 1, 4)]
    assert guessed(items) == pytest.approx(100 * (1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert analysis.most_frequent(items) == pytest.approx(200 / 3)
    assert analysis.by_choices(items) == [(2, 1, 1.0), (4, 2, 0.0)]


def test_smoothing_keeps_the_length_and_a_constant():
    assert list(analysis.smoothed(np.full(7, 3.0), 4)) == [3.0] * 7
    assert analysis.smoothed(np.array([0.0, 3.0, 6.0]), 3) == pytest.approx([1.5, 3.0, 4.5])


def test_stretches_of_indices():
    assert analysis.ranges([7, 1, 2, 3]) == "1–3, 7"
    assert analysis.ranges([]) == ""
    assert analysis.ranges([1, 3, 5, 6], most=2) == "1, 3 and 2 more"
