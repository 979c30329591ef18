"""What seq2seq tasks write is what whole passes over the sequence choose, token by token."""

import functools

import pytest
import torch

from generation import BeamParams
from glm.config import ModelConfig
from glm.model import GLM
from runtime import parallel
from tuning.batch import batch_of
from tuning.data.sample import Kind, Row, Sample
from tuning.decoding import filled, source_of, written
from tuning.evaluate_texts import put_in_place

PAD, SOP, EOP, MASK = 0, 1, 2, 3
LENGTH, LIMIT = 9, 8
SOURCES = [[5, 6, MASK, 7], [MASK, 8, 9, 10, 11, 12, 13, 14, 15], [21, MASK, 22, MASK, 23, 24]]


@functools.cache
def model():
    if not parallel.is_started():
        parallel.start()
    config = ModelConfig(num_layers=2, hidden_size=16, num_attention_heads=2, inner_hidden_size=32, vocab_size=40,
                         max_sequence_length=32, position_encoding_2d=True, num_image_tokens=0, family="glm",
                         gelu="tanh")
    made = GLM(config, skip_init=False)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        made.transformer.word_embeddings.weight[EOP] *= 4  # some answers end, and some blanks are followed by another
    return made.requires_grad_(False).eval()


def row_of(source, answer, hides_padding=False, places=None):
    """The row of a padded source, with sop and what is written behind it. places: of the answer, with their blocks."""
    ids = [*source, *[PAD] * (LENGTH - len(source))]
    count = len(answer) + 1
    own = places or [(source.index(MASK), step + 1) for step in range(count)]
    seen = "1" * len(source) + "0" * (LENGTH - len(source))
    visible = tuple(seen + "1" * step + "0" * (count - step) for step in [0] * LENGTH + [*range(1, count + 1)])
    return Row((*ids, SOP, *answer), (*range(LENGTH), *(place for place, _ in own)),
               (*[0] * LENGTH, *(block for _, block in own)), LENGTH, (*[0] * LENGTH, *[0] * count),
               (*[0] * (LENGTH + count - 1), 1), visible if hides_padding else ())


def next_logits(row):
    """Of what follows a row, by one pass over all of it."""
    batch = batch_of([Sample("a", Kind.SEQ2SEQ, (row,))], model().config)
    return model().logits(batch.tokens, batch.position_ids, batch.blocked)[0, len(row.input_ids) - 1]


def without_repeats(logits, ids, size):
    for begin in range(len(ids) - size + 1):
        if size and ids[begin:begin + size - 1] == ids[len(ids) - size + 1:]:
            logits[ids[begin + size - 1]] = -1e9
    return logits


@pytest.mark.parametrize("hides_padding", [False, True])
@pytest.mark.parametrize("has_places", [True, False])
@pytest.mark.parametrize("size, least", [(0, 0), (2, 4)])
def test_one_beam_writes_the_likeliest_token_of_every_step(hides_padding, has_places, size, least):
    rows, expected = [row_of(source, [], hides_padding) for source in SOURCES], []
    for source in SOURCES:
        ids = []
        while len(ids) < LIMIT and EOP not in ids:
            own = None if has_places else [(source.index(MASK), 1)] * (len(ids) + 1)
            logits = without_repeats(next_logits(row_of(source, ids, hides_padding, own)), ids, size)
            logits[EOP] -= 1e9 * (len(ids) < least)
            ids.append(int(logits.argmax()))
        expected.append(ids)
    params = BeamParams(num_beams=1, no_repeat_ngram_size=size, min_gen_length=least, length_penalty=0.0,
                        ranking="seq2seq")
    assert written(model(), rows, params, EOP, LIMIT, has_places=has_places) == expected


def test_more_beams_find_a_likelier_answer_and_rows_do_not_depend_on_one_another():
    def total(row, source, ids):
        return sum(float(next_logits(row_of(source, ids[:step])).log_softmax(-1)[token])
                   for step, token in enumerate(ids))

    rows = [row_of(source, []) for source in SOURCES]
    params = [BeamParams(num_beams=beams, length_penalty=0.0, ranking="seq2seq") for beams in (1, 4)]
    greedy, searched = (written(model(), rows, each, EOP, LIMIT) for each in params)
    for row, source, first, second in zip(rows, SOURCES, greedy, searched, strict=True):
        assert total(row, source, second) >= total(row, source, first) - 1e-4
    assert [written(model(), [row], params[1], EOP, LIMIT)[0] for row in rows] == searched


def test_drawn_candidates_depend_on_seed_and_row_alone():
    rows = [row_of(source, []) for source in SOURCES]
    params = BeamParams(num_beams=2, length_penalty=0.0, ranking="seq2seq", stochastic=True)
    first, again, other = (written(model(), rows, params, EOP, LIMIT, [(seed, row) for row in range(len(rows))])
                           for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("size", [0, 2])
def test_blanks_are_filled_one_after_another_in_one_sequence(size):
    sources = [[*source, *[PAD] * (LENGTH - len(source))] for source in SOURCES]
    expected = []
    for source in SOURCES:
        masks = [place for place, token in enumerate(source) if token == MASK]
        ids, places, blank = [], [(masks[0], 1)], 0
        while len(ids) < LIMIT:
            logits = without_repeats(next_logits(row_of(source, ids, places=places)), ids, size)
            token = int(logits.argmax())
            if token == EOP:
                blank += 1
                if blank == len(masks):
                    break
                token, place = SOP, (masks[blank], 1)
            else:
                place = places[-1][0], places[-1][1] + 1
            ids.append(token)
            places.append(place)
        expected.append(ids)
    params = BeamParams(num_beams=1, no_repeat_ngram_size=size)
    assert filled(model(), sources, MASK, SOP, EOP, params, LIMIT) == expected


def test_a_source_without_blanks_gets_nothing():
    params = BeamParams(num_beams=1)
    one, none = filled(model(), [[5, MASK, 6], [5, 6, 7]], MASK, SOP, EOP, params, 3)
    assert one and none == []


def test_answers_are_put_in_place_and_blanks_without_one_vanish():
    assert put_in_place([5, MASK, 6, MASK, MASK], [31, 32, SOP, 33], MASK, SOP) == [5, 31, 32, 6, 33]


def test_hidden_padding_is_no_part_of_what_an_answer_sees():
    assert source_of(row_of(SOURCES[0], [])) == [5, 6, MASK, 7, 0, 0, 0, 0, 0]
    assert source_of(row_of(SOURCES[0], [], hides_padding=True)) == [5, 6, MASK, 7]
