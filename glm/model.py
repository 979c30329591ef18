"""GLM on SwissArmyTransformer: SAT's transformer and tensor-parallel layers, our forward pass.

    a = LN1(h);  h = alpha * a + Attention(a);  m = LN2(h);  h' = alpha * m + MLP(m)      (DeepNorm, post-LN)
    logits = LN_final(h) W_emb^T

SAT builds and names the parameters and walks the layers; the two mixins below replace what a layer computes.
Shape legend: b batch, s sequence, h hidden, n heads (of this rank), d head size, v vocabulary.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch.overrides import TorchFunctionMode

import kernels
from glm import rotary, spec
from glm.cache import KVCache
from glm.config import ModelConfig
from glm.linear import Linear, linears
from glm.stream import Stream
from runtime import parallel
from runtime.parallel import lean_sat

with lean_sat():
    from sat.model.base_model import BaseMixin, BaseModel
    from sat.model.transformer import BaseTransformer


Observer = Callable[[int, torch.Tensor], None]  # hears of a layer's number (-1: the embedding) and what it gives


@dataclass(frozen=True)
class Step:
    """What every layer of one forward pass shares."""

    operations: ModuleType  # kernels.backend
    cosine: torch.Tensor  # (b, s, d) float32
    sine: torch.Tensor
    blocked: torch.Tensor | None  # bool (b, s, total)
    cache: KVCache | None
    embedding_gradient_scale: float
    places: torch.Tensor | None  # see GLM.hidden_states
    stream: Stream | None  # the layers that are not always in memory
    observe: Observer | None


class GLM(BaseModel):
    stream: Stream | None = None

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
                 skip_init: bool = True) -> None:
        """An uninitialised model (skip_init), on any device including "meta", or one with DeepNorm's initialisation.

        Holds this rank's part when the tensor-parallel degree (runtime.parallel.start) is above one.
        """
        if not parallel.is_started():
            parallel.start()
        super().__init__(Namespace(), transformer=_transformer(config, dtype))
        self.config = config
        self.is_parallel = parallel.size() > 1
        self.add_mixin("embedding", Embedding())
        self.add_mixin("block", Block(config))
        if torch.device(device).type != "meta":
            self.to_empty(device=device)
        if not skip_init:
            initialise(self)

    def hidden_states(self, tokens: torch.Tensor, position_ids: torch.Tensor, blocked: torch.Tensor | None = None,
                      cache: KVCache | None = None, embedding_gradient_scale: float = 1.0,
                      places: torch.Tensor | None = None, observe: Observer | None = None) -> torch.Tensor:
        """tokens (b, s) int64, position_ids (b, s) or (b, 2, s) int64 -> (b, s, h) after the final layer norm.

        blocked: bool (b, s, total), True where a token must not attend; None: every token sees all. total is s, or
        cache.length + s with a cache, whose next s places are then filled. Where its rows differ in length, a token
        sees all of its own row, and blocked is None.
        embedding_gradient_scale below 1 shrinks the gradient into the embedding (Zeng et al. 2022, section 3.1).
        places: (n,) int64 out of b * s, the only ones wanted: the result is (n, h), and for all others the last layer
        computes no more than keys and values.
        observe: called with every layer's result, in order.
        """
        operations = kernels.backend(self.transformer.word_embeddings.weight)
        cosine, sine = rotary.cosine_sine(position_ids, self._inverse_frequencies(tokens.device))
        step = Step(operations, cosine, sine, blocked, cache, embedding_gradient_scale, places, self.stream,
                    observe)
        if stack := self._stack(step, tokens):
            embedded = torch.nn.functional.embedding(tokens, self.transformer.word_embeddings.weight)
            hidden = stack.step(embedded, cosine, sine, cache.length, blocked)
            hidden = hidden if places is None else hidden.flatten(0, 1)[places]
        else:
            hidden, *_ = self(tokens, position_ids, _NO_MASK, step=step)
        if self.stream is not None:
            self.stream.leave()
        if cache is not None:
            cache.advance(tokens.shape[1])
        return hidden

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., h) -> float32 logits (..., v) over the whole vocabulary, gathered from the tensor-parallel ranks."""
        weight = self.transformer.word_embeddings.weight
        logits = kernels.backend(weight).head(hidden, weight)
        return parallel.gather(logits) if self.is_parallel else logits

    def logits(self, tokens: torch.Tensor, position_ids: torch.Tensor,
               blocked: torch.Tensor | None = None) -> torch.Tensor:
        """float32 (b, s, v); the arguments are those of hidden_states."""
        return self.head(self.hidden_states(tokens, position_ids, blocked))

    def new_cache(self, batch: int, capacity: int, is_clear: bool = True) -> KVCache:
        weight = self.transformer.word_embeddings.weight
        heads = self.transformer.layers[0].attention.num_attention_heads_per_partition
        return KVCache.allocate(self.config.num_layers, batch, heads, capacity, self.config.head_size,
                                weight.dtype, weight.device, is_clear)

    def _stack(self, step: Step, tokens: torch.Tensor):
        """The compiled backend's one call for all layers of a decoding step; None where SAT walks the layers.

        Made once per cache, whose addresses it holds: at small sizes the calls cost more than the work.
        """
        cache = step.cache
        if (cache is None or tokens.shape[1] != 1 or self.is_parallel or step.operations is kernels.reference
                or step.observe is not None):
            return None
        if cache.stack is None and any(linear.adapters for _, linear in linears(self)):
            cache.stack = False
        if cache.stack is None:
            norm, config = self.transformer.final_layernorm, self.config
            layers = [layer_weights(layer) for layer in self.transformer.layers]
            cache.stack = kernels.stack(layers, (norm.weight, norm.bias), cache.keys, cache.values,
                                        config.deepnorm_alpha, config.layernorm_epsilon,
                                        config.position_encoding_2d, self.stream and self._at_hand) or False
        return cache.stack or None

    def _at_hand(self, layer: int) -> kernels.reference.LayerWeights | None:
        return layer_weights(self.transformer.layers[layer]) if self.stream.at_hand(layer) else None

    def named_weights(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """named_parameters, with the weights of streamed layers while it is their turn."""
        for name in [name for name, _ in self.named_parameters()]:
            if self.stream is not None and name.startswith("transformer.layers."):
                self.stream.at_hand(int(name.split(".")[2]))
            yield name, self.get_parameter(name)
        if self.stream is not None:
            self.stream.leave()

    def weight_bytes(self) -> int:
        """What this rank's weights take of its device."""
        always = sum(parameter.nbytes for parameter in self.parameters() if not parameter.is_meta)
        return always + (0 if self.stream is None else self.stream.bytes)

    def _inverse_frequencies(self, device: torch.device) -> torch.Tensor:
        dimension = self.config.head_size // (2 if self.config.position_encoding_2d else 1)
        return rotary.inverse_frequencies(dimension, self.config.rotary_table, str(device))


class Embedding(BaseMixin):
    """Tokens to hidden states; positions enter by rotation, inside attention."""

    def word_embedding_forward(self, input_ids: torch.Tensor, *, step: Step, **_) -> torch.Tensor:
        embeddings = self.transformer.word_embeddings
        if embeddings.weight.shape[0] == embeddings.num_embeddings:  # not split over ranks
            hidden = torch.nn.functional.embedding(input_ids, embeddings.weight)
        else:
            hidden = embeddings(input_ids)
        if step.observe is not None:
            step.observe(-1, hidden)
        scale = step.embedding_gradient_scale
        return hidden if scale == 1.0 else hidden * scale + hidden.detach() * (1.0 - scale)

    def position_embedding_forward(self, position_ids: torch.Tensor, **_) -> None:
        return None

    def final_forward(self, hidden: torch.Tensor, **_) -> torch.Tensor:
        return hidden  # GLM.head computes logits, for the positions asked for only


class Block(BaseMixin):
    """One layer: DeepNorm around attention and GeGLU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def layer_forward(self, hidden: torch.Tensor, mask: torch.Tensor, *, layer_id: torch.Tensor, step: Step,
                      **_) -> torch.Tensor:
        if step.stream is not None:
            step.stream.at_hand(int(layer_id))
        layer, ops = self.transformer.layers[layer_id], step.operations
        alpha, epsilon = self.config.deepnorm_alpha, self.config.layernorm_epsilon
        norm1, norm2 = layer.input_layernorm, layer.post_attention_layernorm

        places = step.places if layer_id == self.config.num_layers - 1 else None
        a = ops.layer_norm(hidden, norm1.weight, norm1.bias, epsilon)
        update = self._attention(layer.attention, a, int(layer_id), step, places)
        a = a if places is None else a.flatten(0, 1)[places]
        m = ops.residual_layer_norm(a, update, alpha, norm2.weight, norm2.bias, epsilon)
        gated = ops.geglu(layer.mlp.dense_h_to_4h(m, ops))
        hidden = ops.scaled_add(m, layer.mlp.dense_4h_to_h(gated, ops), alpha)
        if step.observe is not None:
            step.observe(int(layer_id), hidden)
        return hidden

    def _attention(self, attention: torch.nn.Module, a: torch.Tensor, layer_id: int, step: Step,
                   places: torch.Tensor | None) -> torch.Tensor:
        qkv = attention.query_key_value(a, step.operations)  # (b, s, n*3*d), [q|k|v] head by head
        cache = step.cache
        keys, values, start = (None, None, 0) if cache is None else (
            cache.keys[layer_id], cache.values[layer_id], cache.length)
        context = step.operations.attend(qkv, step.cosine, step.sine, keys, values, start, step.blocked,
                                         self.config.position_encoding_2d)  # (b, s, n*d)
        context = context if places is None else context.flatten(0, 1)[places]
        return attention.dense(context, step.operations)



def layer_weights(layer: torch.nn.Module) -> kernels.reference.LayerWeights:
    """What the compiled stack reads: it knows no adapters."""
    attention, mlp, parts = layer.attention, layer.mlp, []
    for norm, *products in ((layer.input_layernorm, attention.query_key_value, attention.dense),
                           (layer.post_attention_layernorm, mlp.dense_h_to_4h, mlp.dense_4h_to_h)):
        parts += norm.weight, norm.bias, *(part for linear in products for part in (linear.operand, linear.bias))
    return kernels.reference.LayerWeights(*parts)


_NO_MASK = torch.empty(1, 1)  # SAT insists on a mask; ours travels in Step


def _transformer(config: ModelConfig, dtype: torch.dtype) -> BaseTransformer:
    """SAT's transformer on the meta device, with our linears in its layers and no learned positions."""
    meta = torch.device("meta")
    with meta, _NoInitialisation():
        transformer = BaseTransformer(
            config.num_layers, config.vocab_size, config.hidden_size, config.num_attention_heads,
            config.max_sequence_length, layernorm_order="post", layernorm_epsilon=config.layernorm_epsilon,
            inner_hidden_size=config.inner_hidden_size, layernorm=partial(torch.nn.LayerNorm, dtype=dtype),
            params_dtype=dtype, skip_init=True, device=meta)
        for layer in transformer.layers:
            for name, shape in spec.linears(config, parallel.size()).items():
                parent, _, attribute = name.rpartition(".")
                cut = spec.cut_of(spec.in_layer(0, f"{name}.weight"))
                setattr(layer.get_submodule(parent), attribute, Linear(shape, cut, dtype))
        transformer.final_layernorm = torch.nn.LayerNorm(config.hidden_size, config.layernorm_epsilon, dtype=dtype)
    del transformer.position_embeddings
    return transformer


class _NoInitialisation(TorchFunctionMode):
    """Leave out normal_: SAT fills position embeddings that we drop, and on the meta device the first call of normal_
    imports torch's compiler, which takes longer than all the rest of building a model."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = keywords or {}
        if function is torch.nn.init.normal_:
            return arguments[0] if arguments else keywords["tensor"]
        return function(*arguments, **keywords)


@torch.no_grad()
def initialise(model: GLM) -> None:
    """DeepNorm's initialisation (Wang et al. 2022, as Zeng et al. 2022 scale it): Xavier normal, with gain
    (2 * num_layers)^-1/2 for the MLP, the value and the output projection; norms at one, biases at zero."""
    config = model.config
    gain = (2 * config.num_layers) ** -0.5
    h, inner = config.hidden_size, config.inner_hidden_size
    torch.nn.init.normal_(model.transformer.word_embeddings.weight, std=0.02)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "layernorm" in name:
            parameter.fill_(1.0)
    for layer in model.transformer.layers:
        qkv = layer.attention.query_key_value.weight
        qkv.normal_(std=math.sqrt(1.0 / h))
        qkv.view(-1, 3, config.head_size, h)[:, 2].mul_(gain)
        layer.attention.dense.weight.normal_(std=gain * math.sqrt(1.0 / h))
        for linear in (layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h):
            linear.weight.normal_(std=gain * math.sqrt(2.0 / (h + inner)))
