"""LAMBADA, WikiText and multiple choice as the GLM repository evaluates them."""

import functools
import json
from pathlib import Path

import pytest

import glm
from evaluation.config import LanguageModelTaskConfig, MultiChoiceTaskConfig, OtherTaskConfig
from evaluation.data import Example, to_example
from evaluation.metrics import evaluate
from evaluation.scorer import Scorer
from evaluation.tasks import MultiChoiceTask
from runtime.errors import UserError
from tasks.glm.scored import LAMBADA, Text, as_written
from tests.golden_data import family_folder
from tests.golden_family import checkpoint
from tests.golden_finetune import KIT, lines

needs_kit = pytest.mark.skipif(not (KIT / "checkpoints" / "glm-tiny").is_dir(), reason="only the whole kit has a model")
DATA = KIT / "data" / "evaluation"


def golden(*tasks):
    return [case for case in lines("expected/evaluation/language_model.jsonl") if case["task"] in tasks]


@functools.cache
def tiny():
    return glm.load(KIT / "checkpoints" / "glm-tiny", tokenizer_path=KIT / "tokenizer_bpe", num_attention_heads=4)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return glm.load(checkpoint("glm", "hf_gpt2"), tokenizer_path=family_folder("gpt2", tmp_path_factory.mktemp("kind")))


def settings_of(case, model):
    return {"name": "task", "path": "data", "form": model.config.prompt_form, "unidirectional": case["unidirectional"],
            "max_seq_length": case["seq_length"], "use_task_mask": case.get("tokenizer") == "task"}


def passage(index, text):
    before, _, word = text.rpartition(" ")
    return Example(index, [], [], [], None, {"inputs_pretokenized": before, "targets_pretokenized": [word]})


def fed(request):
    return [*request.context, request.lead, *request.continuations[0][:-1]]


@needs_kit
@pytest.mark.parametrize("case", golden("wikitext", "language_model"), ids=lambda case: f"{case['task']}")
def test_losses_of_windows(case):
    model, tokenizer = tiny()
    is_wikitext = case["task"] == "wikitext"
    options = {"wikitext": True} if is_wikitext else {"lines": True}
    task = Text(LanguageModelTaskConfig(metrics=["PPL", "PPL_token"], generation_length=case["overlapping_eval"],
                                        options=options, **settings_of(case, model)), tokenizer)
    examples = task.examples(DATA / ("wikitext.test.tokens" if is_wikitext else "wikibook.test.txt"))
    requests = [task.request(example) for example in examples]
    items = task.items(examples, requests, Scorer(model).answer(requests))
    assert [item["loss"] for item in items] == pytest.approx(case["per_window"], abs=1e-3)
    assert fed(requests[1]) == case["first"]["text"][:len(fed(requests[1]))]
    figures = {name: evaluate(metric, items) for name, metric in task.metrics(items).items()}
    assert figures == pytest.approx({"PPL": case["adjusted_ppl"], "PPL_token": case["ppl"]}, rel=1e-4)


@needs_kit
@pytest.mark.parametrize("case", golden("lambda"), ids=lambda case: f"{case['tokenizer']}")
def test_last_words(case):
    model, tokenizer = tiny()
    task = LAMBADA(OtherTaskConfig(metrics=["Accuracy"], **settings_of(case, model)), tokenizer)
    texts = [json.loads(line)["text"] for line in (DATA / "lambada_test.jsonl").read_text().splitlines()]
    examples = [passage(index, text) for index, text in enumerate(texts) if str(index) not in case["failed"]]
    requests = [task.request(example) for example in examples]
    items = task.items(examples, requests, Scorer(model).answer(requests))
    assert [item["prediction"] for item in items] == case["per_window"]
    assert fed(requests[1]) == case["first"]["text"][:len(fed(requests[1]))]


@needs_kit
@pytest.mark.parametrize("case", golden("multichoice"), ids=lambda case: f"unidirectional={case['unidirectional']}")
def test_choices_and_the_beginning_that_is_cut(case):
    model, tokenizer = tiny()
    task = MultiChoiceTask(MultiChoiceTaskConfig(**settings_of(case, model) | {
        "use_task_mask": case["unidirectional"]}), tokenizer)
    rows = [json.loads(line) for line in (DATA / "multichoice.jsonl").read_text(encoding="utf-8").splitlines()]
    for index, row in enumerate(rows):
        if case["unidirectional"] and "[MASK]" in row["inputs_pretokenized"]:
            continue  # refused here
        request = task.request(to_example(row, index, tokenizer, task.contexts.encode))
        assert Scorer(model).choice_log_probs([request])[0] == pytest.approx(case["scores"][str(index)], abs=1e-3)


def test_wikitext_as_it_was_written():
    text = " = Kit = \n It is 1 @,@ 000 @.@ 5 m ( about ) long ; so , mid @-@ day . \n Low : it 's N times\n"
    assert as_written(text) == " = Kit =\nIt is 1,000.5 m (about) long; so, mid-day.\nLow: it's 1 times\n"


def test_a_greedy_last_word_is_right(small):
    model, tokenizer = small
    for unidirectional in (False, True):
        config = OtherTaskConfig(name="l", path="p", metrics=["Accuracy"], form=model.config.prompt_form,
                                 use_task_mask=True, unidirectional=unidirectional, max_seq_length=64)
        task = LAMBADA(config, tokenizer)
        example = passage(0, "They walked to the house")
        request = task.request(example)
        (answer,) = Scorer(model).answer([request])
        assert task.item(example, request, answer)["prediction"] == int(answer["is_greedy"][0])
        assert request.continuations == (tuple(tokenizer.encode(" house")),)
        ids = tokenizer.encode("They walked to the")
        assert request.opened == (len(ids) - 1 if unidirectional else 0)


def test_another_family_is_refused():
    config = OtherTaskConfig(name="l", path="p", source=Path("l.yaml"))
    with pytest.raises(UserError, match=r"l\.yaml: this is GLM's own evaluation"):
        LAMBADA(config, None).request(passage(0, "a b"))
    assert LAMBADA.fault({"inputs_pretokenized": "a", "targets_pretokenized": []}).startswith("field targets_")
