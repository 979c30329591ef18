"""ChatGLM2-6B: a causal model with RMS norms (pre-norm), keys and values shared by groups of heads, SwiGLU, a head of
its own.

    x = x + Attention(RMS1(x));  x = x + MLP(RMS2(x))
    logits = RMS_final(x) W_head^T

The rows of query_key_value are all of q, all of k, all of v, k and v for each group; only these have biases. The first
half of a head's coordinates turns with the position, in adjacent pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from glm.prompt_form import PromptForm
from glm.spec import (
    DENSE,
    FINAL_NORM,
    HEAD,
    MLP_IN,
    MLP_OUT,
    NORMS,
    QKV,
    WORD_EMBEDDINGS,
    Cut,
    Table,
    Tensor,
    linear,
    norm,
)
from runtime.errors import UserError, shown

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from glm.config import ModelConfig
    from glm.sat import Step
    from glm.tokenizers.interface import Tokenizer
    from kernels.layer import LayerForm

NAME, MODEL_TYPE = "chatglm2", "chatglm"
COMMON = dict(num_image_tokens=0, tie_word_embeddings=False, family=NAME)
PRESETS: dict[str, dict] = {
    "chatglm2-6b": COMMON | dict(
        num_layers=28, hidden_size=4096, num_attention_heads=32, inner_hidden_size=13696, vocab_size=65024,
        max_sequence_length=32768, num_key_value_groups=2),
}
SERVED = {"rmsnorm": True, "add_bias_linear": False, "add_qkv_bias": True, "post_layer_norm": True,
          "apply_residual_connection_post_layernorm": False, "original_rope": True, "tie_word_embeddings": False}
_NAMES = (("transformer.embedding.word_embeddings.", "transformer.word_embeddings."),
          ("transformer.encoder.layers.", "transformer.layers."),
          ("transformer.encoder.final_layernorm.", "transformer.final_layernorm."),
          (".self_attention.", ".attention."), ("transformer.output_layer.", "lm_head."))  # published, ours
_TABLE = Table(
    before=(Tensor(WORD_EMBEDDINGS, ("vocabulary", "hidden"), Cut.ROWS),),
    layer=(
        *norm(NORMS[0], has_bias=False),
        *linear(QKV, ("hidden", "keys", "keys"), "hidden"),
        *linear(DENSE, "hidden", "hidden", has_bias=False),
        *norm(NORMS[1], has_bias=False),
        *linear(MLP_IN, ("inner", "inner"), "hidden", has_bias=False),
        *linear(MLP_OUT, "hidden", "inner", has_bias=False),
    ),
    behind=(
        *norm(FINAL_NORM, has_bias=False),
        Tensor(HEAD, ("vocabulary", "hidden"), Cut.ROWS),
        Tensor("transformer.rotary_pos_emb.inv_freq", ("quarter head",), extra=True),
    ),
)


def tensors(config: ModelConfig) -> Table:
    return _TABLE


def own_name(name: str) -> str:
    """Ours for a tensor of a published file."""
    for theirs, ours in _NAMES:
        name = name.replace(theirs, ours)
    return name


def published_name(name: str, values: Mapping[str, object]) -> str:
    for theirs, ours in _NAMES:
        name = name.replace(ours, theirs)
    return name


def is_mine(values: Mapping[str, object]) -> bool:
    return values.get("model_type") == MODEL_TYPE and ("padded_vocab_size" in values
                                                       or "multi_query_attention" in values)


def fields(values: Mapping[str, object]) -> dict[str, object]:
    """Of a ModelConfig, out of config.json; what is not there has the default of the original's class."""
    for key, served in SERVED.items():
        if values.get(key, served) != served:
            raise UserError(f"{key} is {shown(values[key])}; such models are not served, only {shown(served)}")
    heads, hidden_size = values.get("num_attention_heads", 32), values.get("hidden_size", 4096)
    size = values.get("kv_channels", 128)
    if type(size) is not int or (type(heads) is int and size * heads != hidden_size):
        raise UserError(f"kv_channels is {shown(size)}, not hidden_size / num_attention_heads; such models are not "
                        "served")
    return COMMON | {
        "num_layers": values.get("num_layers", 28), "hidden_size": hidden_size, "num_attention_heads": heads,
        "inner_hidden_size": values.get("ffn_hidden_size", 13696),
        "vocab_size": values.get("padded_vocab_size", 65024), "max_sequence_length": values.get("seq_length", 2048),
        "layernorm_epsilon": values.get("layernorm_epsilon", 1e-5),
        "num_key_value_groups": values.get("multi_query_group_num", 1) if values.get("multi_query_attention") else 0,
    }


def published(config: ModelConfig) -> dict[str, object]:
    groups = config.num_key_value_groups
    return SERVED | {
        "model_type": MODEL_TYPE, "num_layers": config.num_layers, "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads, "kv_channels": config.head_size,
        "ffn_hidden_size": config.inner_hidden_size, "padded_vocab_size": config.vocab_size,
        "seq_length": config.max_sequence_length, "layernorm_epsilon": config.layernorm_epsilon,
        "multi_query_attention": bool(groups),
    } | ({"multi_query_group_num": groups} if groups else {})


def open_tokenizer(folder: Path, path: Path | None, config: ModelConfig) -> Tokenizer:
    from glm.tokenizers.opening import open_tokenizer

    return open_tokenizer(path or folder)


def check(config: ModelConfig) -> None:
    if config.position_encoding_2d or config.tie_word_embeddings:
        raise UserError("a model of the family chatglm2 has one position for each token, and a head of its own")


def prompt_form(config: ModelConfig) -> PromptForm:
    return PromptForm(("[gMASK]",), ("[gMASK]", "sop"), ends=("eos",), beam_ranking="transformers",
                      is_causal=True, marks_tasks=True)


def rotary_parts(config: ModelConfig) -> int:
    return 4


def embed(transformer: torch.nn.Module, words: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return words


def block(layer: torch.nn.Module, number: int, hidden: torch.Tensor, step: Step) -> torch.Tensor:
    ops, epsilon, mlp = step.operations, step.config.layernorm_epsilon, layer.mlp

    normalise = partial(ops.rms_norm, hidden, layer.input_layernorm.weight, epsilon)
    qkv = step.product(layer.attention.query_key_value, normalise(), normalise)
    update = step.dropped(number, "attention", layer.attention.dense(step.attend_groups(number, qkv), ops))
    x = ops.scaled_add(step.wanted(number, hidden), update, 1.0)
    normalise = partial(ops.rms_norm, x, layer.post_attention_layernorm.weight, epsilon)
    activate = partial(ops.swiglu, step.product(mlp.dense_h_to_4h, normalise(), normalise))
    update = step.product(mlp.dense_4h_to_h, activate(), activate)
    return ops.scaled_add(x, step.dropped(number, "mlp", update), 1.0)


def layer_form(config: ModelConfig) -> LayerForm:
    from kernels.layer import Activation, LayerForm, Rotary

    return LayerForm(Activation.SWIGLU, Rotary.PAIRS, 1.0, config.layernorm_epsilon, is_pre_norm=True,
                     is_by_heads=False)
