"""GLM from 110M to 10B parameters: learned positions, pre-LN, an MLP with GELU, the head tied to the embedding.

    x = W_emb[token] + P[position] + B[place inside the blank]
    x = x + Attention(LN1(x));  x = x + MLP(LN2(x))
    logits = LN_final(x) W_emb^T

Du et al. 2022. The rows of query_key_value are all of q, all of k, all of v. The models that Hugging Face's port made
have the exact GELU, those in Megatron's files its approximation. Without block positions (position_encoding_2d false)
there is no table B, and P has a row less.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from typing import TYPE_CHECKING

from glm.prompt_form import PromptForm
from glm.spec import (
    BLOCK_POSITION_EMBEDDINGS,
    DENSE,
    FINAL_NORM,
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
from runtime.errors import UserError, shown

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from glm.config import ModelConfig
    from glm.sat import Step
    from glm.tokenizers.interface import Tokenizer
    from kernels.layer import LayerForm

NAME = MODEL_TYPE = "glm"
BARE_CLASS = "GLMModel"  # of the port: without a head, and without a prefix before its tensors' names
BERT, ROBERTA, GPT2, CHINESE = 30592, 50304, 50304, 50048  # sizes of the published vocabularies, padded

# of an architecture.json: key -> field of ModelConfig; the only values that are served; the GELUs, the usual one first
ARCHITECTURE = {"num_layers": "num_layers", "hidden_size": "hidden_size", "num_attention_heads": "num_attention_heads",
                "mlp_hidden_size": "inner_hidden_size", "max_position_embeddings": "max_sequence_length",
                "vocab_size": "vocab_size"}
CONVENTIONS = {"layernorm_order": ("pre",)}
ACTIVATIONS = {"gelu_tanh": "tanh", "gelu": "exact"}


def _shape(num_layers: int, hidden_size: int, num_attention_heads: int, max_sequence_length: int,
           vocab_size: int) -> dict:
    return dict(num_layers=num_layers, hidden_size=hidden_size, num_attention_heads=num_attention_heads,
                inner_hidden_size=4 * hidden_size, vocab_size=vocab_size, max_sequence_length=max_sequence_length,
                position_encoding_2d=True, num_image_tokens=0, family=NAME)


PRESETS: dict[str, dict] = {
    "glm-base": _shape(12, 768, 12, 512, BERT),
    "glm-large": _shape(24, 1024, 16, 512, BERT),
    "glm-doc": _shape(24, 1024, 16, 512, BERT),
    "glm-roberta-large": _shape(24, 1024, 16, 512, ROBERTA),
    "glm-large-chinese": _shape(24, 1024, 16, 1024, CHINESE),
    "glm-410m": _shape(30, 1024, 16, 512, BERT),
    "glm-515m": _shape(30, 1152, 18, 512, BERT),
    "glm-2b": _shape(36, 2048, 32, 1024, GPT2),
    "glm-10b": _shape(48, 4096, 64, 1024, GPT2),
    "glm-10b-chinese": _shape(48, 4096, 64, 1024, CHINESE),
}


@cache
def _table(has_block_positions: bool) -> Table:
    places = "places and one" if has_block_positions else "places"
    before = [Tensor(WORD_EMBEDDINGS, ("vocabulary", "hidden"), Cut.ROWS),
              Tensor(POSITION_EMBEDDINGS, (places, "hidden"))]
    if has_block_positions:
        before.append(Tensor(BLOCK_POSITION_EMBEDDINGS, (places, "hidden")))
    layer = (*norm(NORMS[0]), *linear(QKV, ("hidden", "hidden", "hidden"), "hidden"),
             *linear(DENSE, "hidden", "hidden"), *norm(NORMS[1]), *linear(MLP_IN, "inner", "hidden"),
             *linear(MLP_OUT, "hidden", "inner"))
    return Table(tuple(before), layer, norm(FINAL_NORM))


def tensors(config: ModelConfig) -> Table:
    return _table(config.position_encoding_2d)


def own_name(name: str) -> str:
    """Ours for a tensor of a published file: Hugging Face's, with or without its prefix, Megatron's or SAT's."""
    name = name.removeprefix("glm.").replace("mixins.block_position_embedding.", "transformer.")
    return f"transformer.{name}" if name.startswith("word_embeddings.") else name


def published_name(name: str, values: Mapping[str, object]) -> str:
    """Hugging Face's for a tensor of ours, which is Megatron's too. The port's classes with a head put a prefix before
    it; config.json names the class that wrote it."""
    name = name.removeprefix("transformer.") if name == WORD_EMBEDDINGS else name
    return name if values.get("architectures", [BARE_CLASS]) == [BARE_CLASS] else f"glm.{name}"


def is_mine(values: Mapping[str, object]) -> bool:
    return values.get("model_type") == MODEL_TYPE


def fields(values: Mapping[str, object]) -> dict[str, object]:
    """Of a ModelConfig, out of config.json of Hugging Face's port; what is not there has the default of its class."""
    for key, served in (("relative_encoding", False), ("spell_length", None)):
        if values.get(key, served) != served:
            raise UserError(f"{key} is {shown(values[key])}; such models are not served, only {shown(served)}")
    hidden_size = values.get("hidden_size", 1024)
    return {
        "num_layers": values.get("num_layers", values.get("num_hidden_layers", 24)), "hidden_size": hidden_size,
        "num_attention_heads": values.get("num_attention_heads", 16),
        "inner_hidden_size": 4 * hidden_size if isinstance(hidden_size, int) else hidden_size,
        "vocab_size": values.get("vocab_size", 30592), "max_sequence_length": values.get("max_sequence_length", 512),
        "position_encoding_2d": values.get("block_position_encoding", True), "num_image_tokens": 0, "family": NAME,
        "gelu": values.get("gelu", "exact"),  # a key of ours: of models that were trained in Megatron's style
    }


def architecture_fields(values: Mapping[str, object]) -> dict[str, object]:
    """Of a ModelConfig, out of an architecture.json beside files in Megatron's style. Raises UserError for a key that
    is missing or unknown, and for a model that is not served."""
    known = (*ARCHITECTURE, *CONVENTIONS, "activation", "block_position_encoding", "layernorm_epsilon")
    if unknown := next((key for key in values if key not in known), None):
        raise UserError(f"unknown key {shown(unknown)}; allowed: {', '.join(known)}")
    if missing := [key for key in ARCHITECTURE if key not in values and key != "mlp_hidden_size"]:
        raise UserError(f"{', '.join(missing)} not given")
    for key, allowed in (*CONVENTIONS.items(), ("activation", tuple(ACTIVATIONS))):
        if values.get(key, allowed[0]) not in allowed:
            raise UserError(f"{key} is {shown(values[key])}; allowed: {', '.join(allowed)}")
    hidden_size = values["hidden_size"]
    inner = {"mlp_hidden_size": 4 * hidden_size if isinstance(hidden_size, int) else hidden_size}
    found = {field: (inner | dict(values))[key] for key, field in ARCHITECTURE.items()}
    return found | {
        "layernorm_epsilon": values.get("layernorm_epsilon", 1e-5),
        "position_encoding_2d": values.get("block_position_encoding", True), "num_image_tokens": 0, "family": NAME,
        "gelu": ACTIVATIONS[values.get("activation", "gelu_tanh")],
    }


def architecture(config: ModelConfig) -> dict[str, object]:
    """Of an architecture.json that architecture_fields reads as this model."""
    return {key: getattr(config, field) for key, field in ARCHITECTURE.items()} | {
        "layernorm_epsilon": config.layernorm_epsilon, "block_position_encoding": config.position_encoding_2d,
        "activation": next(name for name, gelu in ACTIVATIONS.items() if gelu == config.gelu)}


def published(config: ModelConfig) -> dict[str, object]:
    return {
        "model_type": MODEL_TYPE, "num_layers": config.num_layers, "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads, "vocab_size": config.vocab_size,
        "max_sequence_length": config.max_sequence_length, "block_position_encoding": config.position_encoding_2d,
        "output_predict": True,
    } | ({} if config.gelu == "exact" else {"gelu": config.gelu})


def open_tokenizer(folder: Path, path: Path | None, config: ModelConfig) -> Tokenizer:
    """Of the port, or of Megatron's files, which have another GELU and other commands; of the Chinese ones the 10B
    model was trained without the option fix-command-token."""
    from glm.tokenizers.opening import open_megatron_tokenizer, open_tokenizer

    if config.gelu == "exact":
        return open_tokenizer(path or folder)
    return open_megatron_tokenizer(path or folder, fix_command_token=config.num_layers < 48)


def check(config: ModelConfig) -> None:
    if not config.tie_word_embeddings or config.num_key_value_groups:
        raise UserError("a model of the family glm has a tied head, and keys and values for every head")


def prompt_form(config: ModelConfig) -> PromptForm:
    """[CLS] text eos. Hugging Face's port and the Megatron-style original differ behind a mask at the end, and in what
    ends an answer. In glm-10b-chinese eop and [gMASK] were one id; the port gave [gMASK] one of its own with a copy of
    eop's row, which would be drawn as often as the end of an answer."""
    is_port = config.gelu == "exact"
    has_copied_row = is_port and (config.num_layers, config.vocab_size) == (48, CHINESE)
    return PromptForm(begin=("ENC",), advancing=(), no_end_after=() if is_port else ("[gMASK]",),
                      ends=("eop",) if is_port else ("eop", "eos"), never=("[gMASK]",) if has_copied_row else (),
                      beam_ranking="transformers" if is_port else "glm", marks_tasks=True)


def rotary_parts(config: ModelConfig) -> int:
    return 0


def embed(transformer: torch.nn.Module, words: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
    """Raises UserError for positions behind the tables, which a GPU would only answer with its own end; of a step that
    is recorded the positions are still to come."""
    import kernels

    rows = transformer.position_embeddings.num_embeddings
    if not kernels.is_recording() and (most := int(position_ids.max())) >= rows:
        raise UserError(f"a text needs the position {most}, but the model learned {rows} (max_sequence_length): texts "
                        "must be shorter, in an evaluation by max_seq_length of the task")
    if position_ids.dim() == 2:
        return words + transformer.position_embeddings(position_ids)
    return (words + transformer.position_embeddings(position_ids[:, 0])
            + transformer.block_position_embeddings(position_ids[:, 1]))


def block(layer: torch.nn.Module, number: int, hidden: torch.Tensor, step: Step) -> torch.Tensor:
    from kernels.layer import by_heads

    ops, config, mlp = step.operations, step.config, layer.mlp
    norm1, norm2, epsilon = layer.input_layernorm, layer.post_attention_layernorm, config.layernorm_epsilon

    normalise = partial(ops.layer_norm, hidden, norm1.weight, norm1.bias, epsilon)
    qkv = step.product(layer.attention.query_key_value, normalise(), normalise)
    context = step.attend(number, by_heads(qkv, config.head_size))
    update = step.dropped(number, "attention", layer.attention.dense(context, ops))
    x = ops.scaled_add(step.wanted(number, hidden), update, 1.0)
    normalise = partial(ops.layer_norm, x, norm2.weight, norm2.bias, epsilon)
    activate = partial(ops.gelu, step.product(mlp.dense_h_to_4h, normalise(), normalise), config.gelu == "exact")
    update = step.product(mlp.dense_4h_to_h, activate(), activate)
    return ops.scaled_add(x, step.dropped(number, "mlp", update), 1.0)


def layer_form(config: ModelConfig) -> LayerForm:
    from kernels.layer import Activation, LayerForm, Rotary

    return LayerForm(Activation.GELU if config.gelu == "exact" else Activation.GELU_TANH, Rotary.NONE, 1.0,
                     config.layernorm_epsilon, is_pre_norm=True, is_by_heads=False)
