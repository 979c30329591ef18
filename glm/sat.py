"""SwissArmyTransformer's part: it builds the layers, names the parameters, splits them over ranks and walks the layers.

Two mixins replace what a layer computes by the functions of the model's family (glm/families). Nothing else of the
package sees SAT's classes.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from glm import spec
from glm.cache import KVCache
from glm.config import ModelConfig
from glm.dropout import Dropout
from glm.families import FAMILIES
from glm.linear import Linear
from glm.stream import Stream
from kernels import reference
from kernels.gradients import made_again
from kernels.layer import LayerWeights
from runtime import parallel
from runtime.parallel import lean_sat

with lean_sat():
    from sat.model.base_model import BaseMixin, BaseModel
    from sat.model.transformer import BaseTransformer

Observer = Callable[[int, torch.Tensor], None]  # hears of a layer's number (-1: the embedding) and what it gives


@dataclass(frozen=True)
class Step:
    """What every layer of one forward pass shares."""

    config: ModelConfig
    operations: ModuleType  # kernels.backend
    position_ids: torch.Tensor  # (b, s) or (b, 2, s) int64
    cosine: torch.Tensor  # (b, s, d) float32
    sine: torch.Tensor
    blocked: torch.Tensor | None  # bool (b, s, total)
    cache: KVCache | None
    embedding_gradient_scale: float
    places: torch.Tensor | None  # see GLM.hidden_states
    stream: Stream | None  # the layers that are not always in memory
    observe: Observer | None
    prefix: torch.Tensor | None  # (layers, 2, k, n, d): keys and values in front of all; in a cache they are already
    prompts: tuple[torch.Tensor, torch.Tensor] | None  # see GLM.hidden_states
    dropout: Dropout | None
    is_checkpointed: bool

    def wanted(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """(b, s, k) as it is; of the last layer, (n, k) at the places that are wanted."""
        return reference.wanted(x, self.places_in(layer))

    def places_in(self, layer: int) -> torch.Tensor | None:
        """(n,) out of b * s, the only ones that this layer is wanted at, or None."""
        return None if layer < self.config.num_layers - 1 else self.places

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """[q | k | v] head by head (b, s, n*3*d) -> (b, s, n*d), at the places that are wanted; q and k are turned."""
        keys, values, start = self.cached(layer, qkv)
        return self.operations.attend(qkv, self.cosine, self.sine, keys, values, start, self.blocked,
                                      self.config.position_encoding_2d, places=self.places_in(layer),
                                      **self._attention_dropout(layer, qkv, keys))

    def attend_groups(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """All of q, of k, of v (b, s, (n + 2g)*d) -> (b, s, n*d), at the places that are wanted; q and k are turned."""
        keys, values, start = self.cached(layer, qkv)
        groups = max(1, self.config.key_value_heads // parallel.size())
        return self.operations.attend_groups(qkv, groups, self.config.head_size, self.cosine, self.sine, keys,
                                             values, start, self.blocked, places=self.places_in(layer),
                                             **self._attention_dropout(layer, qkv, keys))

    def cached(self, layer: int, qkv: torch.Tensor) -> tuple:
        """A layer's keys and values (b, g, total, d), and how many of their places are filled.

        Those of a prefix without a cache are made for each pass, so that it can learn.
        """
        if self.cache is not None:
            return self.cache.keys[layer], self.cache.values[layer], self.cache.start
        if self.prefix is None:
            return None, None, 0
        b, s, _ = qkv.shape
        keys, values = (
            torch.cat((part.transpose(0, 1).expand(b, -1, -1, -1), qkv.new_empty(b, part.shape[1], s, part.shape[2])),
                      dim=2) for part in self.prefix[layer].to(qkv.dtype))
        return keys, values, self.prefix.shape[2]

    def dropped(self, layer: int, site: str, x: torch.Tensor) -> torch.Tensor:
        """What attention or MLP gives, some of it dropped in training: (b, s, h), or (n, h) as `wanted` has it."""
        if self.dropout is None:
            return x
        return self.dropout.hidden(x, layer, site, self.position_ids.shape[-1], self.places_in(layer))

    def product(self, linear: Linear, x: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """linear(x), where `make` gives x again and is cheap: that is done for gradients, and x not kept. Of a layer
        that is computed twice nothing is kept in the first place."""
        with nullcontext() if self.is_checkpointed else made_again(x, make):
            return linear(x, self.operations)

    def _attention_dropout(self, layer: int, qkv: torch.Tensor, keys: torch.Tensor | None) -> dict:
        """Training alone has it, whose operations know it."""
        if self.dropout is None:
            return {}
        shape = qkv.shape[1], qkv.shape[1] if keys is None else keys.shape[2]
        return {"drop": self.dropout.attention(layer, self.config.num_attention_heads, shape, qkv.device)}


class SATModel(BaseModel):
    """SAT's model of a configuration, on the meta device. A call walks it."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        super().__init__(Namespace(), transformer=_transformer(config, dtype))
        if not config.tie_word_embeddings:
            v, h = spec.outside_parts(config, parallel.size())[spec.HEAD].shape
            self.lm_head = torch.nn.Linear(h, v, bias=False, dtype=dtype, device="meta")
        self.add_mixin("embedding", Embedding(config))
        self.add_mixin("block", Block(config))

    def walk(self, tokens: torch.Tensor, step: Step) -> torch.Tensor:
        """tokens (b, s) -> hidden states (b, s, h), or (n, h) at the places that are wanted, after the final norm."""
        hidden, *_ = self(tokens, step.position_ids, _NO_MASK, step=step)
        return hidden


class Embedding(BaseMixin):
    """Tokens to hidden states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.family = FAMILIES[config.family]

    def word_embedding_forward(self, input_ids: torch.Tensor, *, step: Step, **_) -> torch.Tensor:
        hidden = word_vectors(self.transformer.word_embeddings, input_ids)
        if step.prompts is not None:
            places, vectors = step.prompts
            hidden = hidden.flatten(0, 1).index_copy(0, places, vectors.to(hidden.dtype)).view_as(hidden)
        hidden = step.dropped(-1, "embedding", self.family.embed(self.transformer, hidden, step.position_ids))
        if step.observe is not None:
            step.observe(-1, hidden)
        scale = step.embedding_gradient_scale
        return hidden if scale == 1.0 else hidden * scale + hidden.detach() * (1.0 - scale)

    def position_embedding_forward(self, position_ids: torch.Tensor, **_) -> None:
        return None

    def final_forward(self, hidden: torch.Tensor, **_) -> torch.Tensor:
        return hidden  # GLM.head computes logits, for the positions asked for only


class Block(BaseMixin):
    """One layer, which the family's function computes."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.family = FAMILIES[config.family]

    def layer_forward(self, hidden: torch.Tensor, mask: torch.Tensor, *, layer_id: torch.Tensor, step: Step,
                      **_) -> torch.Tensor:
        number = int(layer_id)
        if step.stream is not None:
            step.stream.at_hand(number)
        layer = self.transformer.layers[number]
        if step.is_checkpointed and torch.is_grad_enabled():
            hidden = checkpoint(self.family.block, layer, number, hidden, step, use_reentrant=False,
                                preserve_rng_state=False)
        else:
            hidden = self.family.block(layer, number, hidden, step)
        if step.observe is not None:
            step.observe(number, hidden)
        return hidden


def word_vectors(embeddings: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """ids (b, s) -> (b, s, h)."""
    weight = embeddings.weight
    count = weight.shape[0]
    if count == embeddings.num_embeddings:  # not split over ranks
        return torch.embedding(weight, ids)
    own = ids - parallel.rank() * count  # all others' vectors are zeros here
    found = torch.embedding(weight, own.clamp(0, count - 1))
    return parallel.reduce(found.masked_fill(((own < 0) | (own >= count)).unsqueeze(-1), 0.0))


def layer_weights(layer: torch.nn.Module) -> LayerWeights:
    """In the kernels' order; they know no adapters."""
    attention, mlp, parts = layer.attention, layer.mlp, []
    for norm, *products in ((layer.input_layernorm, attention.query_key_value, attention.dense),
                            (layer.post_attention_layernorm, mlp.dense_h_to_4h, mlp.dense_4h_to_h)):
        parts += *norm_weights(norm), *(part for linear in products for part in (linear.operand, linear.bias))
    return LayerWeights(*parts)


def norm_weights(norm: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias; an RMS norm has none."""
    return norm.weight, getattr(norm, "bias", None)


_NO_MASK = torch.empty(1, 1)  # SAT insists on a mask; ours travels in Step


def _transformer(config: ModelConfig, dtype: torch.dtype) -> BaseTransformer:
    """SAT's transformer on the meta device, with our linears in its layers and only the embeddings of the table."""
    meta, lines = torch.device("meta"), config.table.lines
    norm = torch.nn.LayerNorm if f"{spec.FINAL_NORM}.bias" in lines else torch.nn.RMSNorm
    with meta, _NoInitialisation():
        transformer = BaseTransformer(
            config.num_layers, config.vocab_size, config.hidden_size, config.num_attention_heads,
            config.max_sequence_length, layernorm_order="post", layernorm_epsilon=config.layernorm_epsilon,
            inner_hidden_size=config.inner_hidden_size, layernorm=partial(norm, dtype=dtype),
            params_dtype=dtype, skip_init=True, device=meta)
        del transformer.position_embeddings
        for tensor in config.table.before:
            if tensor.name != spec.WORD_EMBEDDINGS:
                rows, columns = spec.part(tensor, config).shape
                table = torch.nn.Embedding(rows, columns, dtype=dtype)
                setattr(transformer, tensor.name.split(".")[1], table)
        for layer in transformer.layers:
            for name, shape in spec.linears(config, parallel.size()).items():
                parent, _, attribute = name.rpartition(".")
                cut = spec.cut_of(spec.in_layer(0, f"{name}.weight"))
                linear = Linear(shape, cut, dtype, has_bias=f"{name}.bias" in lines)
                setattr(layer.get_submodule(parent), attribute, linear)
    return transformer


class _NoInitialisation(TorchFunctionMode):
    """Leave out normal_: SAT fills position embeddings that we drop, and on the meta device the first call of normal_
    imports torch's compiler, which takes longer than all the rest of building a model."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function is torch.nn.init.normal_:
            return arguments[0] if arguments else keywords["tensor"]
        return function(*arguments, **keywords)
