"""Choosing a token: every rule on a handful of logits."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation import SamplingParams, sampling
from runtime.errors import UserError

INF = float("inf")


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def test_forbid_takes_slices_and_ids():
    assert sampling.forbid_(torch.zeros(1, 4), slice(2, None)).tolist() == [[0, 0, -65504, -65504]]
    assert sampling.forbid_(torch.zeros(1, 4), torch.tensor([1])).tolist() == [[0, -65504, 0, 0]]


def test_top_k_keeps_all_equals_of_the_kth():
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 0.0]])
    assert sampling.keep_top_k(logits, 2).tolist() == [[3.0, -INF, 2.0, 2.0, -INF]]
    assert sampling.keep_top_k(logits, 0) is logits
    assert sampling.keep_top_k(logits, 9) is logits


@pytest.mark.parametrize("top_p, kept", [
    (0.3, [0]), (0.39, [0]), (0.5, [0, 2]), (0.71, [0, 2, 3]), (0.95, [0, 2, 3, 1])])
def test_nucleus_keeps_the_token_that_passes_the_threshold(top_p, kept):
    ids, logits = sampling.nucleus(logits_of(0.4, 0.1, 0.3, 0.2), top_p)
    assert ids[logits > -INF].tolist() == kept


def test_nucleus_leaves_out_equals_with_larger_ids():
    ids, logits = sampling.nucleus(torch.zeros(1, 10), 0.25)
    assert ids[logits > -INF].tolist() == [0, 1, 2]


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), top_p=st.floats(0.01, 0.99), spread=st.sampled_from([0.1, 1.0, 4.0]),
       step=st.sampled_from([0.0, 0.5]))
def test_short_list_and_full_sort_agree(seed, top_p, spread, step):
    """On a CPU the nucleus is looked for among the likeliest tokens first; `step` makes equal logits frequent."""
    logits = torch.randn(2, 2000, generator=torch.Generator().manual_seed(seed)) * spread
    logits = (logits / step).round() * step if step else logits
    values, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = values.softmax(-1)
    kept = probabilities.cumsum(-1) - probabilities <= top_p
    ids, left = sampling.nucleus(logits, top_p)
    for row in range(2):
        found, wanted = ids[row][left[row] > -INF], order[row][kept[row]]
        # sums are rounded differently: the last token may differ where the threshold is hit within rounding
        assert abs(len(found) - len(wanted)) <= 1
        assert found[:len(wanted)].tolist() == wanted[:len(found)].tolist()


def keys(count: int, seed: int = 1) -> torch.Tensor:
    return sampling.keys_of([seed], count)


def test_what_has_no_probability_is_never_drawn():
    logits = torch.tensor([-INF, 1.0, -INF, 2.0]).expand(1000, -1)
    assert set(sampling.sample(logits, SamplingParams(1.0, 0, 0.0), keys(1000)).tolist()) == {1, 3}


def test_noise_is_exponential_and_independent():
    """Over tokens with one key, over keys for one token, and without correlation of neighbours."""
    noise = sampling.exponentials_(sampling.uniforms(torch.arange(400), keys(400))).double()
    assert noise.min() > 0
    for sample in (noise.flatten(), noise[:, 7], noise[7], noise[:, 399]):
        sorted_, n = sample.sort().values, len(sample)
        distance = (1 - (-sorted_).exp() - torch.arange(1, n + 1) / n).abs().max().item()
        assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov, 0.1%
    centred = noise - 1
    for shifted in (centred[:, 1:] * centred[:, :-1], centred[1:] * centred[:-1], centred[1:, 1:] * centred[:-1, :-1]):
        assert abs(shifted.mean().item()) < 4 / 400


def test_noise_belongs_to_an_id_wherever_it_stands():
    ids = torch.tensor([[5, 70000, 2], [2, 5, 70000]])
    same_keys = keys(1).expand(2, -1)
    first, second = sampling.exponentials_(sampling.uniforms(ids, same_keys)).tolist()
    assert first == [second[1], second[2], second[0]]


def test_top_k_1_is_greedy_whatever_else_is_asked_for():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 2.0, 1.0]])
    assert sampling.sample(logits, SamplingParams(9.0, 1, 0.1), None).tolist() == [1, 0]


@pytest.mark.parametrize("top_k, top_p, expected", [
    (0, 0.0, [0.4, 0.1, 0.3, 0.2]), (3, 0.0, [4 / 9, 0, 3 / 9, 2 / 9]), (0, 0.5, [4 / 7, 0, 3 / 7, 0]),
    (3, 0.75, [4 / 7, 0, 3 / 7, 0])])
def test_frequencies_are_the_filtered_probabilities(top_k, top_p, expected):
    """top-p counts what top-k has left: 4/9 + 3/9 > 0.75."""
    logits = logits_of(0.4, 0.1, 0.3, 0.2).expand(40000, -1)
    tokens = sampling.sample(logits, SamplingParams(1.0, top_k, top_p), keys(40000))
    assert torch.bincount(tokens, minlength=4).div(40000).tolist() == pytest.approx(expected, abs=0.01)


def test_temperature_divides_the_logits():
    tokens = sampling.sample(logits_of(0.8, 0.2).expand(40000, -1), SamplingParams(0.5, 0, 0.0), keys(40000))
    assert (tokens == 0).float().mean().item() == pytest.approx(0.64 / 0.68, abs=0.01)


def test_keys_depend_on_their_seeds_alone():
    first = sampling.keys_of((1, 0), 4)
    assert sampling.keys_of((1, 0), 9)[:4].equal(first)
    assert not sampling.keys_of((1, 1), 4).equal(first)
    assert not sampling.keys_of((2, 0), 4).equal(first)
    assert not sampling.keys_of((1,), 4).equal(first)
    assert not sampling.keys_of((2**32, 0), 4).equal(sampling.keys_of((0, 1), 4))


def test_of_the_best_k_those_alone_get_noise_and_the_draw_is_that_of_all():
    generator = torch.Generator().manual_seed(5)
    for b, v, k in ((1, 300, 7), (6, 300, 40), (3, 9, 9), (2, 5, 50)):
        logits = (torch.randn(b, v, generator=generator) * 3).round(decimals=1)  # with equals
        keys = torch.randint(0, 2**32, (b, 2), generator=generator)
        params = SamplingParams(top_k=k, top_p=0, temperature=0.7)
        noise = sampling.gumbels_(sampling.uniforms(torch.arange(v), keys))
        wanted = (sampling.keep_top_k(logits / 0.7, k) + noise).argmax(dim=-1)
        assert torch.equal(sampling.sample(logits, params, keys), wanted)


def test_the_first_of_equals_is_the_best():
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-5.0, -7.0, -5.0, -6.0]])
    assert sampling.best(logits).tolist() == [1, 0, 0] == logits.argmax(dim=-1).tolist()


def test_a_draw_hardly_feels_rounding():
    """Batches of different size round differently; the answers must not change for it."""
    logits = torch.randn(5000, 300, generator=torch.Generator().manual_seed(0))
    other = logits + 1e-6 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    first, second = (sampling.sample(x, SamplingParams(1.0, 0, 0.9), keys(5000)) for x in (logits, other))
    assert (first != second).sum() <= 1


def test_repeated_tokens_become_less_likely():
    """As transformers does: whatever the sign of a logit, and each token once."""
    logits = torch.tensor([[2.0, -2.0, 1.0, 0.0], [2.0, -2.0, 1.0, 0.0]])
    sampling.penalise_(logits, [{0, 1}, {3}], 2.0)
    assert logits.tolist() == [[1.0, -4.0, 1.0, 0.0], [2.0, -2.0, 1.0, 0.0]]


@pytest.mark.parametrize("penalty", [0, -1, 21, float("nan"), "1", True])
def test_penalties_that_are_none(penalty):
    with pytest.raises(UserError, match="repetition_penalty"):
        SamplingParams(repetition_penalty=penalty)
