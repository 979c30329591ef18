"""Intervals, paired differences and tests, against values worked out by hand and against simulated runs."""

import math
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binom

from evaluation import statistics
from evaluation.statistics import BOOTSTRAP, TOO_FEW, WILSON, holm, interval, mcnemar_exact, paired_bootstrap, wilson

ACCURACY = SimpleNamespace(name="Accuracy", interval="wilson", figure=lambda sums: 100 * sums[..., 0] / sums[..., 1])
MEAN = SimpleNamespace(name="F1", interval="bootstrap", figure=lambda sums: 100 * sums[..., 0] / sums[..., 1])
PERPLEXITY = SimpleNamespace(name="PPL", interval="bootstrap",
                             figure=lambda sums: np.exp(np.minimum(20, sums[..., 0] / sums[..., 1])))


def with_ones(values):
    values = np.asarray(values, dtype=float)
    return np.stack([values, np.ones_like(values)], axis=1)


def simulated(share, items, seed):
    return with_ones(np.random.default_rng(seed).random(items) < share)


class TestWilson:
    def test_known_values(self):
        # 15 of 30 at 95%: the centre is 1/2, half the width is z / (1 + z2/n) * sqrt(1/4n + z2/4n2).
        z = 1.959963984540054
        half = z / (1 + z * z / 30) * math.sqrt(0.25 / 30 + z * z / 3600)
        assert wilson(15, 30) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-12)
        assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I

    def test_none_and_all_right_have_room_on_one_side_only(self):
        assert wilson(0, 20)[0] == 0.0 and wilson(20, 20)[1] == 1.0
        assert wilson(0, 20)[1] == pytest.approx(0.1611, abs=1e-4)
        assert wilson(20, 20)[0] == pytest.approx(1 - 0.1611, abs=1e-4)

    def test_nothing_tried_leaves_everything_open(self):
        assert wilson(0, 0) == (0.0, 1.0)

    def test_covers_the_truth_as_often_as_it_says(self):
        """Exactly, over all numbers of right answers, for a hundred truths (one alone depends on the steps of k/n)."""
        ends = [wilson(right, 40) for right in range(41)]
        truths = np.linspace(0.05, 0.95, 100)
        covered = [sum(binom.pmf(right, 40, truth) for right, (low, high) in enumerate(ends) if low <= truth <= high)
                   for truth in truths]
        assert np.mean(covered) == pytest.approx(0.95, abs=0.01)


class TestInterval:
    def test_one_file_of_right_and_wrong_is_wilson_in_percent(self):
        low, high, method = interval(ACCURACY, [with_ones([1] * 15 + [0] * 15)])
        assert method == WILSON
        assert (low, high) == pytest.approx(tuple(100 * end for end in wilson(15, 30)))

    def test_files_of_different_sizes_are_different_items(self):
        low, high, method = interval(ACCURACY, [simulated(0.4, 50, 1), simulated(0.4, 70, 2)])
        right = simulated(0.4, 50, 1)[:, 0].sum() + simulated(0.4, 70, 2)[:, 0].sum()
        assert (low, high, method) == (*(100 * end for end in wilson(right, 120)), WILSON)

    def test_prompts_for_the_same_items_do_not_count_as_more_items(self):
        """Three prompts that are all answered alike tell no more than one."""
        one = simulated(0.6, 200, 5)
        low, high, method = interval(ACCURACY, [one, one, one])
        alone = wilson(one[:, 0].sum(), 200)
        assert method == BOOTSTRAP
        assert high - low == pytest.approx(100 * (alone[1] - alone[0]), rel=0.1)

    def test_files_are_known_for_prompts_by_their_names(self):
        """Three subjects with as many questions are not three prompts for the same ones."""
        files = [simulated(0.6, 100, seed) for seed in (1, 2, 3)]
        low, high, method = interval(ACCURACY, files, names=["stem/a.jsonl", "stem/b.jsonl", "stem/c.jsonl"])
        right = sum(file[:, 0].sum() for file in files)
        assert method == WILSON and (low, high) == pytest.approx(tuple(100 * end for end in wilson(right, 300)))
        assert interval(ACCURACY, files, names=["a/test.jsonl", "b/test.jsonl", "c/test.jsonl"]) == interval(
            ACCURACY, files)

    def test_prompts_and_splits_in_one_group(self):
        names = ["plain/dev.jsonl", "plain/test.jsonl", "question/dev.jsonl", "question/test.jsonl", "more/dev.jsonl"]
        arrays = [np.zeros((rows, 2)) for rows in (5, 5, 5, 5, 5)]
        assert statistics.blocks_of(arrays, names) == [[0, 2, 4], [1, 3]]
        assert statistics.blocks_of([*arrays[:4], np.zeros((6, 2))], names) == [[0], [2], [4], [1, 3]]
        dev, test = simulated(0.6, 200, 5), simulated(0.6, 200, 6)
        twice = interval(ACCURACY, [dev, test, dev, test], names=names[:4])
        once = interval(ACCURACY, [dev, test], names=names[:2])
        assert twice[1] - twice[0] == pytest.approx(once[1] - once[0], rel=0.1)

    def test_independent_answers_of_two_prompts_do_tell_more(self):
        both = interval(ACCURACY, [simulated(0.6, 400, 6), simulated(0.6, 400, 7)])
        one = interval(ACCURACY, [simulated(0.6, 400, 6)])
        assert (both[1] - both[0]) / (one[1] - one[0]) == pytest.approx(math.sqrt(0.5), rel=0.1)

    @pytest.mark.parametrize("answer", [0, 1])
    def test_all_wrong_or_all_right_under_every_prompt(self, answer):
        low, high, method = interval(ACCURACY, [with_ones([answer] * 20)] * 3)
        assert method == WILSON
        assert (low, high) == pytest.approx(tuple(100 * end for end in wilson(20 * answer, 20)))

    def test_a_mean_is_bootstrapped_and_agrees_with_the_normal_interval(self):
        values = np.random.default_rng(8).random(500)
        low, high, method = interval(MEAN, [with_ones(values)])
        half = 1.96 * values.std() / math.sqrt(500)
        assert method == BOOTSTRAP == "bootstrap 95%, 1000 resamples"
        assert (low, high) == pytest.approx((100 * (values.mean() - half), 100 * (values.mean() + half)), abs=0.35)

    def test_scores_that_are_all_nothing_have_the_interval_of_their_share_above_nothing(self):
        """A bootstrap of twenty zeros would be sure of a zero."""
        low, high, method = interval(MEAN, [with_ones([0] * 20)])
        assert method == WILSON and (low, high) == pytest.approx(tuple(100 * end for end in wilson(0, 20)))
        assert interval(MEAN, [with_ones([0, 1] * 10)])[2] == BOOTSTRAP

    def test_one_item_has_no_bootstrap(self):
        assert interval(PERPLEXITY, [np.array([[30.0, 10.0]])]) == (None, None, TOO_FEW)
        one_of_its_kind = np.array([[0.0, 0.0], [30.0, 10.0], [0.0, 0.0]])
        assert interval(PERPLEXITY, [one_of_its_kind]) == (None, None, TOO_FEW)

    def test_one_right_answer_has_wilson(self):
        low, high, method = interval(ACCURACY, [with_ones([1])])
        assert method == WILSON and low == pytest.approx(20.65, abs=0.01) and high == 100.0

    def test_weights_other_than_the_items_are_kept_to(self):
        files = [with_ones([0] * 30 + [1] * 30), with_ones([1] * 9 + [0])]
        low, high, method = interval(ACCURACY, files, weights=[1, 3])
        assert method == BOOTSTRAP and low < 0.25 * 50 + 0.75 * 90 < high

    def test_trials_that_are_not_all_items_are_no_reason_to_pool_the_files(self):
        """The average weighs files by their items; pooling would give another figure."""
        files = [np.array([[1.0, 1.0]] * 5 + [[0.0, 0.0]] * 15), np.array([[0.0, 1.0]] * 20 + [[1.0, 1.0]] * 5)]
        low, high, method = interval(ACCURACY, files)
        assert method == BOOTSTRAP and low < (20 * 100 + 25 * 20) / 45 < high

    def test_the_same_again_and_in_any_order(self):
        values = with_ones(np.random.default_rng(9).random(60))
        assert interval(MEAN, [values]) == interval(MEAN, [values])
        assert interval(MEAN, [values])[:2] == pytest.approx(interval(MEAN, [values[::-1]])[:2])

    def test_resamples_without_anything_that_counts_are_left_out(self):
        """A share among the few items that have a say: some resamples hold none of them."""
        share = SimpleNamespace(interval="bootstrap", figure=lambda sums: 100 * sums[..., 0] / sums[..., 1])
        low, high, _ = interval(share, [np.array([[1.0, 1.0], [0.0, 1.0]] + [[0.0, 0.0]] * 10)])
        assert 0 <= low <= high <= 100

    def test_covers_the_truth_about_as_often_as_it_says(self, monkeypatch):
        monkeypatch.setattr(statistics, "RESAMPLES", 300)
        rng, hits = np.random.default_rng(10), []
        for _ in range(300):  # two prompts for the same 60 items, hard items hard in both
            hard = rng.random(60)
            files = [with_ones(rng.random(60) < np.clip(hard + shift, 0, 1)) for shift in (0.1, -0.1)]
            low, high, _ = interval(ACCURACY, files)
            hits.append(low <= 50 <= high)  # clipped alike at both ends, so the mean stays 1/2
        assert 0.91 < np.mean(hits) < 0.985

    def test_perplexity_covers_too(self, monkeypatch):
        monkeypatch.setattr(statistics, "RESAMPLES", 300)
        rng, hits = np.random.default_rng(11), []
        for _ in range(200):
            losses = rng.gamma(4.0, 25.0, 80)
            low, high, _ = interval(PERPLEXITY, [np.stack([losses, np.full(80, 50.0)], axis=1)])
            hits.append(low <= math.exp(2) <= high)
        assert 0.89 < np.mean(hits) < 0.985

    def test_a_hundred_thousand_items_in_little_memory(self, monkeypatch):
        monkeypatch.setattr(statistics, "RESAMPLES", 20)
        losses = np.stack([np.linspace(1, 2, 100_000), np.ones(100_000)], axis=1)
        whole = interval(PERPLEXITY, [losses])
        monkeypatch.setattr(statistics, "_CHUNK", 300_000)  # three resamples at a time instead of all twenty
        tracemalloc.start()
        in_parts = interval(PERPLEXITY, [losses])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert in_parts[:2] == pytest.approx(whole[:2]) and whole[0] < math.exp(1.5) < whole[1]
        assert peak < 16e6  # all the weights at once would be 32 MB


class TestPairedBootstrap:
    def test_no_difference_is_none_at_all(self):
        one = simulated(0.5, 100, 1)
        assert paired_bootstrap(ACCURACY, [(one, one)]) == statistics.Difference(0.0, 0.0, 0.0)

    def test_pairing_takes_out_what_is_hard_for_both(self):
        """B is right wherever A is, and on 20 of 400 items more."""
        a = simulated(0.5, 400, 2)
        b = a.copy()
        b[np.flatnonzero(a[:, 0] == 0)[:20], 0] = 1
        found = paired_bootstrap(ACCURACY, [(a, b)])
        assert found.value == pytest.approx(5.0)
        half = 196 * math.sqrt(0.05 * 0.95 / 400)  # the differences are 20 ones among 400
        assert (found.low, found.high) == pytest.approx((5 - half, 5 + half), abs=0.5)

    def test_covers_the_true_difference(self, monkeypatch):
        monkeypatch.setattr(statistics, "RESAMPLES", 300)
        rng, hits = np.random.default_rng(12), []
        for _ in range(300):
            hard = rng.random(80)
            a, b = (with_ones(rng.random(80) < hard * factor) for factor in (0.8, 1.0))
            found = paired_bootstrap(ACCURACY, [(a, b)])
            hits.append(found.low <= 10.0 <= found.high)
        assert 0.91 < np.mean(hits) < 0.985

    def test_files_are_weighted_by_their_items(self):
        pairs = [(with_ones([0, 0]), with_ones([1, 1])), (with_ones([0] * 6), with_ones([0] * 6))]
        assert paired_bootstrap(ACCURACY, pairs).value == pytest.approx(25.0)

    def test_one_item_has_no_interval(self):
        found = paired_bootstrap(ACCURACY, [(with_ones([0]), with_ones([1]))])
        assert (found.value, found.low, found.high) == (100.0, None, None)

    def test_unequal_pairs_are_refused(self):
        with pytest.raises(ValueError, match=r"\(2, 2\) and \(3, 2\)"):
            paired_bootstrap(ACCURACY, [(with_ones([0, 1]), with_ones([0, 1, 1]))])


class TestMcNemar:
    def test_is_the_binomial_by_hand(self):
        assert mcnemar_exact(2, 8) == pytest.approx(2 * sum(math.comb(10, k) for k in range(3)) / 2**10)
        assert mcnemar_exact(0, 5) == pytest.approx(2 / 2**5)
        assert mcnemar_exact(8, 2) == mcnemar_exact(2, 8)

    def test_as_many_one_way_as_the_other_or_none_is_no_difference(self):
        assert mcnemar_exact(4, 4) == 1.0 and mcnemar_exact(0, 0) == 1.0

    def test_negative_counts_are_refused(self):
        with pytest.raises(ValueError, match="negative"):
            mcnemar_exact(-1, 2)

    def test_rejects_true_nulls_no_more_often_than_it_says(self):
        rng = np.random.default_rng(13)
        p = [mcnemar_exact(k, 30 - k) for k in rng.binomial(30, 0.5, 1000)]
        assert np.mean(np.array(p) < 0.05) < 0.06


class TestHolm:
    def test_by_hand(self):
        # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (raised to 0.06 before it), 0.5 * 1.
        assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])

    def test_never_above_one_and_never_below_a_smaller_one(self):
        assert holm([0.6, 0.9]) == [1.0, 1.0]
        assert holm([]) == [] and holm([0.2]) == [0.2]
