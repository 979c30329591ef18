"""Splitting texts at their masks, filling left to right, joining; with golden's tokenizer and a scripted model."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation import BeamParams, SamplingParams, fill_blanks
from generation.batching import batches
from generation.blanks import MASK_PATTERN, split
from glm.config import ModelConfig
from glm.prompt_form import PromptForm
from runtime.errors import UserError
from tests.fake_model import FakeModel

GREEDY = SamplingParams(top_k=1)


def scripted(tokenizer, *answers: str | list[int], **options) -> FakeModel:
    """A model that gives these answers (texts or ids), blank after blank, each with its end token."""
    ids = [answer if isinstance(answer, list) else tokenizer.encode(answer) for answer in answers]
    sop, eop = tokenizer.command("sop"), tokenizer.command("eop")
    contexts = []

    def script(seen: list[int]) -> int:
        if sop not in seen:
            return 0  # the context is being read
        context, generated = seen[:seen.index(sop)], seen[seen.index(sop) + 1:]
        if context not in contexts:
            contexts.append(context)
        return [*ids[contexts.index(context)], eop][len(generated)]

    return FakeModel(vocab_size=23552, script=script, **options)


@pytest.mark.parametrize("text, kind, stretches", [
    ("a [MASK] b", "[MASK]", [["a "], [" b", "eos"]]),
    ("a [MASK]", "[MASK]", [["a "], []]),
    ("a", "[gMASK]", [["a"], []]),
    ("", "[gMASK]", [[], []]),
    ("a [gMASK] b", "[gMASK]", [["a "], [" b", "eos"]]),
    ("[sMASK] a [gMASK]", "[sMASK]", [[], [" a ", "[gMASK]"]]),
    ("a [sMASK] b [MASK] c", "[MASK]", [["a ", "[sMASK]", " b "], [" c", "eos"]]),
    ("[MASK][MASK]", "[MASK]", [[], [], []]),
    ("a [XMASK] b", "[gMASK]", [["a [XMASK] b"], []]),
])
def test_split(tokenizer, text, kind, stretches):
    prompt = split(text, tokenizer)
    names = ("eos", "[gMASK]", "[sMASK]")
    assert prompt.kind == kind
    assert [list(stretch) for stretch in prompt.stretches] == [
        [token for part in parts
         for token in ([tokenizer.command(part)] if part in names else tokenizer.encode(part))]
        for parts in stretches]


@settings(max_examples=50)
@given(parts=st.lists(st.sampled_from(["[MASK]", "[sMASK]", "[gMASK]", "a", " ", "[", "MASK]", "天", "\n"])))
def test_the_first_blank_is_where_the_mask_is(tokenizer, parts):
    prompt = split("".join(parts), tokenizer)
    ids = prompt.input_ids([])
    assert ids[prompt.mask_position([])] == prompt.mask == tokenizer.command(prompt.kind)
    assert ids.index(prompt.mask) == prompt.mask_position([])
    assert ids.count(prompt.mask) == prompt.num_blanks == max(1, len([
        mask for mask in MASK_PATTERN.findall("".join(parts)) if mask == prompt.kind]))


def test_blanks_are_filled_from_left_to_right(tokenizer):
    result = fill_blanks(scripted(tokenizer, "red", "big"), tokenizer, ["a [MASK] car, a [MASK] house"], GREEDY)[0]
    assert result.blanks == ["red", "big"]
    assert result.text == "a red car, a big house"
    assert result.finish_reason == "stop"
    first, last = split("a [MASK] car, a [MASK] house", tokenizer), result.beams[0].ids
    assert result.input_ids == first.input_ids([])
    assert last == first.input_ids([tokenizer.encode("red")]) + tokenizer.encode("big") + [tokenizer.command("eop")]


def test_a_generated_mask_token_is_not_filled(tokenizer):
    """The original takes it for the next blank and never comes to an end."""
    mask = tokenizer.command("[MASK]")
    result = fill_blanks(scripted(tokenizer, [mask, 21000], "b"), tokenizer, ["[MASK] a [MASK]"], GREEDY)[0]
    assert result.blanks == ["[MASK]" + tokenizer.decode_behind([21000]), "b"]


@pytest.mark.parametrize("kind", [SamplingParams(top_k=1, max_gen_length=2), BeamParams(num_beams=2, max_gen_length=2)])
def test_a_token_that_a_family_never_generates(tokenizer, kind):
    """glm-10b-chinese's [gMASK] has a copy of eop's row: each time that an answer ends it is as likely."""
    gmask = tokenizer.command("[gMASK]")
    model = scripted(tokenizer, [gmask, gmask, gmask])
    assert fill_blanks(model, tokenizer, ["a"], kind)[0].beams[0].blank_ids == [[gmask] * 2]
    model.config.prompt_form = PromptForm(never=("[gMASK]",))
    result, = fill_blanks(model, tokenizer, ["a"], kind)
    assert not any(gmask in ids for beam in result.beams for ids in beam.blank_ids)


def test_which_model_has_one():
    def never(name, **fields):
        return ModelConfig.from_name(name).override(**fields).prompt_form.never

    assert never("glm-10b-chinese") == ("[gMASK]",) and never("glm-10b-chinese", gelu="tanh") == ()
    assert not any(map(never, ("glm-10b", "glm-large-chinese", "glm-130b", "chatglm-6b", "chatglm2-6b")))


def test_an_answer_may_be_empty(tokenizer):
    result = fill_blanks(scripted(tokenizer, "", ""), tokenizer, ["[MASK][MASK]"], GREEDY)[0]
    assert (result.text, result.blanks, result.finish_reason, result.error) == ("", ["", ""], "stop", None)


def test_an_answer_that_is_cut_off_says_so(tokenizer):
    model = scripted(tokenizer, [21000, 21001, 21002, 21003])
    for params in (SamplingParams(top_k=1, max_gen_length=3), SamplingParams(top_k=1, out_seq_length=6)):
        result = fill_blanks(model, tokenizer, ["word"], params)[0]  # prompt and sop: 3 tokens
        assert (len(result.beams[0].ids), result.finish_reason) == (6, "length")


@pytest.mark.parametrize("stops, blank, tokens", [
    (("tea",), "a cup of ", 7), (("up o",), "a c", 4), (("zzz", " of"), "a cup", 4), (("zzz",), "a cup of tea", 8),
    (("a",), "", 1), (("tea", "cup"), "a ", 3), (("ea",), "a cup of t", 7),
])
def test_a_stop_text_ends_a_blank(tokenizer, stops, blank, tokens):
    """Right before it, wherever it stands in a token; the model is asked no more, and the next blank sees the whole
    tokens that are left."""
    ids = [tokenizer.encode("a cup of tea"), tokenizer.encode("b")]
    model = scripted(tokenizer, *ids)
    steps = []
    result, = fill_blanks(model, tokenizer, ["[MASK] and [MASK]"], GREEDY, stops=stops,
                          on_step=lambda *step: steps.append(step))
    assert result.blanks == [blank, "b"] and result.text == f"{blank} and b" and result.finish_reason == "stop"
    assert sum(step[1] == 0 for step in steps) == tokens
    kept, last = result.beams[0].blank_ids
    assert ids[0][:len(kept)] == kept and blank.startswith(tokenizer.decode(kept)) and last == ids[1]
    assert result.beams[0].ids[:len(kept)] == kept


def test_stop_texts_cut_beams_when_they_are_complete(tokenizer):
    texts, params = ["a", "word [MASK] b"], BeamParams(num_beams=3, max_gen_length=6)
    whole = fill_blanks(noisy(), tokenizer, texts, params)
    stop = whole[0].blanks[0][3:5]
    cut = fill_blanks(noisy(), tokenizer, texts, params, stops=[stop])
    for before, after in zip(whole, cut, strict=True):
        assert [beam.score for beam in before.beams] == [beam.score for beam in after.beams]
        assert [beam.blanks[0].partition(stop)[0] for beam in before.beams] == [beam.blanks[0] for beam in after.beams]


@pytest.mark.parametrize("stops", ["", [""], [1], None, {"a": 1}])
def test_what_is_no_stop_text(tokenizer, stops):
    with pytest.raises(UserError, match="must be a text or a list of texts, none of them empty"):
        fill_blanks(noisy(), tokenizer, ["a"], GREEDY, stops=stops)


def test_out_seq_length_is_capped_by_the_model(tokenizer):
    model = scripted(tokenizer, [21000] * 99, max_sequence_length=20)
    for params in (SamplingParams(top_k=1, out_seq_length=99), GREEDY):
        assert len(fill_blanks(model, tokenizer, ["word"], params)[0].beams[0].ids) == 20


def test_prompts_without_room_do_not_stop_the_others(tokenizer):
    model = scripted(tokenizer, "a", max_sequence_length=12)
    texts = ["word", "much too long a prompt for so small a model, with many a word", "lone \ud800 surrogate"]
    heard = {}
    good, long, broken = fill_blanks(model, tokenizer, texts, GREEDY, on_result=heard.__setitem__)
    assert good.error is None
    assert long.error.startswith("text too long: the prompt has ")
    assert long.error.endswith(" tokens, the model takes 12 at most (max_sequence_length)")
    assert broken.error.startswith("text is not valid UTF-8")
    assert heard == {0: good, 1: long, 2: broken}


def test_a_long_answer_leaves_room_for_the_next_blank(tokenizer):
    """At least one token: the place of its mask."""
    model = scripted(tokenizer, [21000] * 9, [21001] * 9, "", max_sequence_length=9)
    result = fill_blanks(model, tokenizer, ["[MASK] a [MASK] b [MASK]"], GREEDY)[0]
    assert len(result.input_ids) == 6
    assert result.blanks == [tokenizer.decode([21000] * 3), tokenizer.decode([21001]), ""]
    assert (result.finish_reason, result.error) == ("length", None)


NOISE_PROMPTS = ["a [MASK] b [MASK]", "word", "[sMASK]", "c [MASK] d [MASK] e [MASK]", "天气[gMASK]", "[MASK][MASK]"]


@settings(max_examples=12)
@given(order=st.permutations(range(len(NOISE_PROMPTS))), take=st.integers(1, len(NOISE_PROMPTS)),
       batch_size=st.sampled_from([None, 1, 2, 3]),
       params=st.sampled_from([GREEDY, SamplingParams(seed=3, top_p=0.9), BeamParams(num_beams=3, max_gen_length=5)]))
def test_a_result_does_not_depend_on_the_company(tokenizer, order, take, batch_size, params):
    model = noisy()
    texts = [NOISE_PROMPTS[place] for place in order[:take]]
    together = fill_blanks(model, tokenizer, texts, params, batch_size=batch_size)
    assert together == [fill_blanks(model, tokenizer, [text], params)[0] for text in texts]


def noisy() -> FakeModel:
    return FakeModel(vocab_size=23552, max_sequence_length=30, sharpness=4.0)


def test_seeds(tokenizer):
    def texts(**options):
        return [result.text for result in fill_blanks(noisy(), tokenizer, ["word"] * 2, SamplingParams(**options))]

    assert texts(seed=1) == texts(seed=1)
    assert texts(seed=1) != texts(seed=2)
    assert len(set(texts())) == 2  # without a seed every prompt gets a fresh one


def test_equal_prompts_get_equal_answers_and_unlike_ones_independent_draws(tokenizer):
    """All prompts of a model that gives every token the same chance: a token's share is what independent draws give it.

    Of 320 draws of 8 tokens, chi-squared of 7 degrees stays below 30 for all but one seed in 10,000; with one draw of
    noise for all prompts it would be 2,240. No prompt's draw says anything of the next one's, nor a token of the next.
    """
    model, vocabulary, numbers = FakeModel(vocab_size=23552), range(21000, 21008), range(320)
    model._logits = lambda seen: torch.full((23552,), -1e4).index_fill_(0, torch.tensor(vocabulary), 0.0)
    params = SamplingParams(seed=1, max_gen_length=2)
    texts = [f"word {number} [MASK]" for number in numbers]
    beams = [result.beams[0].ids[-2:] for result in fill_blanks(model, tokenizer, texts, params)]
    assert fill_blanks(model, tokenizer, [texts[7], texts[7]], params)[1].beams[0].ids[-2:] == beams[7]
    for pairs in ([ids[0] for ids in beams], [ids[1] for ids in beams],
                  [21000 + (one[0] + two[0]) % 8 for one, two in itertools.pairwise([*beams, beams[0]])],
                  [21000 + sum(ids) % 8 for ids in beams]):
        shares = [pairs.count(token) for token in vocabulary]
        assert sum((share - 40) ** 2 for share in shares) / 40 < 30


@pytest.mark.parametrize("params", [SamplingParams(seed=1, max_gen_length=8),
                                    BeamParams(num_beams=2, stochastic=True, seed=1, max_gen_length=8)])
def test_the_key_of_a_draw_is_seed_prompt_and_blank(tokenizer, params):
    """The model is the same for all contexts, so that answers differ by their noise alone."""
    model = noisy()
    model._logits = lambda seen: torch.arange(23552) % 7 * 0.01
    one, same, other, changed = (result.beams[0].blank_ids for result in fill_blanks(
        model, tokenizer, [*["a [MASK] b [MASK]"] * 2, "b [MASK] a [MASK]", "a [MASK] b [MASK]."], params))
    assert one == same and one[0] != one[1]
    assert one[0] != other[0] and one[0] != changed[0]


def test_one_string_is_not_a_list_of_prompts(tokenizer):
    with pytest.raises(UserError, match="must be a list of prompts"):
        fill_blanks(noisy(), tokenizer, "word", GREEDY)


@pytest.mark.parametrize("kind, options, message", [
    (SamplingParams, {"temperature": 0}, "temperature 0: must be greater than 0"),
    (SamplingParams, {"temperature": float("nan")}, "temperature nan: must be a finite number"),
    (SamplingParams, {"top_p": 1.5}, "top_p 1.5: must lie between 0 and 1"),
    (SamplingParams, {"top_k": -1}, "top_k -1: must be a whole number of at least 0"),
    (BeamParams, {"num_beams": 0}, "num_beams 0: must be a whole number of at least 1"),
    (BeamParams, {"max_gen_length": 0}, "max_gen_length 0: must be a whole number of at least 1"),
    (BeamParams, {"no_repeat_ngram_size": 1.5}, "no_repeat_ngram_size 1.5: must be a whole number of at least 0"),
    (BeamParams, {"no_repeat_ngram_size": 10**9}, "no_repeat_ngram_size 1000000000: must be at most 65536"),
    (BeamParams, {"length_penalty": -600}, "length_penalty -600: must lie between -20 and 20"),
    (SamplingParams, {"temperature": 10**400}, "temperature 1"),
])
def test_parameters_are_checked_when_they_are_made(kind, options, message):
    with pytest.raises(UserError) as error:
        kind(**options)
    assert str(error.value).startswith(message)


def test_batches_are_bounded_and_sorted_by_size():
    items, sizes = list("abcdef"), [9000, 10, 4000, 20, 30, 30000]
    assert list(batches(items, sizes, noisy(), 1, None)) == [["b", "d", "e", "c"], ["a"], ["f"]]
    assert list(batches(items, sizes, noisy(), 1, 4)) == [["b", "d", "e", "c"], ["a", "f"]]
    assert list(batches([], [], noisy(), 1, None)) == []
    assert list(batches(items[:2], [5, 5], noisy(), 100, None)) == [["a"], ["b"]]
