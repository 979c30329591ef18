"""Scoring against the slow and obvious way: one continuation at a time, logits of every place."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation import requests as batching
from evaluation.requests import GenerateRequest, ScoreRequest
from evaluation.scorer import PADDING, Scorer, segments_blocked
from generation.params import BeamParams, SamplingParams
from glm.config import ModelConfig
from glm.model import GLM
from glm.sat import Step
from kernels.cpu import attention
from runtime.errors import NonFinite

LEAD = 7


def small_model(position_encoding_2d=False, dtype=torch.float32):
    torch.manual_seed(0)
    config = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=2, inner_hidden_size=48, vocab_size=64,
                         max_sequence_length=64, position_encoding_2d=position_encoding_2d)
    return GLM(config, dtype=dtype, skip_init=False).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def model():
    return small_model()


def slow_log_probs(model, request):
    """Each continuation in a pass of its own, from the definition of the mask."""
    found = []
    for ids in request.continuations:
        tokens = [*request.context, request.lead, *ids[:-1]]
        c, s = len(request.context), len(tokens)
        b = c - request.opened  # the blank's beginning
        positions = [*range(b), *(request.first_position + i * request.advance for i in range(s - b))]
        blocked = torch.ones(1, s, s, dtype=torch.bool)
        for i in range(s):
            for j in range(s):
                blocked[0, i, j] = j > i and (request.causal or i >= b or j >= b)
        position_ids = torch.tensor([positions])
        if model.config.position_encoding_2d:
            position_ids = torch.tensor([[positions, [0] * b + list(range(1, s - b + 1))]])
        logits = model.logits(torch.tensor([tokens]), position_ids, blocked)[0].double().log_softmax(-1)
        found.append(sum(logits[c + i, token].item() for i, token in enumerate(ids)))
    return found


ids = st.lists(st.integers(0, 63), min_size=1, max_size=6).map(tuple)
score_requests = st.builds(
    lambda context, continuations, count, causal, opened: ScoreRequest(
        context, continuations, LEAD, len(context) if count else len(context) - 1, int(count), causal,
        min(opened, len(context) - 1)),
    st.lists(st.integers(0, 63), min_size=1, max_size=20).map(tuple),
    st.lists(ids, min_size=1, max_size=4).map(tuple), st.booleans(), st.booleans(), st.just(0) | st.integers(0, 9))


@pytest.mark.parametrize("two_channels", [False, True])
@settings(max_examples=30)
@given(requests=st.lists(score_requests, min_size=1, max_size=5))
def test_packed_batches_score_like_one_continuation_at_a_time(two_channels, requests):
    model = small_model(position_encoding_2d=two_channels)
    found = Scorer(model).choice_log_probs(requests)
    for row, request in zip(found, requests, strict=True):
        assert row == pytest.approx(slow_log_probs(model, request), abs=2e-5)


beginnings = st.sampled_from([(), (1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9), tuple(range(20))])
begun = st.builds(lambda request, ids, is_whole: replace(
    request, context=(ids + request.context if not is_whole or not ids else ids), opened=min(request.opened, len(ids)),
    first_position=len(ids)), score_requests, beginnings, st.booleans())


@pytest.mark.parametrize("two_channels", [False, True])
@settings(max_examples=25)
@given(requests=st.lists(begun, min_size=2, max_size=8))
def test_what_contexts_begin_with_is_read_once_and_changes_no_score(two_channels, requests):
    model = small_model(position_encoding_2d=two_channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "LEAST_SHARED", 2)
        for batch in batching.batches_of(requests, 100):
            part = [requests[index] for index in batch]
            for row, request in zip(Scorer(model).choice_log_probs(part), part, strict=True):
                assert row == pytest.approx(slow_log_probs(model, request), abs=2e-5)


def test_questions_behind_the_same_examples_are_read_in_one_row_each_of_bounded_length():
    examples = tuple(range(80))
    causal = [ScoreRequest((*examples, number, number), ((1,), (2,)), LEAD, 82, 1, causal=True) for number in range(60)]
    (pack, *others) = batching.packs_of(causal, range(60))
    assert (pack.common, pack.size, len(pack.members)) == (80, 80 + 53 * 3, 53) and len(others) == 1
    both_ways = [replace(request, causal=False) for request in causal]
    assert len(batching.packs_of(both_ways, range(60))) == 60  # the examples see the question
    assert len(batching.packs_of([both_ways[0]] * 3, range(3))) == 1
    assert max(len(one.members) for one in batching.packs_of(causal, range(60), max_items=5)) == 5
    assert max(one.size for one in batching.packs_of(causal, range(60), max_tokens=90)) <= 90
    mixed = [request for pair in zip(causal, both_ways, strict=True) for request in pair]
    found = batching.batches_of(mixed, 1000, 30)
    assert sorted(index for batch in found for index in batch) == list(range(120))
    assert max(map(len, found)) <= 30
    for batch in found:
        packs = batching.packs_of([mixed[index] for index in batch], range(len(batch)))
        assert len(packs) * max(one.size for one in packs) <= 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_layer_looks_from_scored_places_alone_and_scores_stay_the_same(monkeypatch, dtype):
    model = small_model().to(dtype)
    requests = [ScoreRequest(tuple(range(1, 50 + row)), ((3, 4), (5,)), LEAD, 50 + row, 1) for row in range(3)]
    saved, asked = Step.places_in, {}

    def places_in(step, layer):
        return asked.setdefault(layer, saved(step, layer))

    monkeypatch.setattr(Step, "places_in", places_in)
    monkeypatch.setattr(model, "_stack", lambda *_: None)  # walked, as under tensor parallelism
    found = Scorer(model).answer(requests)
    assert not any(places is not None for places in list(asked.values())[:-1])
    assert len(list(asked.values())[-1].unique()) == 3 * 3  # three scored tokens of each row
    monkeypatch.setattr(attention, "_ascends", lambda *_: False)  # then all places look
    assert Scorer(model).answer(requests) == found


def test_of_questions_behind_the_same_examples_the_one_that_breaks_is_named():
    model, examples = small_model(), tuple(range(1, 60)) * 2
    model.transformer.word_embeddings.weight[60], model.head = float("nan"), small_model().head
    requests = [ScoreRequest((*examples, token), ((1, 2),), LEAD, 119, 1, causal=True) for token in (5, 6, 60, 7)]
    assert len(batching.packs_of(requests, range(4))) == 1
    with pytest.raises(NonFinite, match="^the embedding on rank 0: ") as error:
        Scorer(model).choices(requests)
    assert error.value.rows == [2]


def test_single_tokens_share_one_place():
    single = ScoreRequest((1, 2, 3), ((4,), (5,), (6,)), LEAD, 3, 1)
    assert single.segments == ((LEAD,),) and single.size == 4
    mixed = ScoreRequest((1, 2, 3), ((4,), (5, 6)), LEAD, 3, 1)
    assert mixed.segments == ((LEAD,), (LEAD, 5)) and mixed.size == 6


def test_the_mask_of_packed_continuations():
    x = True
    expected = [[0, 0, x, x, x, x], [0, 0, x, x, x, x], [0, 0, 0, x, x, x], [0, 0, 0, 0, x, x], [0, 0, x, x, 0, x],
                [0, 0, x, x, x, x]]
    segments = torch.tensor([[0, 0, 1, 1, 2, PADDING]])
    blocked = segments_blocked(segments, torch.tensor([2]))
    assert blocked[0].tolist() == [[bool(value) for value in row] for row in expected]
    expected[0][1] = x  # a causal context
    assert segments_blocked(segments, torch.tensor([0]))[0].tolist() == [
        [bool(value) for value in row] for row in expected]


def test_a_window_s_loss_is_its_only_continuation_s(model):
    request = ScoreRequest((1, 2, 3), ((9, 8, 7, 6),), LEAD, 3, 1)
    assert Scorer(model).window_losses([request]) == pytest.approx([-slow_log_probs(model, request)[0]], abs=1e-5)


def test_logits_are_made_in_parts_without_changing_a_score(model, monkeypatch):
    requests = [ScoreRequest((1, 2, i), (tuple(range(1, 50)), (3, 4)), LEAD, 3, 1) for i in range(8)]
    whole = Scorer(model).choice_log_probs(requests)
    monkeypatch.setattr("evaluation.scorer.scored_bytes", lambda kind: 60 * 4 * 64)
    assert Scorer(model).choice_log_probs(requests) == whole


def test_half_precision_scores_are_near(model):
    half = small_model(dtype=torch.bfloat16)
    request = ScoreRequest((1, 2, 3), ((9, 8), (5,)), LEAD, 3, 1)
    assert Scorer(half).choice_log_probs([request])[0] == pytest.approx(slow_log_probs(model, request), rel=0.02)


def test_generated_ids_come_without_their_end_token(model):
    request = GenerateRequest((1, 2, 3), SamplingParams(top_k=1), 5, end_tokens=(60,))
    (answer,) = Scorer(model).generate([request])
    (ids,) = answer["beams"]
    assert len(ids) == 5 and 60 not in ids
    (first, *_) = ids
    (answer,) = Scorer(model).generate([GenerateRequest((1, 2, 3), SamplingParams(top_k=1), 5, end_tokens=(first,))])
    assert answer == {"beams": [[]], "scores": [None]}


def test_the_context_counts_as_a_multiple_of_32():
    lengths = {n: GenerateRequest((1,) * n, BeamParams(), 5, (60,)).counted_length for n in (1, 32, 33)}
    assert lengths == {1: 32, 32: 32, 33: 64}


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 100), st.none() | st.integers(1, 5))
def test_a_plan_holds_every_request_once_and_keeps_to_its_bounds(lengths, max_tokens, max_items):
    requests = [ScoreRequest((1,) * length, ((2,),), LEAD, length, 1) for length in lengths]
    batches = batching.batches_of(requests, max_tokens, max_items)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        widest = max(requests[index].size for index in batch)
        assert len(batch) == 1 or widest * len(batch) <= max_tokens
        assert max_items is None or len(batch) <= max_items
    sizes = [requests[index].size for batch in batches for index in batch]
    assert sizes == sorted(sizes, reverse=True)


@given(st.lists(st.tuples(st.integers(3, 12), st.integers(1, 9)), min_size=2, max_size=30), st.integers(20, 80))
def test_what_is_read_in_one_row_keeps_to_the_bound_as_the_scorer_reads_it(contexts, max_tokens):
    """Two rows of a batch that begin alike may become one, which is longer."""
    requests = [ScoreRequest((1,) * same + (number,) * rest, ((2,),), LEAD, same + rest, 1, causal=True)
                for number, (same, rest) in enumerate(contexts, 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batching, "LEAST_SHARED", 2)
        batches = batching.batches_of(requests, max_tokens)
        for batch in batches:
            rows, width = batching.shape_of([requests[index] for index in batch])
            assert rows * width <= max_tokens or len(batch) == 1
    assert sorted(index for batch in batches for index in batch) == list(range(len(requests)))


@pytest.mark.parametrize("count, batches", [(3, 3), (127, 127), (128, 64), (192, 64), (256, 64), (2560, 640)])
def test_what_is_generated_comes_in_batches_of_several_times_what_fits(count, batches):
    """Of a task that has many, so that ranks can share them and a killed run loses little."""
    requests = [GenerateRequest((1,) * 5, SamplingParams(top_k=1), 5, (60,)) for _ in range(2 * count)]
    found = batching.batches_of(requests, 20)
    assert len(found) == batches and sorted(index for batch in found for index in batch) == list(range(2 * count))
    assert len(batching.batches_of([ScoreRequest((1,) * 9, ((2,),), LEAD, 9, 1)] * 2 * count, 20)) == count


def test_requests_of_unlike_families_do_not_share_a_batch():
    greedy = GenerateRequest((1, 2), SamplingParams(top_k=1), 5, (60,))
    beams = GenerateRequest((1, 2), BeamParams(), 5, (60,))
    score = ScoreRequest((1, 2), ((3,),), LEAD, 2, 1)
    assert batching.batches_of([greedy, score, beams, greedy], 1000) == [[0, 3], [1], [2]]


def test_the_key_s_content_holds_what_an_answer_depends_on():
    one = ScoreRequest((1, 2), ((3,),), LEAD, 2, 1, truncated=True, input_length=5)
    assert one.content() == ScoreRequest((1, 2), ((3,),), LEAD, 2, 1).content()
    assert one.content() != ScoreRequest((1, 2), ((3,),), LEAD, 1, 1).content()
    greedy = GenerateRequest((1, 2), SamplingParams(top_k=1), 5, (60,))
    assert greedy.content() != GenerateRequest((1, 2), SamplingParams(top_k=1, min_gen_length=1), 5, (60,)).content()
