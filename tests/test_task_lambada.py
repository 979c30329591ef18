"""LAMBADA's rules: what may not be generated, and which word of the beams counts."""

import string

import pytest
from golden_data import TOKENIZER

from evaluation.config import GenerationTaskConfig
from evaluation.data import Example
from glm.tokenizers.icetk import IcetkTokenizer
from tasks.lambada.task import FORBIDDEN_STARTS, INVALID_IDS, LAMBADA

CONFIG = GenerationTaskConfig(name="LAMBADA", path="lambada", use_task_mask=True, max_gen_length=5,
                              sampling_strategy="BeamSearchStrategy", num_beams=16)


@pytest.fixture(scope="module")
def task():
    return LAMBADA(CONFIG, IcetkTokenizer(TOKENIZER / "ice_text.model"))


def beams_of(task, *texts):
    return [task.tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("beams, word", [
    (["cat ."], "cat"),  # complete: punctuation follows
    (["cat and", "dog ."], "dog"),  # the first beam goes on, the second is complete
    (["cat and", "dog or"], "cat"),  # none is complete: the best beam's first word
    (["cat"], "cat"),
    (["cat ., dog"], "cat"),  # a run of punctuation in its usual order is a part of string.punctuation
    (["", "dog !"], "dog"),
    (["cat."], "cat"),  # attached, as with vocabularies other than icetk's
    (["cat,”"], "cat"),
    (["“cat.”\n“I"], "cat"),
    (["don't."], "don't"),
    (["。"], "。"),  # as the original has it: nothing else is there
])
def test_the_first_complete_word_is_the_prediction(task, beams, word):
    assert task.tokenizer.decode(task.predicted_ids(beams_of(task, *beams))).strip() == word


def test_punctuation_begins_no_answer_and_stands_in_none_if_it_is_one_token(task):
    request = task.request(Example(0, [20100, 20101], [], [[20102]], None, {}))
    for character in string.punctuation:
        ids = tuple(task.tokenizer.encode(character))
        assert ids in request.forbidden_starts
        assert (ids[0] in request.invalid_ids) >= (len(ids) == 1)


def test_icetk_s_own_ids_are_banned_where_the_vocabulary_has_them(task):
    request = task.request(Example(0, [20100], [], [[20102]], None, {}))
    assert 20068 in request.invalid_ids
    assert not {token for token in (*INVALID_IDS, *FORBIDDEN_STARTS) if token >= task.tokenizer.num_tokens} & {
        *request.invalid_ids, *(ids[0] for ids in request.forbidden_starts)}


def test_another_numbering_of_ids_bans_punctuation_only():
    task = LAMBADA(CONFIG, IcetkTokenizer(TOKENIZER / "ice_text.model", num_image_tokens=0))
    assert set(task.invalid_ids()) == {ids[0] for ids in map(task.tokenizer.encode, string.punctuation)
                                       if len(ids) == 1}


def test_the_metric_is_accuracy(task):
    assert task.default_metrics == ("Accuracy",)
