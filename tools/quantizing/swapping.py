"""Looking into a model, and quantising some of its linears for a while. One process: a rank would see its part only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from quantization.functional import quantize
from quantization.linear import Scheme, quantize_model


@contextmanager
def quantized(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], scheme: Scheme) -> Iterator[None]:
    """While it lasts, the linears of these weights are QuantizedLinears, as loading with this scheme makes them.

    weights: by their name in the model, in the dtype of the checkpoint, which loading quantises from. The model's own
    linears stay in memory beside the packed ones, and come back afterwards.
    """
    own = {}
    try:
        for name, weight in weights.items():
            path = name.removesuffix(".weight")
            linear = own[path] = model.get_submodule(path)
            packed, scale = quantize(weight.to(linear.weight.device), *scheme)
            quantize_model(model, {name: scheme})
            tensors = {"weight": packed, "weight_scale": scale, "bias": linear.bias}
            model.get_submodule(path).load_state_dict(tensors, assign=True)
        yield
    finally:
        for path, linear in own.items():
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, linear)


@contextmanager
def watched(model: torch.nn.Module, hear: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """While it lasts, `hear` is given the name of every linear that is quantisable, and its input (..., k), when the
    model computes it. The model does not call its linears, so hooks on them would hear nothing."""
    block = model.get_mixin("block")
    names = {id(module): name for name, module in model.named_modules()}
    own = {name: getattr(block, name) for name in ("_column", "_row")}

    def telling(compute):
        def linear(module, x, operations):
            hear(names[id(module)], x)
            return compute(module, x, operations)

        return linear

    for name, compute in own.items():
        setattr(block, name, telling(compute))
    try:
        yield
    finally:
        for name in own:
            delattr(block, name)
