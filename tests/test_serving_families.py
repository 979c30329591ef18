"""Over HTTP with other families: what is read from left to right stands in the family's own form."""

import pytest
import torch

import glm
from evaluation.harness_answers import Answers
from evaluation.harness_requests import frame_of
from tests.golden_data import family_folder
from tests.golden_family import causal, checkpoint
from tests.serving_helper import running

MODELS = {"glm": ("hf_gpt2", "gpt2", ["ENC", "[gMASK]", "sop"]),
          "chatglm": ("hf_chatglm_untied", "chatglm", ["[gMASK]", "sop"]),
          "chatglm2": ("hf_chatglm2", "chatglm2", ["[gMASK]", "sop"])}
TEXT = "A house stands by the river, and the river"


@pytest.fixture(scope="module", params=MODELS)
def family(request, tmp_path_factory):
    """(server, model, tokenizer, names of what stands in front of a text)."""
    name, kind, before = MODELS[request.param]
    weights, folder = checkpoint(request.param, name), family_folder(kind, tmp_path_factory.mktemp(kind))
    with running("--load", str(weights), "--tokenizer-path", str(folder)) as server:
        yield server, *glm.load(weights, tokenizer_path=folder), before


def log_probs(model, tokenizer, before, ids):
    """Of the ids from the second on. GLM and ChatGLM-6B read the text in the blank of [gMASK], whose position all its
    tokens have; ChatGLM2-6B counts on."""
    tokens = [*map(tokenizer.command, before), *ids]
    mask, s = len(before) - 2, len(tokens)
    positions, context = torch.arange(s)[None], 0
    if not model.config.prompt_form.is_causal:
        places = (torch.arange(s) - mask).clamp(min=0)
        positions, context = torch.stack((positions[0].clamp(max=mask), places))[None], mask + 1
    logits = model.logits(torch.tensor([tokens]), positions, causal([context], s))[0].log_softmax(-1)
    return [logits[place - 1, tokens[place]].item() for place in range(len(before) + 1, s)]


def scored(server, prompt, **more):
    choice, = server.post("/v1/completions", prompt=prompt, echo=True, logprobs=1, temperature=0, **more)["choices"]
    return choice["logprobs"]["token_logprobs"]


def test_log_probabilities_of_a_prompt(family):
    server, model, tokenizer, before = family
    ids = tokenizer.encode(TEXT)
    first, *others = scored(server, TEXT, max_tokens=0)
    assert first is None and others == pytest.approx(log_probs(model, tokenizer, before, ids), abs=1e-4)
    brings_sop = scored(server, [tokenizer.command("sop"), *ids], max_tokens=0)  # is not given a second one
    assert brings_sop[2:] == pytest.approx(others, abs=1e-4)


def test_what_is_generated_is_scored_as_it_is_read(family):
    """Token by token behind the prompt, and all at once as a prompt of ids."""
    server, model, tokenizer, _ = family
    found = scored(server, TEXT, max_tokens=6, min_tokens=6)
    choice, = server.post("/v1/completions", prompt=TEXT, unidirectional=True, temperature=0, max_tokens=6,
                          min_tokens=6, logprobs=0)["choices"]
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(found[-6:], abs=1e-4)
    engine = Answers(model, tokenizer, frame_of(model.config.prompt_form, tokenizer, unidirectional=True))
    options = {"max_gen_toks": 6, "min_new_tokens": 6}
    assert engine.generate([(TEXT, options)]) == [choice["text"]]


def test_a_vocabulary_without_gmask_writes_on_behind_its_own_mask(tmp_path):
    """BERT's, which some models of GLM have."""
    folder, weights = family_folder("bert", tmp_path), checkpoint("glm", "megatron_chinese_MP2")
    heads = {"num_attention_heads": 4}
    model, tokenizer = glm.load(weights, tokenizer_path=folder, **heads)
    with running("--load", str(weights), "--tokenizer-path", str(folder), "--num-attention-heads", "4") as server:
        asked = {"prompt": TEXT, "temperature": 0, "max_tokens": 5}
        behind, inside = (server.post("/v1/completions", **asked | {"prompt": prompt})["choices"][0]["text"]
                          for prompt in (TEXT, f"{TEXT} [MASK]"))
        assert behind.strip() == inside.strip()
        ids = tokenizer.encode(TEXT)
        assert scored(server, TEXT, max_tokens=0)[1:] == pytest.approx(
            log_probs(model, tokenizer, ["ENC", "[MASK]", "sop"], ids), abs=1e-4)
