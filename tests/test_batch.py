"""Rows that join and leave a running batch, at any time and with options of their own, get what they get alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation import BeamParams, SamplingParams
from generation.batch import Batch, generate
from generation.groups import Row
from generation.sampling import rules
from glm.config import ModelConfig
from glm.model import GLM
from tests.fake_model import FakeModel

ENDS = (3, 4)
PARAMS = st.one_of(
    st.builds(SamplingParams, temperature=st.sampled_from([0.7, 1.0]), top_k=st.sampled_from([0, 1, 5]),
              top_p=st.sampled_from([0.0, 0.6]), min_gen_length=st.integers(0, 2), seed=st.integers(0, 3),
              repetition_penalty=st.sampled_from([1.0, 1.3])),
    st.builds(BeamParams, num_beams=st.integers(1, 3), no_repeat_ngram_size=st.integers(0, 2),
              min_gen_length=st.integers(0, 2), stochastic=st.booleans()))
RULES = st.builds(rules, st.just(ENDS), st.lists(st.integers(5, 9), max_size=2, unique=True),
                  st.lists(st.lists(st.integers(5, 14), min_size=1, max_size=2), max_size=3))
ROW = st.builds(Row, context=st.lists(st.integers(5, 12), min_size=1, max_size=7), params=PARAMS,
                limit=st.integers(1, 7), rules=RULES, shared_position=st.sampled_from([None, 0, 2]),
                unidirectional=st.booleans(), counted_length=st.sampled_from([None, 8]),
                seed=st.tuples(st.integers(0, 3)), alternatives=st.sampled_from([None, 0, 2]))
SCHEDULE = st.lists(st.tuples(st.lists(ROW, max_size=3), st.integers(0, 3)), min_size=1, max_size=4)


def finish(batch):
    """Number -> answers of every row that is left; ids of sampled rows must be what the events told."""
    answers, told = {}, {}
    while events := batch.step():
        assert [event.number for event in events] == sorted(event.number for event in events)
        collect(events, answers, told)
    assert batch.rows == batch.sequences.count == 0 and batch.sequences.lengths == []
    return answers


def collect(events, answers, told):
    for event in events:
        if event.token is not None:
            told.setdefault(event.number, []).append(event.token)
        if event.answers is not None:
            answers[event.number] = event.answers
            if event.number in told and event.answers[0][1] is None and len(told[event.number]) > 1:
                assert event.answers[0][0][-len(told[event.number]):] == told[event.number]


def alone(model, row):
    batch = Batch(model)
    (number,) = batch.add([row])
    return finish(batch)[number]


def assert_same(found, expected):
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    assert [score for _, score in found] == [score if score is None else pytest.approx(score, abs=1e-4)
                                             for _, score in expected]


@settings(max_examples=60)
@given(schedule=SCHEDULE)
def test_any_order_of_joining_gives_each_row_what_it_gets_alone(schedule):
    model, batch = FakeModel(vocab_size=24), Batch(FakeModel(vocab_size=24))
    rows, answers, told = {}, {}, {}
    for joining, steps in schedule:
        rows |= dict(zip(batch.add(joining), joining, strict=True))
        for _ in range(steps):
            collect(batch.step(), answers, told)
    answers |= finish(batch)
    assert answers.keys() == rows.keys()
    for number, row in rows.items():
        assert_same(answers[number], alone(model, row))


@settings(max_examples=40)
@given(schedule=SCHEDULE, data=st.data())
def test_rows_that_are_dropped_do_not_disturb_the_others(schedule, data):
    model, batch = FakeModel(vocab_size=24), Batch(FakeModel(vocab_size=24))
    rows, answers, told, dropped = {}, {}, {}, set()
    for joining, steps in schedule:
        rows |= dict(zip(batch.add(joining), joining, strict=True))
        for _ in range(steps):
            collect(batch.step(), answers, told)
            if going := sorted(rows.keys() - answers.keys() - dropped):
                dropped |= set(data.draw(st.lists(st.sampled_from(going), max_size=2, unique=True)))
                for number in dropped:  # of one that has left already nothing is left to drop
                    batch.drop(number)
    answers |= finish(batch)
    assert answers.keys() == rows.keys() - dropped
    for number in answers:
        assert_same(answers[number], alone(model, rows[number]))


TINY = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, inner_hidden_size=48, vocab_size=40,
                   max_sequence_length=64, num_image_tokens=0)


@pytest.mark.parametrize("is_2d", [False, True])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_a_real_model_with_rows_of_every_kind(is_2d, is_compiled, monkeypatch):
    if not is_compiled:
        monkeypatch.setattr("kernels.BACKENDS", {})
    torch.manual_seed(3)
    model = GLM(TINY.override(position_encoding_2d=is_2d), skip_init=False).requires_grad_(False)
    for name, weight in model.named_parameters():  # fresh from its initialisation it would repeat its last token
        if weight.dim() == 2:
            weight.normal_(std=0.5 if "embeddings" in name else 0.6)
    common = rules((1,))
    waves = [[Row([7, 8, 9, 10], SamplingParams(top_k=1), 9, common), Row([5], BeamParams(num_beams=3), 8, common)],
             [Row([9, 30, 31, 7, 8, 8, 9], SamplingParams(top_p=0.8), 12, common, shared_position=2, seed=(5,))],
             [Row([6, 6], BeamParams(num_beams=2), 5, common, unidirectional=True),
              Row([12, 13], SamplingParams(top_k=1), 3, common)]]
    batch, rows, answers, told = Batch(model), {}, {}, {}
    for wave in waves:
        rows |= dict(zip(batch.add(wave), wave, strict=True))
        for _ in range(2):
            collect(batch.step(), answers, told)
    answers |= finish(batch)
    for number, row in rows.items():
        assert_same(answers[number], alone(model, row))


def test_a_row_that_breaks_leaves_alone():
    model = FakeModel(script=lambda ids: 9)
    broken = model._logits
    model._logits = lambda seen: broken(seen) * (float("nan") if 11 in seen[:, 0] and len(seen) > 3 else 1.0)
    batch = Batch(model)
    for params in (SamplingParams(top_k=1), BeamParams(num_beams=2)):
        good, bad = batch.add([Row(context, params, 5, rules(ENDS)) for context in ([5, 6], [5, 11])])
        found, events = {}, batch.step()
        while events:
            found |= {event.number: event for event in events if event.answers is not None}
            events = batch.step()
        assert found[bad].is_broken and found[bad].token is None
        assert len(found[bad].answers[0][0]) == 2 and found[bad].answers[0][0][0] == 9  # what it had until then
        assert not found[good].is_broken and found[good].answers[0][0] == [9] * 5


def test_contexts_are_read_and_tokens_computed_without_gradients(monkeypatch):
    """Where there could be gradients, kernels leave their work to slower ones, which round otherwise."""
    model, seen = FakeModel(vocab_size=24), []
    read = model.hidden_states
    monkeypatch.setattr(model, "hidden_states", lambda *args, **named: (
        seen.append(torch.is_grad_enabled()), read(*args, **named))[1])
    batch = Batch(model)
    (number, _) = batch.add([Row([5, 6], SamplingParams(top_k=1), 3, rules(ENDS)) for _ in range(2)])
    batch.step()
    batch.drop(number)
    finish(batch)
    assert len(seen) > 1 and not any(seen)


def test_room_grows_with_those_who_join():
    batch = Batch(FakeModel(vocab_size=24), rows=1, places=4)
    row = Row([5, 6], SamplingParams(top_k=1), 3, rules(ENDS))
    batch.add([row])
    assert (batch.sequences.cache.batch, batch.sequences.cache.capacity) == (1, 4)
    batch.step()
    batch.add([row, Row([5] * 9, SamplingParams(top_k=1), 3, rules(ENDS))])
    assert batch.sequences.cache.batch >= 3 and batch.sequences.cache.capacity >= 11
    finish(batch)
    size = batch.sequences.cache.batch
    for _ in range(20):
        batch.add([row])
        finish(batch)
    assert batch.sequences.cache.batch == size


def test_nothing_to_do():
    batch = Batch(FakeModel())
    assert batch.step() == [] and batch.add([]) == []
    batch.drop(7)


@pytest.mark.parametrize("most", [64, 100, 128])
def test_the_cache_grows_no_further_than_its_bound(most):
    """Rows that fit are never given more than all may have, whatever has left, and get the same answers."""
    rows = [Row(list(range(1, length)), SamplingParams(top_k=1), limit, rules([0]), seed=(length,))
            for length, limit in ((4, 6), (3, 4), (12, 20), (6, 3), (5, 9), (20, 12))]
    alone = [answers_of(Batch(FakeModel(vocab_size=24)), [row]) for row in rows]
    batch, waiting, running, found = Batch(FakeModel(vocab_size=24), most=most), list(enumerate(rows)), {}, {}
    while waiting or running:
        going = [rows[index] for index in running.values()]
        joining = []
        while waiting:
            each = [*going, *(row for _, row in joining), waiting[0][1]]
            if len(each) * max(row.places for row in each) > most:
                break
            joining.append(waiting.pop(0))
        running |= dict(zip(batch.add([row for _, row in joining]), [index for index, _ in joining], strict=True))
        assert batch.sequences.cache.batch * batch.sequences.cache.capacity <= most
        for event in batch.step():
            if event.answers is not None:
                found[running.pop(event.number)] = event.answers
    assert [found[index] for index in range(len(rows))] == [answer for answer, in alone]


@pytest.mark.parametrize("params", [SamplingParams(top_k=1), BeamParams(num_beams=2, no_repeat_ngram_size=0)])
@pytest.mark.parametrize("at_once", [1, 3, 8, None])
def test_the_next_contexts_join_as_others_leave_and_answers_keep_their_order(params, at_once):
    contexts = [[5, *range(6, 6 + length)] for length in (9, 8, 8, 7, 6, 5, 5, 4, 3, 2, 1)]
    limits = [12, 1, 2, 9, 1, 1, 5, 1, 2, 12, 3]
    asked = dict(end_tokens=[0], limits=limits, counted_lengths=[32] * len(contexts))
    model = FakeModel(vocab_size=24)
    told = []
    found = generate(model, contexts, params, **asked, at_once=at_once, on_answer=told.append)
    assert sorted(told) == list(range(len(contexts))) and (at_once == 1) == (told == sorted(told))
    for context, limit, answers in zip(contexts, limits, found, strict=True):
        (alone,) = generate(FakeModel(vocab_size=24), [context], params, end_tokens=[0], limits=[limit],
                            counted_lengths=[32])
        assert answers == alone
    if at_once is not None:
        one_by_one = sum(max(limits[begin:begin + at_once]) for begin in range(0, len(limits), at_once))
        assert max(model.rows_read) <= at_once * params.num_beams
        assert at_once != 3 or len(model.rows_read) < one_by_one


def test_what_is_over_makes_room_for_the_next():
    model = FakeModel(script=lambda ids: ids[-1] + 1)
    told = []
    found = generate(model, [[5, 6], [5, 9], [5, 20]], SamplingParams(top_k=1), end_tokens=[0], limits=[9] * 3,
                     at_once=1, is_over=lambda ids: ids[-1] % 10 == 0, on_answer=told.append)
    assert told == [0, 1, 2]
    assert [ids for (ids, _), in found] == [[7, 8, 9, 10], [10], list(range(21, 30))]


def answers_of(batch, rows):
    numbers, found = batch.add(rows), {}
    while events := batch.step():
        found |= {event.number: event.answers for event in events if event.answers is not None}
    return [found[number] for number in numbers]
