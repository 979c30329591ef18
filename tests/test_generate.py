"""The decode loop against its slow oracle, and against itself in other company."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation import BeamParams, SamplingParams
from generation.batch import generate
from glm.config import ModelConfig
from glm.model import GLM
from tests.fake_model import FakeModel
from tests.slow_generation import fake_logits, model_logits, sample_slowly, search_beams_slowly

ENDS = (3, 4)
CONTEXT = st.lists(st.integers(5, 12), min_size=1, max_size=7)
ROW = st.tuples(CONTEXT, st.integers(1, 9), st.sampled_from([None, 0, 2]), st.integers(0, 3))
SAMPLING = st.builds(SamplingParams, temperature=st.sampled_from([0.7, 1.0]), top_k=st.sampled_from([0, 1, 5]),
                     top_p=st.sampled_from([0.0, 0.6]), min_gen_length=st.integers(0, 3))
BEAMS = st.builds(BeamParams, num_beams=st.integers(1, 4), length_penalty=st.sampled_from([0.0, 0.7, 1.0, 2.0]),
                  no_repeat_ngram_size=st.integers(0, 3), min_gen_length=st.integers(0, 2))


def run(model, rows, params, **options):
    contexts, limits, shared, extra = map(list, zip(*rows, strict=True))
    return generate(model, contexts, params, end_tokens=ENDS, limits=limits, shared_positions=shared,
                    counted_lengths=[len(ids) + more for ids, more in zip(contexts, extra, strict=True)],
                    seeds=[(5, more) for more in extra], **options)


def assert_same(found, expected):
    assert [[ids for ids, _ in row] for row in found] == [[ids for ids, _ in row] for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert [score for _, score in row] == [score if score is None else pytest.approx(score, abs=1e-4)
                                               for _, score in wanted]


@settings(max_examples=60)
@given(rows=st.lists(ROW, min_size=1, max_size=6), params=SAMPLING)
def test_sampling_in_a_batch_is_the_slow_one_alone(rows, params):
    """Unequal contexts, limits and positions; rows that end early and leave the batch."""
    model = FakeModel(vocab_size=20)
    expected = [sample_slowly(fake_logits(model), context, params, ENDS, limit, shared, (5, extra))
                for context, limit, shared, extra in rows]
    assert_same(run(model, rows, params), expected)


@settings(max_examples=60)
@given(rows=st.lists(ROW, min_size=1, max_size=4), params=BEAMS)
def test_beam_search_in_a_batch_is_the_slow_one_alone(rows, params):
    model = FakeModel(vocab_size=20)
    expected = [search_beams_slowly(fake_logits(model), context, params, ENDS, limit, shared, len(context) + extra)
                for context, limit, shared, extra in rows]
    assert_same(run(model, rows, params), expected)


@settings(max_examples=20)
@given(rows=st.lists(ROW, min_size=1, max_size=4), seed=st.integers(0, 99))
def test_stochastic_beams_do_not_depend_on_the_batch(rows, seed):
    model, params = FakeModel(vocab_size=20), BeamParams(num_beams=3, stochastic=True, seed=seed)
    assert_same(run(model, rows, params), [run(model, [row], params)[0] for row in rows])


def test_stochastic_beams_depend_on_the_seed():
    rows = [([5, 6], 8, None, extra) for extra in range(6)]  # `extra` is part of the seed
    found = run(FakeModel(vocab_size=20, sharpness=0.5), rows, BeamParams(num_beams=2, stochastic=True))
    assert len({tuple(row[0][0]) for row in found}) > 1


def test_one_beam_is_greedy():
    rows = [([5, 6, 7], 9, None, 0), ([8], 9, None, 0)]
    greedy = run(FakeModel(), rows, SamplingParams(top_k=1))
    beams = run(FakeModel(), rows, BeamParams(num_beams=1, length_penalty=0.0))
    for one, other in zip(greedy, beams, strict=True):
        assert one[0][0] == other[0][0] or other[0][0][-1] in ENDS  # a finished beam may win over a longer one


def test_finished_rows_leave_the_batch():
    model = FakeModel(script=lambda ids: 3 if len(ids) > 3 + (ids[0] == 6) * 20 else 9)
    contexts = [[5, 5]] * 3 + [[6, 6]]
    answers = generate(model, contexts, SamplingParams(top_k=1), end_tokens=ENDS, limits=[30] * 4)
    assert [len(row[0][0]) for row in answers] == [3, 3, 3, 23]
    assert model.rows_read[:4] == [4] * 4  # the contexts, then three steps
    assert set(model.rows_read[4:]) == {1}


def test_invalid_ids_are_never_generated():
    free = run(FakeModel(vocab_size=12), [([5], 9, None, 0)], SamplingParams(top_k=1))[0][0][0]
    invalid = [token for token in free if token not in ENDS]
    for params in (SamplingParams(top_k=1), BeamParams(num_beams=2)):
        for ids, _ in run(FakeModel(vocab_size=12), [([5], 9, None, 0)], params, invalid_ids=invalid)[0]:
            assert not set(ids) & set(invalid)


def test_no_answer_has_a_forbidden_beginning():
    row = [([5, 6], 6, None, 0)]
    for params in (SamplingParams(top_k=1), BeamParams(num_beams=3)):
        free = [ids for ids, _ in run(FakeModel(), row, params)[0]]
        forbidden = [free[0][:1], *(ids[:2] for ids in free[1:])]
        found = [ids for ids, _ in run(FakeModel(), row, params, forbidden_starts=forbidden)[0]]
        assert found
        assert not any(ids[:len(start)] == start for ids in found for start in forbidden)


def test_on_step_hears_every_token():
    heard = []
    answers = run(FakeModel(vocab_size=20), [([5], 4, None, 0), ([6, 7], 7, None, 1)], SamplingParams(),
                  on_step=heard.append)
    for row in range(2):
        assert [token for step in heard for place, token in step if place == row] == answers[row][0][0]


TINY = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, inner_hidden_size=48, vocab_size=40,
                   max_sequence_length=64, num_image_tokens=0)
ROWS = [([7, 8, 9, 10, 11], 9, 2, 0), ([12, 13], 5, None, 0), ([9, 30, 31, 7, 8, 8, 9], 12, 0, 0), ([14], 8, None, 0)]


@pytest.fixture(scope="module", params=[False, True], ids=["1d", "2d"])
def tiny(request) -> GLM:
    torch.manual_seed(3)
    model = GLM(TINY.override(position_encoding_2d=request.param), skip_init=False).requires_grad_(False)
    for name, weight in model.named_parameters():  # fresh from its initialisation it would repeat its last token
        if weight.dim() == 2:
            weight.normal_(std=0.5 if "embeddings" in name else 0.6)
    return model


@pytest.mark.parametrize("unidirectional", [False, True])
@pytest.mark.parametrize("params", [
    SamplingParams(top_k=1), SamplingParams(top_p=0.8), BeamParams(num_beams=3)], ids=["greedy", "sampled", "beams"])
def test_cached_batch_is_the_uncached_single_row(tiny, params, unidirectional):
    if tiny.config.position_encoding_2d:
        alone = [run(tiny, [row], params, unidirectional=unidirectional)[0] for row in ROWS]
    elif isinstance(params, BeamParams):
        alone = [search_beams_slowly(model_logits(tiny, len(context), unidirectional), context, params, ENDS, limit,
                                     shared, len(context) + extra) for context, limit, shared, extra in ROWS]
    else:
        alone = [sample_slowly(model_logits(tiny, len(context), unidirectional), context, params, ENDS, limit, shared,
                               (5, extra)) for context, limit, shared, extra in ROWS]
    assert_same(run(tiny, ROWS, params, unidirectional=unidirectional), alone)


@pytest.mark.gpu
@pytest.mark.parametrize("params", [
    SamplingParams(top_k=1), SamplingParams(top_p=0.8), SamplingParams(),
    BeamParams(num_beams=3, no_repeat_ngram_size=2), BeamParams(num_beams=2, stochastic=True)],
    ids=["greedy", "nucleus", "sampled", "beams", "stochastic"])
def test_a_gpu_generates_what_a_cpu_does(params):
    torch.manual_seed(3)
    model = GLM(TINY, skip_init=False).requires_grad_(False)
    for _, weight in model.named_parameters():
        if weight.dim() == 2:
            weight.normal_(std=0.5)
    expected = run(model, ROWS, params)
    assert_same(run(model.to("cuda"), ROWS, params), expected)
