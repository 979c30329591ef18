"""NaN and infinity in a model stop with the layer, the rank and the weight; generation stops with the row."""

import pytest
import torch

import generation
from evaluation.requests import GenerateRequest, ScoreRequest
from evaluation.scorer import Scorer, generation_input
from generation import BeamParams, SamplingParams
from generation.batch import generate
from glm.config import ModelConfig
from glm.diagnose import check_weights, diagnose
from glm.linear import pack_linears
from glm.model import GLM
from glm.spec import is_packed
from glm.tokenizers.icetk import IcetkTokenizer
from quantization.functional import Scheme, quantize
from runtime import parallel
from runtime.errors import NonFinite, UserError
from tests.fake_model import FakeModel
from tests.golden_data import TOKENIZER, split_state
from tests.parallel_helper import run_ranks

TINY = ModelConfig(num_layers=4, hidden_size=32, num_attention_heads=4, inner_hidden_size=48, vocab_size=96,
                   max_sequence_length=64, num_image_tokens=0)
NAN, INFINITY = float("nan"), float("inf")
TOKENS = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 0]])
POSITIONS = torch.arange(5).expand(2, 5)


def healthy(dtype=torch.float32, **changes) -> GLM:
    torch.manual_seed(0)
    return GLM(TINY.override(**changes), dtype=dtype, skip_init=False).requires_grad_(False)


def poisoned(name, value=NAN, row=17, **changes) -> GLM:
    model = healthy(**changes)
    model.get_parameter("transformer." + name)[row] = value
    return model


@pytest.mark.parametrize("name, where", [
    ("layers.2.attention.dense.weight", "layer 2 (attention)"),
    ("layers.2.attention.query_key_value.weight", "layer 2 (attention)"),
    ("layers.0.mlp.dense_h_to_4h.bias", "layer 0 (MLP)"),
    ("layers.3.post_attention_layernorm.weight", "layer 3 (MLP)"),
    ("layers.1.mlp.dense_4h_to_h.bias", "layer 1 (its sum)"),
    ("final_layernorm.bias", "the final layer norm"),
])
@pytest.mark.parametrize("value", [NAN, INFINITY, -INFINITY])
def test_the_layer_and_the_weight_are_named(name, where, value):
    assert diagnose(poisoned(name, value), TOKENS, POSITIONS, None) == (
        f"{where} on rank 0: NaN or infinity in transformer.{name}; the checkpoint is damaged")


def test_a_damaged_embedding_is_found_where_it_enters():
    weight = "word_embeddings.weight"
    read = diagnose(poisoned(weight, row=7), TOKENS, POSITIONS, None)
    assert read.startswith("the embedding on rank 0: NaN or infinity in transformer.word_embeddings.weight;")
    assert diagnose(poisoned(weight, row=90), TOKENS, POSITIONS, None).startswith("the logits on rank 0: NaN or inf")


def test_overflow_is_told_from_damage():
    model = healthy(torch.float16)
    model.get_parameter("transformer.layers.1.mlp.dense_4h_to_h.weight").fill_(60000.0)
    model.get_parameter("transformer.layers.1.mlp.dense_h_to_4h.bias").fill_(100.0)
    assert diagnose(model, TOKENS, POSITIONS, None) == (
        "layer 1 (MLP) on rank 0: its weights are numbers, but float16 overflows; use a precision with more room "
        "(--bf16, --fp32)")


@pytest.mark.parametrize("bits, group_size", [(8, None), (8, 16), (4, None), (4, 16)])
def test_of_a_quantised_model_as_of_any_other(bits, group_size):
    """Its weights are packed: nothing can be multiplied with them as they lie there. Damage shows in the scales."""
    model, state = healthy(), {}
    names = [name for name, _ in model.named_parameters() if is_packed(name)]
    for name in names:
        state[name], state[name + "_scale"] = quantize(model.get_parameter(name).detach(), bits, group_size)
    pack_linears(model, dict.fromkeys(names, Scheme(bits, group_size)))
    model.load_state_dict(state, strict=False)
    for name in names:
        module, wanted = model.get_submodule(name.removesuffix(".weight")), healthy()
        module.bias.data.copy_(wanted.get_parameter(name.removesuffix("weight") + "bias"))
    assert diagnose(model, TOKENS, POSITIONS, None).startswith("run once more, it gave numbers")
    model.get_parameter("transformer.layers.2.mlp.dense_4h_to_h.weight_scale").data[17] = NAN
    assert diagnose(model, TOKENS, POSITIONS, None) == (
        "layer 2 (MLP) on rank 0: NaN or infinity in transformer.layers.2.mlp.dense_4h_to_h.weight_scale; the "
        "checkpoint is damaged")


def test_a_healthy_model_and_no_traces_left():
    model = healthy()
    before = model.logits(TOKENS, POSITIONS)
    assert diagnose(model, TOKENS, POSITIONS, None).startswith("run once more, it gave numbers")
    assert torch.equal(model.logits(TOKENS, POSITIONS), before)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("row", [0, 8, 16], ids=["query", "key", "value"])
def test_damaged_weights_are_found_before_they_are_used(row):
    """Attention may lose a NaN of a query or key in its softmax: then logits are numbers, and wrong."""
    check_weights(healthy())
    name = "layers.2.attention.query_key_value.weight"
    with pytest.raises(UserError, match=f"^transformer.{name} holds NaN or infinity; the checkpoint is damaged$"):
        check_weights(poisoned(name, row=row))
    with pytest.raises(UserError, match=f"^data/glm: transformer.{name} holds NaN"):
        check_weights(poisoned(name, row=row), "data/glm")


def on_two_ranks(state, poison):
    """What both of two tensor-parallel ranks say, with NaN in rank 1's part of some weights."""
    parallel.start(2)
    model = GLM(TINY, dtype=torch.float32)
    part = split_state(state, 2)[parallel.rank()]
    for rank, name in poison:
        if rank == parallel.rank():
            part["transformer." + name][17] = NAN
    model.load_state_dict(part)
    model.requires_grad_(False)
    said = [diagnose(model, TOKENS, POSITIONS, None)]
    with pytest.raises(UserError, match="holds NaN or infinity"):
        check_weights(model)
    try:
        generate(model, [[5, 6, 7]], SamplingParams(top_k=1), end_tokens=[1], limits=[3])
    except NonFinite as error:
        said.append(error.rows)
    return said


@pytest.mark.parametrize("poison, message", [
    ([(1, "layers.2.attention.dense.weight")],
     "layer 2 (attention) on tensor-parallel rank 1 of 2: NaN or infinity in "
     "transformer.layers.2.attention.dense.weight; the checkpoint is damaged"),
    ([(1, "layers.3.mlp.dense_h_to_4h.weight")], "layer 3 (MLP) on tensor-parallel rank 1 of 2: NaN"),
    ([(0, "layers.1.attention.query_key_value.weight"), (1, "layers.1.mlp.dense_4h_to_h.weight")],
     "layer 1 (attention) on all 2 tensor-parallel ranks: NaN"),
    ([(1, "word_embeddings.weight")], "the logits on tensor-parallel rank 1 of 2: NaN"),
])
def test_the_rank_is_named_on_all_ranks(tmp_path, poison, message):
    for said, rows in run_ranks(on_two_ranks, 2, tmp_path, healthy().state_dict(), poison):
        assert said.startswith(message) and rows == [0]


def test_the_scorer_names_row_layer_and_rank():
    model = poisoned("word_embeddings.weight", row=9)
    model.head = healthy().head
    good, bad = (ScoreRequest((5, token, 7), ((8,), (6, 5)), 2, 3, 1) for token in (6, 9))
    with pytest.raises(NonFinite, match="^the embedding on rank 0: NaN or infinity in transformer.word_emb") as error:
        Scorer(model).answer([good, bad, good, bad])
    assert error.value.rows == [1, 3]
    good, bad = (GenerateRequest((5, token, 7), SamplingParams(top_k=1), 4, (1,)) for token in (6, 9))
    with pytest.raises(NonFinite, match="^the embedding on rank 0: NaN or infinity in transformer.word_emb") as error:
        Scorer(model).answer([good, good, bad])
    assert error.value.rows == [2]


# Generation

STRATEGIES = [SamplingParams(top_k=1), SamplingParams(top_p=0.8), SamplingParams(top_k=5), BeamParams(num_beams=3)]
NAMES = ["greedy", "nucleus", "top-k", "beams"]


@pytest.mark.parametrize("params", STRATEGIES, ids=NAMES)
@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_generation_names_the_rows(params, value):
    """Rows 1 and 3 read token 9, whose embedding is no number; the others do not feel it."""
    model = poisoned("word_embeddings.weight", value, row=9)
    contexts = [[5, 6, 7], [5, 9, 7], [8, 7], [9, 6, 9, 7]]
    model.head = lambda hidden: torch.nn.functional.linear(hidden, healthy().transformer.word_embeddings.weight)
    with pytest.raises(NonFinite) as error:
        generate(model, contexts, params, end_tokens=[1], limits=[4] * 4, seeds=[(1, row) for row in range(4)])
    assert error.value.rows == [1, 3] and error.value.generated == [[], []]


class FailsLater(FakeModel):
    """Its logits are no numbers once it has seen token 33."""

    def _logits(self, seen):
        logits = super()._logits(seen)
        return logits * NAN if 33 in seen[:, 0].tolist() else logits


@pytest.mark.parametrize("params", [SamplingParams(top_k=1), BeamParams(num_beams=1)], ids=["greedy", "one beam"])
def test_what_had_been_generated_is_told(params):
    model = FailsLater(script=lambda ids: [20, 21, 33, 22][len(ids) - 2] if ids[0] == 6 else 20)
    with pytest.raises(NonFinite) as error:
        generate(model, [[5, 7], [6, 7]], params, end_tokens=[1], limits=[4, 4])
    assert error.value.rows == [1] and error.value.generated == [[20, 21, 33]]


@pytest.mark.parametrize("params", [SamplingParams(top_k=1), BeamParams(num_beams=1)], ids=["greedy", "one beam"])
def test_a_row_that_is_complete_cannot_fail(params):
    """A short answer stays in the batch for a while; nobody looks at what the model makes of it then."""
    model = FailsLater(script=lambda ids: 33 if ids[0] == 6 else 20)
    answers = generate(model, [[5, 7], [5, 8], [6, 7]], params, end_tokens=[1], limits=[4, 4, 1])
    assert answers[2][0][0] == [33]


def test_the_input_of_a_generation_that_failed():
    model = healthy(position_encoding_2d=True)
    request = GenerateRequest((5, 6, 7, 8), SamplingParams(top_k=1), 4, (1,), shared_position=2)
    tokens, positions, blocked = generation_input(model, request, [9, 10])
    assert tokens.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert positions.tolist() == [[[0, 1, 2, 2, 2, 2], [0, 0, 0, 1, 2, 3]]]
    assert (~blocked[0]).int().tolist() == [[1, 1, 1, 0, 0, 0]] * 3 + [
        [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]
    assert model.hidden_states(tokens, positions, blocked).shape == (1, 6, 32)


def test_other_prompts_are_answered():
    """fill_blanks: a prompt for which the numbers fail has an error of its own."""
    tokenizer = IcetkTokenizer(TOKENIZER / "ice_text.model")
    bad = tokenizer.encode("bad")[0]

    class Model(FakeModel):
        def _logits(self, seen):
            logits = super()._logits(seen)
            return logits * NAN if bad in seen[:, 0].tolist() else logits

    model = Model(vocab_size=23552, script=lambda ids: tokenizer.command("eop"))
    results = generation.fill_blanks(model, tokenizer, ["good [MASK]", "bad [MASK]", "fine [MASK]"],
                                     SamplingParams(top_k=1))
    assert [result.finish_reason for result in results] == ["stop", "error", "stop"]
    assert results[1].error.startswith("the model's logits hold NaN or infinity")
