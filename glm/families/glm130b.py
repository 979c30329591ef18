"""GLM-130B and models of its architecture: rotary positions, DeepNorm (post-LN), GeGLU, the head tied to the embedding.

    a = LN1(h);  h = alpha * a + Attention(a);  m = LN2(h);  h' = alpha * m + MLP(m)
    logits = LN_final(h) W_emb^T

Zeng et al. 2022, section 2.2. The rows of query_key_value are [q | k | v] head by head; dense_h_to_4h gives the two
halves of GeGLU.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from glm.prompt_form import DEFAULT, PromptForm
from glm.spec import (
    DENSE,
    FINAL_NORM,
    INVERSE_FREQUENCIES,
    MLP_IN,
    MLP_OUT,
    NORMS,
    POSITION_EMBEDDINGS,
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

NAME = MODEL_TYPE = "glm-130b"
OF_HUGGING_FACE = ("architectures", "model_type", "quantization_bit", "quantization_group_size", "torch_dtype",
                   "transformers_version")  # keys of a config.json that are no fields of a ModelConfig


def _shape(num_layers: int, hidden_size: int, num_attention_heads: int, inner_hidden_size: int, vocab_size: int,
           max_sequence_length: int, **fields) -> dict:
    return dict(num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=num_attention_heads,
                inner_hidden_size=inner_hidden_size, vocab_size=vocab_size,
                max_sequence_length=max_sequence_length, **fields)


PRESETS: dict[str, dict] = {
    "glm-130b": _shape(70, 12288, 96, 32768, 150528, 2048, rotary_table="half"),
    # for benchmarks: about as large as the published GLM family, not of their architecture; gated inner width of about
    # 8/3 hidden
    "shape-10b": _shape(48, 4096, 64, 10944, 50304, 1024),
    "shape-2b": _shape(36, 2048, 32, 5472, 50304, 1024),
    "glm-1.3b": _shape(24, 2048, 32, 5472, 32768, 2048),
    "shape-335m": _shape(24, 1024, 16, 2736, 32768, 2048),
    "shape-110m": _shape(12, 768, 12, 2048, 32768, 2048),
    "glm-small": _shape(5, 384, 6, 1024, 16384, 512, num_image_tokens=0),
}
_TABLE = Table(
    before=(Tensor(WORD_EMBEDDINGS, ("vocabulary", "hidden"), Cut.ROWS),),
    layer=(
        *norm(NORMS[0]),
        *linear(QKV, "qkv", "hidden"),
        *linear(DENSE, "hidden", "hidden"),
        *norm(NORMS[1]),
        *linear(MLP_IN, ("inner", "inner"), "hidden"),
        *linear(MLP_OUT, "hidden", "inner"),
        Tensor(INVERSE_FREQUENCIES, ("half head",), extra=True),
    ),
    behind=(
        *norm(FINAL_NORM),
        Tensor(POSITION_EMBEDDINGS, ("places", "hidden"), extra=True),  # SAT makes them
    ),
)


def tensors(config: ModelConfig) -> Table:
    return _TABLE


def own_name(name: str) -> str:
    return name


def published_name(name: str, values: Mapping[str, object]) -> str:
    return name


def is_mine(values: Mapping[str, object]) -> bool:
    return values.get("model_type") == MODEL_TYPE


def fields(values: Mapping[str, object]) -> dict[str, object]:
    """Of a ModelConfig, out of a config.json, which is the toolkit's own: GLM-130B was never published with one."""
    return {name: value for name, value in values.items() if name not in OF_HUGGING_FACE}


def published(config: ModelConfig) -> dict[str, object]:
    return {"model_type": MODEL_TYPE} | dataclasses.asdict(config)


def open_tokenizer(folder: Path, path: Path | None, config: ModelConfig) -> Tokenizer:
    from glm.tokenizers.icetk import IcetkTokenizer, find_vocabulary

    return IcetkTokenizer(find_vocabulary(folder, path), config.num_image_tokens)


def check(config: ModelConfig) -> None:
    if not config.tie_word_embeddings or config.num_key_value_groups:
        raise UserError(f"a model of the family {NAME} has a tied head, and keys and values for every head")


def prompt_form(config: ModelConfig) -> PromptForm:
    return DEFAULT


def rotary_parts(config: ModelConfig) -> int:
    return 4 if config.position_encoding_2d else 2


def residual_scale(num_layers: int) -> float:
    """DeepNorm's alpha as GLM-130B uses it."""
    return math.sqrt(2 * num_layers)


def embed(transformer: torch.nn.Module, words: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    return words


def block(layer: torch.nn.Module, number: int, hidden: torch.Tensor, step: Step) -> torch.Tensor:
    ops, config, mlp = step.operations, step.config, layer.mlp
    alpha, epsilon = residual_scale(config.num_layers), config.layernorm_epsilon
    norm1, norm2 = layer.input_layernorm, layer.post_attention_layernorm

    normalise = partial(ops.layer_norm, hidden, norm1.weight, norm1.bias, epsilon)
    a = normalise()
    qkv = step.product(layer.attention.query_key_value, a, normalise)
    update = step.dropped(number, "attention", layer.attention.dense(step.attend(number, qkv), ops))
    m = ops.residual_layer_norm(step.wanted(number, a), update, alpha, norm2.weight, norm2.bias, epsilon)
    activate = partial(ops.geglu, mlp.dense_h_to_4h(m, ops))
    update = step.product(mlp.dense_4h_to_h, activate(), activate)
    return ops.scaled_add(m, step.dropped(number, "mlp", update), alpha)


def layer_form(config: ModelConfig) -> LayerForm:
    from kernels.layer import Activation, LayerForm, Rotary

    return LayerForm(Activation.GEGLU, Rotary.HALVES_2D if config.position_encoding_2d else Rotary.HALVES,
                     residual_scale(config.num_layers), config.layernorm_epsilon, is_pre_norm=False, is_by_heads=True)


def initialise(model: torch.nn.Module) -> None:
    """DeepNorm's initialisation (Wang et al. 2022, as Zeng et al. 2022 scale it): Xavier normal, with gain
    (2 * num_layers)^-1/2 for the MLP, the value and the output projection."""
    config = model.config
    gain = (2 * config.num_layers) ** -0.5
    h, inner = config.hidden_size, config.inner_hidden_size
    model.transformer.word_embeddings.weight.normal_(std=0.02)
    for layer in model.transformer.layers:
        qkv = layer.attention.query_key_value.weight
        qkv.normal_(std=math.sqrt(1.0 / h))
        qkv.view(-1, 3, config.head_size, h)[:, 2].mul_(gain)
        layer.attention.dense.weight.normal_(std=gain * math.sqrt(1.0 / h))
        for linear_ in (layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h):
            linear_.weight.normal_(std=gain * math.sqrt(2.0 / (h + inner)))
