"""Prefixes of P-tuning v2: keys and values that stand in front of every layer's own, seen by all tokens.

    embedding (k, 2 * layers * g * d)       row i: for each layer its key, then its value; or, with a projection,
    embedding (k, h), trans: Linear(h, h), tanh, Linear(h, 2 * layers * g * d)

They have no position and are not turned. ChatGLM-6B's names: transformer.prefix_encoder.embedding.weight,
transformer.prefix_encoder.trans.0.weight ... (Liu et al. 2022).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runtime import parallel
from runtime.errors import UserError

if TYPE_CHECKING:
    from glm.config import ModelConfig

NAMES = "transformer.prefix_encoder."  # in front of the parameters' names, in ChatGLM's files


class Prefix(torch.nn.Module):
    """() -> (layers, 2, k, n, d), n the heads of keys of this tensor-parallel rank."""

    def __init__(self, config: ModelConfig, length: int, projection: int | None = None,
                 dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        """projection: width of the layer between, None: there is none."""
        super().__init__()
        self.shape = (length, config.num_layers, 2, config.key_value_heads, config.head_size)
        size = 2 * config.num_layers * config.key_value_heads * config.head_size
        how = {"dtype": dtype, "device": device}
        self.trans = None
        if projection is not None:
            self.trans = torch.nn.Sequential(torch.nn.Linear(config.hidden_size, projection, **how), torch.nn.Tanh(),
                                             torch.nn.Linear(projection, size, **how))
        self.embedding = torch.nn.Embedding(length, size if projection is None else config.hidden_size, **how)

    def forward(self) -> Tensor:
        found = self.embedding.weight
        found = found if self.trans is None else self.trans(found)
        found = found.view(self.shape).permute(1, 2, 0, 3, 4)
        heads, degree = self.shape[3], parallel.size() if parallel.is_started() else 1
        own = max(1, heads // degree)
        return found.narrow(3, parallel.rank() * heads // degree if degree > 1 else 0, own)

    def flat(self) -> Prefix:
        """The same without a projection, for inference: it is computed once."""
        if self.trans is None:
            return self
        weight = self.trans(self.embedding.weight).detach()
        made = Prefix.__new__(Prefix)
        torch.nn.Module.__init__(made)
        made.shape, made.trans = self.shape, None
        made.embedding = torch.nn.Embedding.from_pretrained(weight)
        return made


def of_chatglm(tensors: Mapping[str, Tensor], config: ModelConfig, source: str, length: int | None = None,
               has_projection: bool | None = None) -> Prefix:
    """Out of a file with ChatGLM's names, with or without the prefix before them; other tensors, of older files that
    hold the whole model, are left alone. length and has_projection: what was said of it, None: nothing."""
    found = {name.removeprefix(NAMES): tensor for name, tensor in tensors.items()
             if name.startswith((NAMES, "embedding.", "trans."))}
    words = found.get("embedding.weight")
    if words is None or words.dim() != 2:
        raise UserError(f"{source}: no prefix: it holds no {NAMES}embedding.weight")
    is_projected = "trans.0.weight" in found
    if length not in (None, words.shape[0]):
        raise UserError(f"{source}: its prefix has {words.shape[0]} tokens, but --pre-seq-len says {length}")
    if has_projection not in (None, is_projected):
        raise UserError(f"{source}: its prefix is {'' if is_projected else 'not '}one with a projection; "
                        f"{'say' if is_projected else 'leave away'} --prefix-projection")
    made = Prefix(config, words.shape[0], found["trans.0.weight"].shape[0] if is_projected else None)
    return _filled(made, found, source)


def of_sat(tensors: Mapping[str, Tensor], config: ModelConfig, source: str) -> Prefix:
    """Out of a tensor (2, heads, k, d) for each layer: prefix.0, prefix.1, ..."""
    names = [f"prefix.{layer}" for layer in range(config.num_layers)]
    if missing := [name for name in names if name not in tensors]:
        raise UserError(f"{source} lacks {missing[0]}: the model has {config.num_layers} layers")
    shape = (2, config.key_value_heads, tensors[names[0]].shape[-2], config.head_size)
    for name in names:
        if tuple(tensors[name].shape) != shape:
            raise UserError(f"{source}: {name} has the shape {tuple(tensors[name].shape)}, the model needs {shape}")
    whole = torch.stack([tensors[name].float() for name in names])  # (layers, 2, n, k, d)
    made = Prefix(config, shape[2])
    return _filled(made, {"embedding.weight": whole.permute(3, 0, 1, 2, 4).flatten(1)}, source)


def _filled(prefix: Prefix, tensors: Mapping[str, Tensor], source: str) -> Prefix:
    wanted = prefix.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise UserError(f"{source} lacks {NAMES}{name}")
        if tensors[name].shape != tensor.shape:
            raise UserError(f"{source}: {NAMES}{name} has the shape {tuple(tensors[name].shape)}, the model needs "
                            f"{tuple(tensor.shape)}: it was made for another model")
    prefix.load_state_dict({name: tensors[name].float() for name in wanted})
    return prefix.requires_grad_(False)
