"""The model as all else sees it: forward pass, logits, cache and weights. Its family says what a layer computes.

Shape legend: b batch, s sequence, h hidden, n heads (of this rank), d head size, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType

import torch

import kernels
from glm import inputs
from glm.adapters.prefix import Prefix
from glm.cache import KVCache
from glm.config import ModelConfig
from glm.dropout import Dropout
from glm.families import FAMILIES
from glm.linear import linears
from glm.logits import Logits, approximate_logits
from glm.sat import Observer, SATModel, Step, layer_weights, norm_weights, word_vectors
from glm.stream import Stream
from kernels import CHOICE_ROWS
from kernels.layer import LayerWeights
from kernels.vocabulary import PackedVocabulary
from runtime import parallel


class GLM(SATModel):
    stream: Stream | None = None
    adapter: Mapping[str, str] | None = None  # `name` and `sha256` of what adapts it (glm.adapters.files)

    def __init__(self, config: ModelConfig, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
                 skip_init: bool = True) -> None:
        """An uninitialised model (skip_init), on any device including "meta", or one of random weights to train.

        Holds this rank's part when the tensor-parallel degree (runtime.parallel.start) is above one.
        """
        if not parallel.is_started():
            parallel.start()
        super().__init__(config, dtype)
        self.config, self.family = config, FAMILIES[config.family]
        self.is_parallel = parallel.size() > 1
        self.prefix: Prefix | None = None
        self.vocabulary: PackedVocabulary | None = None  # the head's matrix in INT8, too: for choosing tokens alone
        if torch.device(device).type != "meta":
            self.to_empty(device=device)
        if not skip_init:
            self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Norms at one, biases at zero, all else normal, or as the family has it."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "layernorm" in name:
                parameter.fill_(1.0)
        if hasattr(self.family, "initialise"):
            self.family.initialise(self)
            return
        for parameter in self.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)

    def hidden_states(self, tokens: torch.Tensor, position_ids: torch.Tensor, blocked: torch.Tensor | None = None,
                      cache: KVCache | None = None, embedding_gradient_scale: float = 1.0,
                      places: torch.Tensor | None = None, observe: Observer | None = None,
                      prompts: tuple[torch.Tensor, torch.Tensor] | None = None, dropout: Dropout | None = None,
                      is_checkpointed: bool = False) -> torch.Tensor:
        """tokens (b, s) int64, position_ids (b, s) or (b, 2, s) int64 -> (b, s, h) after the final layer norm.

        blocked: bool (b, s, total), True where a token must not attend; None: every token sees all. total is s, or
        cache.length + s with a cache, whose next s places are then filled. Where its rows differ in length, a token
        sees all of its own row, and blocked is None.
        embedding_gradient_scale below 1 shrinks the gradient into the embedding (Zeng et al. 2022, section 3.1).
        places: (n,) int64 out of b * s, the only ones wanted: the result is (n, h), and for all others the last layer
        computes no more than keys and values.
        observe: called with every layer's result, in order.
        prompts: (n,) int64 out of b * s, and the vectors (n, h) that stand there for the words' embeddings.
        dropout, is_checkpointed: in training, what is dropped, and whether layers are computed again for gradients.

        The tokens see the prefix, where the model has one; no argument counts its places.
        """
        operations = kernels.backend(self.transformer.word_embeddings.weight)
        if dropout is not None and not torch.is_grad_enabled():
            operations = kernels.reference
        cosine, sine = self._angles(position_ids)
        prefix = None if self.prefix is None or cache is not None else self.prefix()
        if prefix is not None and dropout is not None:
            prefix = dropout.prefix(prefix)
        ahead = cache.prefix if cache is not None else 0 if prefix is None else prefix.shape[2]
        if blocked is not None and ahead:
            blocked = torch.nn.functional.pad(blocked, (ahead, 0))
        is_plain = observe is None and prompts is None and prefix is None and dropout is None
        if is_plain and (stack := self._stack(cache, operations, tokens.shape)):
            words = word_vectors(self.transformer.word_embeddings, tokens)
            embedded = self.family.embed(self.transformer, words, position_ids)
            start = 0 if cache is None else cache.start
            if tokens.shape[1] > 1:
                hidden = stack.read(embedded, cosine, sine, start, blocked, places)
                hidden = self.transformer.final_layernorm(hidden)  # torch's, as where layers are walked
            else:
                hidden = stack.step(embedded, cosine, sine, start, blocked)
                hidden = hidden if places is None else hidden.flatten(0, 1)[places]
        else:
            if self.stream is None:
                operations = kernels.expanding(operations, tokens.device)
            hidden = self.walk(tokens, Step(
                self.config, operations, position_ids, cosine, sine, blocked, cache, embedding_gradient_scale, places,
                self.stream, observe, prefix, prompts, dropout, is_checkpointed))
        if self.stream is not None:
            self.stream.leave()
        if cache is not None:
            cache.advance(tokens.shape[1])
        return hidden

    @property
    def last_position(self) -> int | None:
        """Where positions are learned; None: there is none."""
        learned = getattr(self.transformer, "position_embeddings", None)
        return None if learned is None else learned.num_embeddings - 1

    @property
    def head_weight(self) -> torch.nn.Parameter:
        """(v, h) of this rank: what hidden states are multiplied with."""
        return self.transformer.word_embeddings.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., h) -> float32 logits (..., v) over the whole vocabulary, gathered from the tensor-parallel ranks."""
        weight = self.head_weight
        logits = kernels.backend(weight).head(hidden, weight)
        return parallel.gather(logits) if self.is_parallel else logits

    def choices(self, hidden: torch.Tensor, is_exact: bool = False, looks: bool = True) -> Logits:
        """(b, h) -> logits (b, v) to choose tokens by; is_exact: all that they are looked at for must be exact; looks:
        whether what refines approximate ones may look at numbers, which only a CPU has at hand."""
        if (is_exact or self.vocabulary is None or hidden.shape[0] > CHOICE_ROWS or torch.is_grad_enabled()
                or (looks and hidden.device.type != "cpu")):
            return Logits(self.head(hidden))
        return approximate_logits(hidden, self.head_weight, self.vocabulary, looks)

    def logits(self, tokens: torch.Tensor, position_ids: torch.Tensor,
               blocked: torch.Tensor | None = None) -> torch.Tensor:
        """float32 (b, s, v); the arguments are those of hidden_states."""
        return self.head(self.hidden_states(tokens, position_ids, blocked))

    def new_cache(self, batch: int, capacity: int, is_clear: bool = True) -> KVCache:
        weight = self.transformer.word_embeddings.weight
        heads = max(1, self.config.key_value_heads // parallel.size())
        prefix = None if self.prefix is None else self.prefix()
        return KVCache.allocate(self.config.num_layers, batch, heads, capacity, self.config.head_size,
                                weight.dtype, weight.device, is_clear, prefix)

    def _stack(self, cache: KVCache | None, operations: ModuleType, shape: tuple[int, int]):
        """The compiled backend's one call for all layers of a pass over tokens (b, s); None where they are walked.

        Made once per cache, whose addresses it holds: at small sizes the calls cost more than the work.
        """
        if operations is kernels.reference or torch.is_grad_enabled() or not hasattr(self.family, "layer_form"):
            return None
        b, s = shape
        is_step = s == 1 and cache is not None
        weight, heads = self.transformer.word_embeddings.weight, self.config.key_value_heads
        if not is_step and (weight.device.type != "cpu" or self.is_parallel or self.stream is not None):
            return None
        if cache is None:
            keys, values = weight.new_empty(2, b, heads, s, self.config.head_size)  # of one layer after the other
            stack = self._new_stack([keys] * self.config.num_layers, [values] * self.config.num_layers)
        elif cache.stack is None:
            stack = cache.stack = self._new_stack(cache.keys, cache.values) or False
        else:
            stack = cache.stack
        return stack if stack and (is_step or stack.reads(b * s)) else None

    def _new_stack(self, keys: list[torch.Tensor], values: list[torch.Tensor]):
        if any(linear.adapters for _, linear in linears(self)) or self._is_hooked():
            return None
        layers = [layer_weights(layer) for layer in self.transformer.layers]
        norm, form = norm_weights(self.transformer.final_layernorm), self.family.layer_form(self.config)
        ranks = (parallel.reduce, parallel.small_sums.get(keys[0].device.type)) if self.is_parallel else ()
        return kernels.stack(layers, norm, keys, values, form, self.stream and self._at_hand, *ranks)

    def _is_hooked(self) -> bool:
        """Whether somebody listens to a module: then layers are walked, or nothing would be heard."""
        return any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())

    def _at_hand(self, layer: int) -> LayerWeights | None:
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

    def _angles(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and sine (b, s, d) float32 that queries and keys are turned by: not at all with learned positions."""
        parts = self.family.rotary_parts(self.config)
        if parts:
            size = 2 * self.config.head_size // parts
            frequencies = inputs.doubled_frequencies(size, self.config.rotary_table, str(position_ids.device))
            return inputs.cosine_sine(position_ids, frequencies)
        nothing = torch.zeros(position_ids.shape[0], position_ids.shape[-1], self.config.head_size,
                              device=position_ids.device)
        return torch.ones_like(nothing), nothing
