"""Answers to lm-evaluation-harness against what the model says of each question alone. Needs no harness."""

import logging
import math
import random
from pathlib import Path

import pytest
import torch

import glm
from evaluation.harness_answers import Answers
from evaluation.harness_requests import frame_of, split_pair
from generation import SamplingParams, fill_blanks
from generation.texts import Names
from runtime.errors import UserError
from tests.golden_data import family_folder
from tests.golden_family import causal, checkpoint

SMALL = Path(__file__).resolve().parent.parent / "checkpoints" / "glm-small"
PAIRS = [("The sky is", " blue"), ("The sky is", " a large green dog"), ("", "It was the best of times"),
         ("我很", "高兴"), ("很", "好"), ("The sky is ", "made of cheese"), ("x" * 3, ""), ("The sky is", " blue")]


@pytest.fixture(scope="module")
def small():
    return glm.load(SMALL)


@pytest.fixture(scope="module")
def of_family(tmp_path_factory):
    at = tmp_path_factory.mktemp("tokenizers")
    return lambda family, name, kind: glm.load(checkpoint(family, name), tokenizer_path=family_folder(kind, at))


def answers_of(loaded, mask="[gMASK]", unidirectional=False, **options):
    model, tokenizer = loaded
    return Answers(model, tokenizer, frame_of(model.config.prompt_form, tokenizer, mask, unidirectional), **options)


def by_logits(model, tokens, context, positions, places, scored):
    """The log-probability of the last ids of a row, and whether each is the argmax. context: tokens that all see."""
    found = (torch.tensor([[positions, places]]) if model.config.position_encoding_2d else torch.tensor([positions]))
    logits = model.logits(torch.tensor([tokens]), found, causal([context], len(tokens)))[0, -len(scored):].double()
    log_probs = logits.log_softmax(-1)
    return (sum(log_probs[place, token].item() for place, token in enumerate(scored)),
            all(log_probs[place].argmax().item() == token for place, token in enumerate(scored)))


def assert_like(found, expected):
    assert found.log_prob == pytest.approx(expected[0], abs=1e-4) and found.is_greedy == expected[1]


@pytest.mark.parametrize("mask", ["[gMASK]", "[MASK]"])
def test_log_likelihoods_behind_a_mask(small, mask):
    model, tokenizer = small
    for (context, continuation), found in zip(PAIRS, answers_of(small, mask).log_likelihoods(PAIRS), strict=True):
        before, scored = split_pair(tokenizer.encode, context, continuation)
        if not scored:
            assert found == (0.0, True)
            continue
        c, s = len(before), len(scored)
        tokens = [*before, tokenizer.command(mask), tokenizer.command("sop"), *scored[:-1]]
        behind = range(c + 1, c + 1 + s) if mask == "[gMASK]" else [c] * s
        assert_like(found, by_logits(model, tokens, c + 1, [*range(c + 1), *behind], None, scored))


def test_log_likelihoods_from_left_to_right(small):
    model, tokenizer = small
    for (context, continuation), found in zip(PAIRS, answers_of(small, unidirectional=True).log_likelihoods(PAIRS),
                                              strict=True):
        before, scored = split_pair(tokenizer.encode, context, continuation)
        if scored:
            tokens = [tokenizer.command("[gMASK]"), tokenizer.command("sop"), *before, *scored[:-1]]
            assert_like(found, by_logits(model, tokens, 0, range(len(tokens)), None, scored))


def test_what_a_model_writes_is_greedy(small):
    answers = answers_of(small, max_gen_toks=4)
    (text,) = answers.generate([("The sky is", {})])
    choice, other = answers.log_likelihoods([("The sky is", text), ("The sky is", text + " xylophone")])
    assert choice.is_greedy and not other.is_greedy


@pytest.mark.parametrize(("family", "name", "kind", "context", "continuation"), [
    ("glm", "hf_gpt2", "gpt2", "The end of the", " war"),
    ("chatglm", "hf_chatglm_untied", "chatglm", "你好", "世界和平"),
    ("chatglm2", "hf_chatglm2", "chatglm2", "Shiva is", " sculpted and"),
])
def test_other_families_see_a_context_in_their_own_form(of_family, family, name, kind, context, continuation):
    loaded = of_family(family, name, kind)
    model, tokenizer = loaded
    before, scored = split_pair(tokenizer.encode, context, continuation)
    gmask, sop = tokenizer.command("[gMASK]"), tokenizer.command("sop")
    if family == "chatglm2":
        tokens = [gmask, sop, *before, *scored[:-1]]
        expected = by_logits(model, tokens, 0, range(len(tokens)), None, scored)
    else:  # [CLS] text [gMASK] eos sop; text [gMASK] sop: all behind the context has the mask's position
        around = ([tokenizer.command("ENC")], [tokenizer.command("eos")]) if family == "glm" else ([], [])
        seen = [*around[0], *before, gmask, *around[1]]
        place, s = len(around[0]) + len(before), len(scored)
        expected = by_logits(model, [*seen, sop, *scored[:-1]], len(seen), [*range(len(seen)), *[place] * s],
                             [*[0] * len(seen), *range(1, s + 1)], scored)
    (found,) = answers_of(loaded).log_likelihoods([(context, continuation)])
    assert_like(found, expected)
    if family != "chatglm2":  # from left to right: all of the text is in the blank
        seen = [*around[0], gmask]
        s, tokens = len(before) + len(scored), [*seen, sop, *before, *scored[:-1]]
        expected = by_logits(model, tokens, len(seen), [*range(len(seen)), *[len(seen) - 1] * s],
                             [*[0] * len(seen), *range(1, s + 1)], scored)
    (found,) = answers_of(loaded, unidirectional=True).log_likelihoods([(context, continuation)])
    assert_like(found, expected)


def test_batches_and_order_change_nothing(small):
    pairs = [*PAIRS, *((context * 5, " once more") for context, _ in PAIRS)]
    expected = answers_of(small).log_likelihoods(pairs)
    order = random.Random(0).sample(range(len(pairs)), len(pairs))
    told = {}
    for batch_size in (1, 3):
        found = answers_of(small, batch_size=batch_size).log_likelihoods(
            [pairs[place] for place in order], lambda place, choice: told.__setitem__(place, choice))
        for place, choice in zip(order, found, strict=True):
            assert_like(choice, expected[place])
        assert told == {place: found[place] for place, number in enumerate(order) if pairs[number][1]}
    questions = [(context, {"max_gen_toks": 5}) for context, _ in PAIRS[2:]]
    assert answers_of(small, batch_size=1).generate(questions) == answers_of(small).generate(questions)


def test_a_text_s_tokens_are_each_scored_once(small):
    """With windows written out by hand: 7 tokens, then always 4 with 3 before them."""
    model, tokenizer = small
    text = "It was the best of times, it was the worst of times, it was the age of wisdom."
    ids = tokenizer.encode(text)
    gmask, sop = tokenizer.command("[gMASK]"), tokenizer.command("sop")
    expected, begin = 0.0, 0
    while begin < len(ids):
        size = 7 if begin == 0 else 4
        before, scored = ids[max(0, begin - 3):begin], ids[begin:begin + size]
        tokens = [*before, gmask, sop, *scored[:-1]]
        assert len(tokens) <= 8
        expected += by_logits(model, tokens, len(before) + 1, range(len(tokens)), None, scored)[0]
        begin += size
    found = answers_of(small, max_length=8).rolling(["", text])
    assert found == [0.0, pytest.approx(expected, abs=1e-4)]
    (whole,) = answers_of(small).log_likelihoods([("", text)])
    assert answers_of(small).rolling([text]) == [pytest.approx(whole.log_prob, abs=1e-5)]


def test_generated_texts(small):
    """Those of fill_blanks behind the same context, up to a stop text, joined to the context as they must read."""
    model, tokenizer = small
    contexts = ["The sky is", "The sky is ", "今天"]
    results = fill_blanks(model, tokenizer, contexts, SamplingParams(top_k=1, max_gen_length=12))
    whole = [Names(tokenizer).behind(result.beams[0].blank_ids[0]) for result in results]
    answers = answers_of(small)
    plain = answers.generate([(context, {"max_gen_toks": 12}) for context in contexts])
    assert plain == [whole[0], whole[1].lstrip(" "), whole[2]] and plain[0].startswith(" ")
    stop = plain[0][4:7]
    assert answers.generate([(contexts[0], {"max_gen_toks": 12, "until": [stop, "never"]})]) == [
        plain[0][:plain[0].find(stop)]]


def test_draws_follow_the_seed_and_differ_where_a_question_is_repeated(small):
    answers = answers_of(small)
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "seed": 5}
    first, second, other = answers.generate([("The", drawn), ("The", drawn), ("A", drawn)])
    assert len({first, second, other}) == 3
    assert answers.generate([("A", drawn), ("The", drawn), ("The", drawn)]) == [other, first, second]
    assert answers.generate([("The", drawn | {"seed": 6})]) == [second]


def test_a_context_that_is_too_long_loses_its_beginning(small, caplog):
    answers, (_, tokenizer) = answers_of(small, max_length=16), small
    long = " ".join(["one two three"] * 10) + " The sky"
    with caplog.at_level(logging.WARNING):
        choice, short = answers.log_likelihoods([(long, " is blue"), ("The sky", " is blue")])
    assert caplog.messages == ["1 request was longer than max_length 16: tokens were cut off at the left of the "
                               "context"]
    ids, scored = split_pair(tokenizer.encode, long, " is blue")
    (kept,) = Answers(*small, answers.frame)._scored([(ids[-(16 - 2 - len(scored) + 1):], scored)])
    assert choice.log_prob == pytest.approx(kept[1].log_prob, abs=1e-4) and math.isfinite(short.log_prob)
    caplog.clear()
    answers.generate([(long, {"max_gen_toks": 4}), (long, {"max_gen_toks": 4})])
    assert caplog.messages == ["2 requests were longer than max_length 16: tokens were cut off at the left of the "
                               "context"]


def test_what_cannot_be_answered_is_said(small):
    answers = answers_of(small, max_length=8)
    with pytest.raises(UserError, match="a continuation of .* are more than max_length 8; shorten it"):
        answers.log_likelihoods([("a", " one two three four five six seven eight nine")])
    with pytest.raises(UserError, match="answers of 7 tokens .*max_length 8; lower max_gen_toks"):
        answers.generate([("a", {"max_gen_toks": 7})])
    for length in (3, 513):
        with pytest.raises(UserError, match=f"max_length is {length}; allowed: 4 ... 512"):
            answers_of(small, max_length=length)
