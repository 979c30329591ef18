"""Continuous prompts of a training: how they begin, what learns with them, and what is left."""

import json
import random

import pytest
import torch

from tests.golden_finetune import refused, run, tokenizer_flags
from tests.tiny_training import log_of, tiny_glm
from tuning.__main__ import main
from tuning.model import PromptEncoder, begin_as_words, initialise
from tuning.model import load as open_model
from tuning.options import CheckpointOptions

TASK = """\
files: {train: rows.jsonl, dev: rows.jsonl}
text_a: "{text}"
labels: ["no", "yes"]
verbalizers: {"no": "No", "yes": "Yes"}
patterns:
- a: [P, "~{text_a}", P, _]
"""
PROMPT = ["--continuous-prompt", "--num-prompt-tokens", "3", "--prefix-prompt", "2"]
STEPS = ["--train-iters", "2", "--batch-size", "2", "--lr", "1e-2", "--warmup", "0", "--eval-epoch", "0"]


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    return tiny_glm(tmp_path_factory.mktemp("glm"))


@pytest.fixture
def task(tmp_path):
    (tmp_path / "mine.yaml").write_text(TASK, encoding="utf-8")
    rows = [{"text": f"a text of {number} words", "label": ("no", "yes")[number % 2]} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["--task", str(tmp_path / "mine.yaml"), "--cloze-eval", "--seq-length", "32", *tokenizer_flags("bpe")]


def begun(model, verbalizers, seed=1):
    encoder = initialise(PromptEncoder(32, 6, "none"), seed)
    begin_as_words(encoder, model, verbalizers, seed)
    return encoder.spell_embeddings.weight.detach()


def test_a_prompt_begins_between_words_and_verbalizers(glm):
    """Each vector lies on the line from a word's to a verbalizer's; the share and the words are drawn by the seed."""
    model = open_model(CheckpointOptions(glm)).model
    words, verbalizers = model.transformer.word_embeddings.weight.detach(), [5, 9]
    found = begun(model, verbalizers)
    for vector in found:
        ends = words[verbalizers]
        directions = words[None] - ends[:, None]  # (verbalizers, words, h)
        shares = ((vector - ends)[:, None] * directions).sum(-1) / directions.square().sum(-1).clamp(min=1e-9)
        distances = (ends[:, None] + shares[..., None] * directions - vector).norm(dim=-1)
        near = distances.argmin()
        assert distances.flatten()[near] < 1e-5 and 0 <= shares.flatten()[near] <= 1
    assert torch.equal(begun(model, verbalizers), found) and not torch.equal(begun(model, verbalizers, 2), found)


def test_a_prompt_is_drawn_in_the_originals_order(glm):
    """For each vector a word among the first 5,000, a verbalizer's token, and the word's share in the mixture."""
    model = open_model(CheckpointOptions(glm)).model
    words, draw = model.transformer.word_embeddings.weight.detach(), random.Random(3)
    for vector in begun(model, [5, 9, 7], seed=3):
        word, token, share = draw.randrange(len(words)), draw.choice([5, 9, 7]), draw.random()
        assert torch.allclose(vector, share * words[word] + (1 - share) * words[token], atol=1e-6)


def test_without_verbalizers_a_prompt_begins_as_words(glm):
    model = open_model(CheckpointOptions(glm)).model
    words = model.transformer.word_embeddings.weight
    assert all((words == vector).all(-1).any() for vector in begun(model, []))


@pytest.mark.parametrize("kind", ["lstm", "mlp", "none"])
def test_a_prompt_alone_learns_and_is_used_again(kind, glm, task, tmp_path, capsys):
    flags = [*task, *PROMPT, "--prompt-func", kind, "--load", str(glm)]
    assert main(["train", *flags, "--prompt-init", "--freeze-transformer", "--save", str(tmp_path / "run"),
                 *STEPS]) == 0
    log = log_of(tmp_path / "run")
    learnt = json.loads((tmp_path / "run" / "parameters.json").read_text(encoding="utf-8"))
    assert all(name.startswith("prompt_spell.") for names in learnt.values() for name in names)
    assert main(["train", *flags, "--freeze-transformer", "--save", str(tmp_path / "other"), *STEPS]) == 0
    assert log_of(tmp_path / "other")[0]["loss"] != log[0]["loss"]  # begun elsewhere
    capsys.readouterr()
    (found,) = run("evaluate", *flags, "--prompt-encoder", tmp_path / "run" / "prompt_encoder.pt", "--split", "train",
                   capsys=capsys)
    assert len(found["rows"]) > 1 and "accuracy" in found["metrics"]


@pytest.mark.parametrize(("more", "message"), [
    (["--prompt-init"], "--continuous-prompt --num-prompt-tokens N"),
    (["--freeze-transformer", "--tune-prefix-layers", "9"], "--tune-prefix-layers 9: the model has 2 layers"),
    ([*PROMPT, "--prompt-init", "--prompt-encoder", "FILE"], "leave --prompt-encoder away")])
def test_what_cannot_begin_is_refused(more, message, glm, task, tmp_path, capsys):
    file = tmp_path / "encoder.pt"
    torch.save({"prompt_spell.spell_embeddings.weight": torch.zeros(5, 32)}, file)
    words = [str(file) if word == "FILE" else word for word in more]
    flags = [*task, "--load", str(glm), "--save", str(tmp_path / "run"), *STEPS]
    assert message in refused("train", *flags, *words, capsys=capsys)
    assert main(["train", *flags]) == 0  # the folder is not spoilt
