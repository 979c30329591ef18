"""Greedy answers of GLM, ChatGLM-6B and ChatGLM2-6B: text in, the originals' ids out, alone and in a batch."""

import functools

import pytest

import glm
from generation import BeamParams, SamplingParams, fill_blanks
from tests.golden_data import family_folder
from tests.golden_family import checkpoint, rows

GREEDY = {"max_length", "min_length", "do_sample", "eos_token_id"}  # settings of rows that are compared
MEGATRON = "megatron_chinese_MP2"


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """A checkpoint with the tokenizer of its kind."""
    at = tmp_path_factory.mktemp("tokenizers")
    folder = functools.cache(lambda kind: family_folder(kind, at))

    @functools.cache
    def load(family, name, kind, **fields):
        return glm.load(checkpoint(family, name), tokenizer_path=folder(kind), **fields)

    return load


def assert_as_golden(load_of, cases):
    """Of each text with the original's prompt, which may have cut it or put masks elsewhere -> how many those are."""
    compared = 0
    for case in cases:
        settings = case["settings"]
        if not set(settings) <= GREEDY:
            continue
        model, tokenizer = load_of(case)
        length = len(case["input_ids"][0])  # in a batch padded to the longest
        params = SamplingParams(top_k=1, max_gen_length=settings["max_length"] - length,
                                min_gen_length=max(0, settings.get("min_length", 0) - length))
        pad, ends = {tokenizer.commands.get("pad", 3), 3, 0}, model.config.prompt_form.ends
        for text, padded, output in zip(case["texts"], case["input_ids"], case["output_ids"], strict=True):
            result, = fill_blanks(model, tokenizer, [text], params)
            if result.error or not is_padded(result.input_ids, padded, pad) or len(result.blanks) > 1:
                continue
            wanted = cut(output[length:], {tokenizer.command(name) for name in ends})
            assert result.beams[0].ids == [*result.input_ids, *wanted], text
            compared += 1
    return compared


def is_padded(ids, padded, pad):
    """On the left, or behind a context that sop ends."""
    left = padded[-len(ids):] == ids and set(padded[:-len(ids)]) <= pad
    right = padded[:len(ids) - 1] == ids[:-1] and padded[-1] == ids[-1] and set(padded[len(ids) - 1:-1]) <= pad
    return left or right


def cut(ids, ends):
    """Up to the first end."""
    return ids[:next((place for place, token in enumerate(ids, 1) if token in ends), len(ids))]


def test_glm(load):
    assert assert_as_golden(lambda case: load("glm", case["checkpoint"], case["checkpoint"].removeprefix("hf_")),
                            [case for case in rows("glm") if "settings" in case]) >= 4


def test_chatglm(load):
    cases = [case for case in rows("chatglm") if "checkpoint" not in case]
    untied = load("chatglm", "hf_chatglm_untied", "chatglm", tie_word_embeddings=True)  # but for its head hf_chatglm
    assert assert_as_golden(lambda _: untied, cases) >= 6


def test_chatglm2(load):
    cases = [case for case in rows("chatglm2") if "checkpoint" not in case]
    assert assert_as_golden(lambda _: load("chatglm2", "hf_chatglm2", "chatglm2"), cases) >= 4


SINGLE = [case for case in rows("glm", "megatron_generation")
          if len(case["blanks"]) == 1 and "nofix" not in case["tokenizer"]]


@pytest.mark.parametrize("case", SINGLE, ids=lambda case: case["text"][:12])
def test_glm_of_megatron(load, case):
    if case["checkpoint"] == "hf_gpt2":  # the same weights in the original that has the other GELU
        model, tokenizer = load("glm", "hf_gpt2", "gpt2", gelu="tanh")
    else:
        model, tokenizer = load("glm", MEGATRON, "chinese", num_attention_heads=4)
    params = SamplingParams(top_k=1, max_gen_length=case["out_seq_length"])
    (result,), (blank,) = fill_blanks(model, tokenizer, [case["text"]], params), case["blanks"]
    assert result.input_ids == [*case["context_ids"], tokenizer.command("sop")]
    assert result.beams[0].blank_ids == [blank["output"][1:]]


@pytest.mark.parametrize(("family", "name", "kind", "texts"), [
    ("glm", "hf_gpt2", "gpt2", ["The [MASK] of the war", "A long story [gMASK]", "In [sMASK] and [sMASK] they met."]),
    ("chatglm", "hf_chatglm_untied", "chatglm", ["你好", "知道吗？[gMASK]", "the [MASK] of the war"]),
    ("chatglm2", "hf_chatglm2", "chatglm2", ["你们去北京", "Shiva is sculpted and", "a"]),
])
def test_an_answer_does_not_depend_on_the_batch(load, family, name, kind, texts):
    model, tokenizer = load(family, name, kind)
    sampling = SamplingParams(seed=3, temperature=0.9, max_gen_length=9)
    for params in (sampling, BeamParams(num_beams=3, max_gen_length=9)):
        together = fill_blanks(model, tokenizer, texts, params)
        alone = [fill_blanks(model, tokenizer, [text], params)[0] for text in texts]
        assert [result.beams[0].ids for result in together] == [result.beams[0].ids for result in alone]
        assert not any(result.error for result in together)


@pytest.mark.parametrize(("family", "name", "kind", "text", "limit"), [
    ("chatglm", "hf_chatglm_untied", "chatglm", "你好", 0.0013),
    ("chatglm2", "hf_chatglm2", "chatglm2", "你们去北京", 0.00094)])
def test_streamed_layers(load, family, name, kind, text, limit):
    """Two layers of three are in memory at a time."""
    answers = []
    for more in ({}, {"offload_memory_limit": limit}):
        model, tokenizer = load(family, name, kind, **more)
        assert (model.stream is not None) == bool(more)
        answers.append(fill_blanks(model, tokenizer, [text], SamplingParams(top_k=1, max_gen_length=8)))
    assert answers[0] == answers[1]


def test_masks_that_a_family_lacks(load):
    def error(text, *arguments):
        return fill_blanks(*load(*arguments), [text], SamplingParams(top_k=1))[0].error

    assert error("a [MASK] b", "chatglm2", "hf_chatglm2", "chatglm2") == (
        "this model fills no [MASK]; it writes on behind a text")
    assert error("a [sMASK] b", "chatglm", "hf_chatglm_untied", "chatglm") == (
        "this model fills no [sMASK]; it fills [MASK], [gMASK]")


@pytest.mark.parametrize("family", ["glm", "chatglm", "chatglm2"])
def test_beams(load, family):
    """Their originals search as transformers does: another rule of ranking, and of what may end."""
    name, kind, fields = {"glm": ("hf_gpt2", "gpt2", {}), "chatglm2": ("hf_chatglm2", "chatglm2", {}),
                          "chatglm": ("hf_chatglm_untied", "chatglm", {"tie_word_embeddings": True})}[family]
    model, tokenizer = load(family, name, kind, **fields)
    met = 0
    for case in rows(family, "beams"):
        settings, length = case["settings"], len(case["input_ids"][0])
        params = BeamParams(settings["num_beams"], settings.get("length_penalty", 1.0),
                            early_stopping=settings.get("early_stopping", False),
                            max_gen_length=settings["max_length"] - length)
        result, = fill_blanks(model, tokenizer, case["texts"], params)
        if result.input_ids != case["input_ids"][0]:
            continue  # the original's tokenizer has cut off the text's beginning
        for beam, output in zip(result.beams, case["output_ids"], strict=False):
            answer = beam.ids[length:]
            assert answer == output[length:length + len(answer)], (case["texts"], settings)
            met += 1
    assert met >= 4
