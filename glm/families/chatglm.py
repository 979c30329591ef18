"""ChatGLM-6B: rotary positions in two channels, DeepNorm, an MLP with GELU that is not gated, tied to the embedding or
with a head of its own.

    a = LN1(h);  h = alpha * a + Attention(a);  m = LN2(h);  h' = alpha * m + MLP(m)      alpha = sqrt(2 * 28)

The factor is that of 28 layers however many there are. The rows of query_key_value are [q | k | v] head by head; the
first half of a head turns with the position, the second with the place inside the answer, by frequencies that are
rounded to float16.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

from glm.prompt_form import PromptForm
from glm.spec import (
    DENSE,
    FINAL_NORM,
    HEAD,
    INVERSE_FREQUENCIES,
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
from runtime.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from glm.config import ModelConfig
    from glm.sat import Step
    from glm.tokenizers.interface import Tokenizer
    from kernels.layer import LayerForm

NAME = MODEL_TYPE = "chatglm"
RESIDUAL_SCALE = math.sqrt(2 * 28)
IMAGE_TOKENS = 20000  # of the first revisions, whose vocabulary is that much larger
CURRENT_VOCABULARY = 130528  # of the later ones, whose ids are no defaults of the original's class
COMMANDS = {"bos_token_id": 130004, "eos_token_id": 130005, "mask_token_id": 130000, "gmask_token_id": 130001,
            "pad_token_id": 3}
COMMON = dict(position_encoding_2d=True, rotary_table="half_inv_freq", gelu="tanh", family=NAME)
PRESETS: dict[str, dict] = {
    "chatglm-6b": COMMON | dict(
        num_layers=28, hidden_size=4096, num_attention_heads=32, inner_hidden_size=16384, vocab_size=130528,
        max_sequence_length=2048, num_image_tokens=0),
}


@cache
def _table(is_tied: bool, is_2d: bool) -> Table:
    head = Tensor(HEAD, ("vocabulary", "hidden"), Cut.ROWS, extra=is_tied)
    layer = (*norm(NORMS[0]), *linear(QKV, "qkv", "hidden"), *linear(DENSE, "hidden", "hidden"), *norm(NORMS[1]),
             *linear(MLP_IN, "inner", "hidden"), *linear(MLP_OUT, "hidden", "inner"),
             Tensor(INVERSE_FREQUENCIES, ("quarter head" if is_2d else "half head",), extra=True))
    return Table((Tensor(WORD_EMBEDDINGS, ("vocabulary", "hidden"), Cut.ROWS),), layer, (*norm(FINAL_NORM), head))


def tensors(config: ModelConfig) -> Table:
    return _table(config.tie_word_embeddings, config.position_encoding_2d)


def own_name(name: str) -> str:
    return name


def published_name(name: str, values: Mapping[str, object]) -> str:
    return name


def is_mine(values: Mapping[str, object]) -> bool:
    return values.get("model_type") == MODEL_TYPE


def fields(values: Mapping[str, object]) -> dict[str, object]:
    """Of a ModelConfig, out of config.json; what is not there has the default of the original's class.

    The head is tied unless it says otherwise, though every file holds one: so the original's library has it.
    """
    vocab_size = values.get("vocab_size", 150528)
    return COMMON | {
        "num_layers": values.get("num_layers", 28), "hidden_size": values.get("hidden_size", 4096),
        "num_attention_heads": values.get("num_attention_heads", 32),
        "inner_hidden_size": values.get("inner_hidden_size", 16384), "vocab_size": vocab_size,
        "max_sequence_length": values.get("max_sequence_length", 2048),
        "layernorm_epsilon": values.get("layernorm_epsilon", 1e-5),
        "position_encoding_2d": values.get("position_encoding_2d", True),
        "tie_word_embeddings": values.get("tie_word_embeddings", True),
        "num_image_tokens": IMAGE_TOKENS if vocab_size == 150528 else 0,
    }


def published(config: ModelConfig) -> dict[str, object]:
    same = ("num_layers", "hidden_size", "num_attention_heads", "inner_hidden_size", "vocab_size",
            "max_sequence_length", "layernorm_epsilon", "position_encoding_2d")
    head = {} if config.tie_word_embeddings else {"tie_word_embeddings": False}
    return ({"model_type": MODEL_TYPE} | {name: getattr(config, name) for name in same} | head
            | (COMMANDS if config.vocab_size == CURRENT_VOCABULARY else {}))


def open_tokenizer(folder: Path, path: Path | None, config: ModelConfig) -> Tokenizer:
    from glm.tokenizers.opening import open_tokenizer

    return open_tokenizer(path or folder)


def check(config: ModelConfig) -> None:
    if config.num_key_value_groups:
        raise UserError("a model of the family chatglm has keys and values for every head")


def prompt_form(config: ModelConfig) -> PromptForm:
    """Of the first revisions: later ones put [gMASK] behind a text with [MASK], too, and so fill nothing inside."""
    return PromptForm(("[MASK]", "[gMASK]"), advancing=(), ends=("eop",), beam_ranking="transformers",
                      marks_tasks=True, task_masks=("[gMASK]", "[gMASK]"))


def rotary_parts(config: ModelConfig) -> int:
    return 4 if config.position_encoding_2d else 2


def embed(transformer: torch.nn.Module, words: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return words


def block(layer: torch.nn.Module, number: int, hidden: torch.Tensor, step: Step) -> torch.Tensor:
    ops, config, mlp = step.operations, step.config, layer.mlp
    norm1, norm2, epsilon = layer.input_layernorm, layer.post_attention_layernorm, config.layernorm_epsilon

    normalise = partial(ops.layer_norm, hidden, norm1.weight, norm1.bias, epsilon)
    a = normalise()
    context = step.attend(number, step.product(layer.attention.query_key_value, a, normalise))
    update = step.dropped(number, "attention", layer.attention.dense(context, ops))
    m = ops.residual_layer_norm(step.wanted(number, a), update, RESIDUAL_SCALE, norm2.weight, norm2.bias, epsilon)
    activate = partial(ops.gelu, mlp.dense_h_to_4h(m, ops), config.gelu == "exact")
    update = step.product(mlp.dense_4h_to_h, activate(), activate)
    return ops.scaled_add(m, step.dropped(number, "mlp", update), RESIDUAL_SCALE)


def layer_form(config: ModelConfig) -> LayerForm:
    from kernels.layer import Activation, LayerForm, Rotary

    return LayerForm(Activation.GELU if config.gelu == "exact" else Activation.GELU_TANH,
                     Rotary.HALVES_2D if config.position_encoding_2d else Rotary.HALVES, RESIDUAL_SCALE,
                     config.layernorm_epsilon, is_pre_norm=False, is_by_heads=True)
