"""The logits of GLM, ChatGLM-6B and ChatGLM2-6B against those of the originals, whole, in parts and from a cache."""

import functools
import json
import shutil
from functools import partial

import numpy
import pytest
import torch

from glm import spec
from glm.adapters.files import put_on, read_adapter
from glm.checkpoint import read_config
from glm.families import FAMILIES
from glm.linear import linears
from kernels.packing import dequantize
from quantization.functional import quantize
from runtime import parallel
from runtime.errors import UserError
from tests.golden_family import (
    cases,
    chatglm2_inputs,
    chatglm_inputs,
    checkpoint,
    descriptions,
    glm_inputs,
    load,
)
from tests.parallel_helper import run_ranks

TOLERANCE = 3e-4  # the wrong GELU is off by 1e-3 at least, as are frequencies that are not rounded in ChatGLM-6B
GLM, MEGATRON, CHATGLM, CHATGLM2 = cases("glm"), cases("glm", "megatron_logits"), cases("chatglm"), cases("chatglm2")
UNTIED = "hf_chatglm_untied"  # beside its head it is hf_chatglm
PREFIXED = [name for name in (*CHATGLM, *CHATGLM2) if name.startswith("prefix")]  # with a trained prefix


@functools.cache
def glm_model(name):
    return load(checkpoint("glm", f"hf_{name}"))


def megatron_model(**fields):
    """Of two parts; nothing in its files says how many heads it has."""
    return load(checkpoint("glm", "megatron_chinese_MP2"), num_attention_heads=4, **fields)


def assert_golden(found, arrays, valid=None):
    """valid: (b, s) bool, the places that mean something; None: all."""
    valid = torch.ones(found.shape[:2], dtype=torch.bool) if valid is None else valid
    rows = [tuple(row) for row in arrays["rows"].tolist()]
    wanted = [number for number, row in enumerate(rows) if valid[row]]
    for number in wanted:
        numpy.testing.assert_allclose(found[rows[number]], arrays["logits"][number], atol=TOLERANCE, rtol=0)
    normaliser = found.double().logsumexp(-1)[valid].numpy()
    numpy.testing.assert_allclose(normaliser, arrays["logsumexp"][valid.numpy()], atol=TOLERANCE, rtol=0)
    assert wanted


@pytest.mark.parametrize("name", GLM)
def test_glm(name):
    kind = name.partition("/")[0]
    assert_golden(glm_model(kind).logits(*glm_inputs(GLM[name])), GLM[name])


@pytest.mark.parametrize("name", MEGATRON)
def test_glm_of_megatron_has_the_gelu_of_its_kind(name):
    arrays = MEGATRON[name]
    assert_golden(megatron_model().logits(*glm_inputs(arrays)), arrays)
    with pytest.raises(AssertionError):
        assert_golden(megatron_model(gelu="exact").logits(*glm_inputs(arrays)), arrays)


def test_an_architecture_json_says_the_shape_of_megatron_s_files(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("glm", "megatron_chinese_MP2"), folder)
    config = read_config(folder, num_attention_heads=4)
    values = {"num_layers": config.num_layers, "hidden_size": config.hidden_size, "num_attention_heads": 4,
              "max_position_embeddings": config.max_sequence_length, "vocab_size": config.vocab_size,
              "layernorm_epsilon": 1e-5, "block_position_encoding": True, "mlp_hidden_size": config.inner_hidden_size,
              "activation": "gelu_tanh", "layernorm_order": "pre"}

    def read(**changed):
        (folder / "architecture.json").write_text(json.dumps(values | changed), encoding="utf-8")
        return read_config(folder)

    assert read() == config and read(num_attention_heads=8).num_attention_heads == 8
    for wrong, message in (({"heads": 4}, "unknown key 'heads'"), ({"activation": "relu"}, "allowed: gelu_tanh, gelu"),
                           ({"layernorm_order": "post"}, "layernorm_order is 'post'"),
                           ({"hidden_size": "big"}, "must be of type int")):
        with pytest.raises(UserError, match=f"architecture.json: .*{message}"):
            read(**wrong)
    (folder / "architecture.json").write_text('{"num_layers": 3}', encoding="utf-8")
    with pytest.raises(UserError, match="hidden_size, num_attention_heads, max_position_embeddings, vocab_size not"):
        read_config(folder)


def chatglm_model(name):
    described = descriptions("chatglm")[name]
    is_tied = described.get("checkpoint") != UNTIED or name == "untied_file_default_config"
    model = load(checkpoint("chatglm", UNTIED), tie_word_embeddings=is_tied)
    is_2d = described.get("position_encoding_2d", True)  # the file's frequencies are those of two channels
    model.config = model.config.override(position_encoding_2d=is_2d)
    if name in ("int8", "int4"):  # golden's weights are rounded as products in float16 have it
        bits = int(name.removeprefix("int"))
        for _, linear in linears(model):
            linear.weight.data = dequantize(*quantize(linear.weight.half(), bits), bits, torch.float16).float()
    return model


@pytest.mark.parametrize("name", [name for name in CHATGLM if name not in PREFIXED])
def test_chatglm(name):
    model = chatglm_model(name)
    assert_golden(model.logits(*chatglm_inputs(CHATGLM[name], model.config.position_encoding_2d)), CHATGLM[name])


@functools.cache
def chatglm2_model():
    return load(checkpoint("chatglm2", "hf_chatglm2"))


@pytest.mark.parametrize("name", [name for name in CHATGLM2 if name not in PREFIXED])
def test_chatglm2(name):
    arrays = CHATGLM2[name]
    valid = None if "attention_mask" not in arrays else torch.from_numpy(arrays["attention_mask"]) == 1
    assert_golden(chatglm2_model().logits(*chatglm2_inputs(arrays)), arrays, valid)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, found in (
    ("chatglm", CHATGLM), ("chatglm2", CHATGLM2)) for name in found if name in PREFIXED])
def test_a_trained_prefix_is_keys_and_values_that_all_tokens_see(family, name):
    """P-tuning v2: they stand before the text's own, are not turned, and shift no position."""
    model, arrays = (chatglm_model("prompt"), CHATGLM[name]) if family == "chatglm" else (chatglm2_model(),
                                                                                         CHATGLM2[name])
    tokens, positions, blocked = (chatglm_inputs if family == "chatglm" else chatglm2_inputs)(arrays)
    folder = checkpoint(family, "ptuning_projection" if "projection" in name else "ptuning_plain")
    put_on(model, read_adapter(folder, family))
    with torch.no_grad():
        assert_golden(model.logits(tokens, positions, blocked), arrays)
        cache = model.new_cache(*tokens.shape)
        assert_golden(model.head(model.hidden_states(tokens, positions, blocked, cache)), arrays)
    model.prefix = None


def built(family):
    """A model of a family, and arguments of its forward pass: one row, whose context of `context` tokens is read at
    once."""
    if family == "glm":
        return megatron_model(), glm_inputs(MEGATRON["separator_scalar"]), 9
    if family == "chatglm":
        arrays = CHATGLM["pair"]
        return chatglm_model("untied"), chatglm_inputs(arrays), int((arrays["input_ids"][0] == 1304).argmax())
    return chatglm2_model(), chatglm2_inputs(CHATGLM2["pair"]), 6


FAMILIES_HERE = sorted(set(FAMILIES) - {"glm-130b"})


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_from_a_cache(family, is_compiled):
    """The context at once, then token by token: with the compiled operations, and, as gradients are recorded, with
    those of the reference."""
    model, (tokens, positions, blocked), context = built(family)
    expected = model.logits(tokens, positions, blocked)
    with torch.no_grad() if is_compiled else torch.enable_grad():
        cache = model.new_cache(len(tokens), tokens.shape[1])
        parts = [model.hidden_states(tokens[:, :context], positions[..., :context], blocked[:, :context, :context],
                                     cache)]
        for place in range(context, tokens.shape[1]):
            one = slice(place, place + 1)
            parts.append(model.hidden_states(tokens[:, one], positions[..., one], blocked[:, one, :place + 1], cache))
        torch.testing.assert_close(model.head(torch.cat(parts, dim=1)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_only_the_places_wanted(family):
    model, arguments, _ = built(family)
    places = torch.tensor([0, 7, 7, arguments[0].numel() - 1])
    found = model.hidden_states(*arguments, places=places)
    whole = model.hidden_states(*arguments).flatten(0, 1)[places]
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("folder", [checkpoint("glm", "hf_gpt2"), checkpoint("chatglm", UNTIED),
                                    checkpoint("chatglm2", "hf_chatglm2")], ids=lambda folder: folder.name)
def test_a_config_json_is_read_or_refused_in_one_line(folder, tmp_path):
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for key in values:
        for bad in ("x", -1, 10**30, 0.5, None, [], {"a": 1}, True):
            (tmp_path / "config.json").write_text(json.dumps(values | {key: bad}), encoding="utf-8")
            try:
                config = read_config(tmp_path)
            except UserError as error:
                assert str(tmp_path / "config.json") in str(error) and "\n" not in str(error)
            else:
                assert spec.expected(config)


@pytest.mark.parametrize("key, value, message", [
    ("kv_channels", 16, "kv_channels is 16, not hidden_size / num_attention_heads"),
    ("rmsnorm", False, "rmsnorm is false; such models are not served, only true"),
    ("multi_query_group_num", 3, "num_attention_heads 8 is not a multiple of num_key_value_groups 3"),
])
def test_models_that_are_not_served(tmp_path, key, value, message):
    values = json.loads((checkpoint("chatglm2", "hf_chatglm2") / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(values | {key: value}), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize("family", FAMILIES_HERE)
@torch.no_grad()
def test_quantised_while_loading(family):
    names = {"glm": ("glm", "hf_gpt2"), "chatglm": ("chatglm", UNTIED), "chatglm2": ("chatglm2", "hf_chatglm2")}
    found, plain = (load(checkpoint(*names[family]), bits) for bits in (4, None))
    tokens = torch.arange(5, 25)[None]
    positions = torch.arange(20)[None]
    if plain.config.position_encoding_2d:
        positions = torch.stack((positions, torch.zeros_like(positions)), dim=1)
    for _, linear in linears(plain):
        linear.weight.data = dequantize(*quantize(linear.weight.half(), 4), 4, torch.float32)
    torch.testing.assert_close(found.logits(tokens, positions), plain.logits(tokens, positions), atol=1e-4, rtol=1e-4)


def test_learned_positions_come_to_an_end():
    model, (tokens, positions, blocked), _ = built("glm")
    with pytest.raises(UserError, match=r"a text needs the position 129, but the model learned 129 \(max_sequence_le"):
        model.logits(tokens, positions + 129 - positions.max(), blocked)


def _logits(family, degree):
    parallel.start(degree)
    model, arguments, _ = built(family)
    return model.logits(*arguments)


@pytest.mark.parametrize("family", FAMILIES_HERE)
def test_ranks_give_what_one_gives(family, tmp_path):
    """ChatGLM2's two groups on four ranks: two of them hold the same keys and values."""
    model, arguments, _ = built(family)
    expected = model.logits(*arguments)
    for degree in (2, 4):
        (tmp_path / str(degree)).mkdir()
        for found in run_ranks(partial(_logits, family), degree, tmp_path / str(degree), degree):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
