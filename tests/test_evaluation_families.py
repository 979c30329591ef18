"""Tasks on GLM, ChatGLM-6B and ChatGLM2-6B: what stands around a text, and the originals' scores."""

import functools

import pytest

import glm
from evaluation.config import GenerationTaskConfig, LanguageModelTaskConfig, MultiChoiceTaskConfig
from evaluation.data import Example, to_example
from evaluation.requests import ScoreRequest
from evaluation.scorer import Scorer
from evaluation.tasks import GenerationTask, LanguageModelTask, MultiChoiceTask
from generation import BeamParams, SamplingParams, fill_blanks
from tests.golden_data import family_folder
from tests.golden_family import checkpoint, rows

TASKS = {"mul": (MultiChoiceTask, MultiChoiceTaskConfig), "gen": (GenerationTask, GenerationTaskConfig),
         "lm": (LanguageModelTask, LanguageModelTaskConfig)}
MODELS = {"glm": ("hf_gpt2", "gpt2"), "chatglm": ("hf_chatglm_untied", "chatglm"), "chatglm2": ("hf_chatglm2",) * 2}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    at = tmp_path_factory.mktemp("tokenizers")
    folder = functools.cache(lambda kind: family_folder(kind, at))

    @functools.cache
    def load(family, name=None):
        name, kind = (MODELS[family][0], MODELS[family][1].removeprefix("hf_")) if name is None else (
            name, name.removeprefix("hf_"))
        return glm.load(checkpoint(family, name), tokenizer_path=folder(kind))

    return load


def task_of(load, family, kind, name=None, **settings):
    model, tokenizer = load(family, name)
    maker, config = TASKS[kind]
    return maker(config(name="task", path="data", form=model.config.prompt_form, **settings), tokenizer)


def request_of(task, text, choices=("a", "b c"), targets=("a",)):
    row = {"inputs_pretokenized": text, "choices_pretokenized": list(choices), "label": 0,
           "targets_pretokenized": list(targets)}
    return task.request(to_example(row, 0, task.tokenizer, task.contexts.encode))


def ids(tokenizer, *parts):
    """Of texts and of the names of commands, which stand in lists."""
    return tuple(token for part in parts for token in (
        [tokenizer.command(name) for name in part] if isinstance(part, list) else tokenizer.encode(part)))


# Golden: text in, the original's log-probabilities out


CHOICES = [case for case in rows("glm", "multiple_choice")
           if "error" not in case and checkpoint("glm", case["checkpoint"]).is_dir()]


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: f"{case['checkpoint']}-{case['texts'][0][:12]}")
def test_glm_s_multiple_choice(load, case):
    task = task_of(load, "glm", "mul", case["checkpoint"])
    requests = [request_of(task, text, choices)
                for text, choices in zip(case["texts"], case["choices"], strict=True)]
    for request, row, choices in zip(requests, case["input_ids"], case["choice_ids"], strict=True):
        assert list(request.context) == row[:len(request.context)]
        assert [list(ids) for ids in request.continuations] == choices
    found = Scorer(load("glm", case["checkpoint"])[0]).choice_log_probs(requests)
    for log_probs, expected in zip(found, case["log_probs"], strict=True):
        assert log_probs == pytest.approx(expected, abs=1e-3)


TRAINING = [case for case in rows("glm", "training") if checkpoint("glm", case["checkpoint"]).is_dir()]


@pytest.mark.parametrize("case", TRAINING, ids=lambda case: f"{case['checkpoint']}-{case['loss']:.4f}")
def test_glm_s_losses_of_targets(load, case):
    """The mean over a batch's tokens, end token included; contexts are the original's, which cut and padded them."""
    model, tokenizer = load("glm", case["checkpoint"])
    requests, sop = [], tokenizer.command("sop")
    masks = {tokenizer.commands.get(name) for name in ("[MASK]", "[sMASK]", "[gMASK]")}
    pad, eos = tokenizer.commands.get("pad"), tokenizer.command("eos")
    for row, labels in zip(case["input_ids"], case["labels"], strict=True):
        context = row[:row.index(sop)]
        while context[-1] == pad and context[-2:-1] in ([pad], [eos]):
            context.pop()
        place = next(index for index, token in enumerate(context) if token in masks)
        requests.append(ScoreRequest(tuple(context), (tuple(token for token in labels if token >= 0),), sop, place, 0))
    losses = Scorer(model).window_losses(requests)
    tokens = sum(len(request.continuations[0]) for request in requests)
    assert sum(losses) / tokens == pytest.approx(case["loss"], rel=1e-5)


# What stands around a text


def test_glm_s_contexts(load):
    tokenizer = load("glm")[1]
    of = functools.partial(ids, tokenizer)
    request = request_of(task_of(load, "glm", "mul"), "It is")
    assert request.context == of(["ENC"], "It is", ["[MASK]", "eos"])
    assert (request.lead, request.first_position, request.advance) == (of(["sop"])[0], len(request.context) - 2, 0)
    request = request_of(task_of(load, "glm", "mul", use_task_mask=True, use_multitask_encoding=True), "It is")
    assert request.context == of(["ENC"], "It is", ["[gMASK]", "eos"])
    assert (request.first_position, request.advance) == (len(request.context) - 2, 0)
    request = request_of(task_of(load, "glm", "gen", max_gen_length=5), "It [MASK] so")
    assert request.context == of(["ENC"], "It", ["[MASK]"], "so", ["eos", "sop"])
    assert request.shared_position == 1 + len(tokenizer.encode("It"))
    assert request.end_tokens == of(["eop"])


def test_a_unidirectional_text_of_glm_stands_in_the_blank(load):
    of = functools.partial(ids, load("glm")[1])
    asked = {"use_task_mask": True, "unidirectional": True}
    request = request_of(task_of(load, "glm", "mul", **asked), "It is")
    text = of("It is")
    assert (*request.context, request.lead) == of(["ENC", "[gMASK]", "sop"], "It is")
    assert (request.first_position, request.advance, request.opened) == (1, 0, len(text))
    request = request_of(task_of(load, "glm", "gen", **asked), "It is")
    assert request.context == of(["ENC", "[gMASK]", "sop"], "It is")
    assert (request.shared_position, request.opened, request.unidirectional) == (1, len(text), False)


def test_contexts_of_chat_models(load):
    of = functools.partial(ids, load("chatglm")[1])
    for settings in ({}, {"use_task_mask": True}):
        request = request_of(task_of(load, "chatglm", "mul", **settings), "你好")
        assert (*request.context, request.lead) == of("你好", ["[gMASK]", "sop"])
        assert (request.first_position, request.advance) == (len(request.context) - 1, 0)
        of2 = functools.partial(ids, load("chatglm2")[1])
        request = request_of(task_of(load, "chatglm2", "mul", **settings), "你好")
        assert (*request.context, request.lead) == of2(["[gMASK]", "sop"], "你好")
        assert request.causal and (request.first_position, request.advance) == (len(request.context), 1)
    assert request_of(task_of(load, "chatglm2", "gen"), "a").end_tokens == of2(["eos"])


@pytest.mark.parametrize("family", MODELS)
def test_windows_of_a_text(load, family):
    task = task_of(load, family, "lm", use_task_mask=True, max_seq_length=12, generation_length=4)
    tokens = list(range(20, 40))
    windows = task.windows(tokens)
    assert [token for _, scored in windows for token in scored] == tokens
    requests = [task.request(Example(index, prompt, [], [scored], None, {}))
                for index, (prompt, scored) in enumerate(windows)]
    assert max(request.length for request in requests) <= 12 + (family == "chatglm2")
    assert all(value < 0 for row in Scorer(load(family)[0]).choice_log_probs(requests) for value in row)


# Decoding is what the families' own filling is


@pytest.mark.parametrize(("family", "text"), [("glm", "The [MASK] of the war"), ("chatglm", "你们去[gMASK]"),
                                              ("chatglm2", "你们去北京")])
def test_answers_are_those_of_fill_blanks(load, family, text):
    model, tokenizer = load(family)
    (result,) = fill_blanks(model, tokenizer, [text], SamplingParams(top_k=1, max_gen_length=6))
    request = request_of(task_of(load, family, "gen", use_task_mask=True, max_gen_length=6), text)
    assert list(request.context) == result.input_ids
    (answer,) = Scorer(model).generate([request])
    ends = set(request.end_tokens)
    assert answer["beams"][0] == [token for token in result.beams[0].ids[len(result.input_ids):] if token not in ends]


@pytest.mark.parametrize("family", MODELS)
def test_a_unidirectional_answer_is_the_likeliest_continuation(load, family):
    """What is decoded after a text is what scoring takes for likelier than any other next token."""
    model, _ = load(family)
    request = request_of(task_of(load, family, "gen", use_task_mask=True, unidirectional=True, max_gen_length=1), "a b")
    shared = request.shared_position
    first, advance = (len(request.context) - 1, 1) if shared is None else (shared, 0)
    everything = tuple((token,) for token in range(model.config.vocab_size))
    (scores,) = Scorer(model).choice_log_probs([ScoreRequest(
        request.context[:-1], everything, request.context[-1], first, advance, request.unidirectional, request.opened)])
    likeliest = max(range(len(scores)), key=scores.__getitem__)
    (answer,) = Scorer(model).generate([request])
    assert answer["beams"] == [[likeliest] if likeliest not in request.end_tokens else []]


@pytest.mark.parametrize(("family", "text"), [("glm", "A [MASK] story"), ("chatglm", "你好[gMASK]")])
def test_beams_are_those_of_fill_blanks(load, family, text):
    model, tokenizer = load(family)
    params = BeamParams(num_beams=3, no_repeat_ngram_size=0, max_gen_length=5)
    (result,) = fill_blanks(model, tokenizer, [text], params)
    task = task_of(load, family, "gen", use_task_mask=True, max_gen_length=5, num_beams=3, no_repeat_ngram_size=0,
                   sampling_strategy="BeamSearchStrategy")
    (answer,) = Scorer(model).generate([request_of(task, text)])
    assert answer["beams"] == [list(beam.blank_ids[0]) for beam in result.beams]
