"""Looking into a model, and quantising some of its linears for a while. One process: a rank would see its part only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from glm.linear import linears
from kernels.packing import dequantize
from quantization.functional import Scheme, quantize


@contextmanager
def quantized(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], scheme: Scheme) -> Iterator[None]:
    """While it lasts, the linears of these weights compute what packed ones would: in float32 a packed weight is
    nothing but the numbers that it stands for, and plain products of these are fastest for many tokens.

    weights: by their name in the model, in the dtype of the checkpoint, which loading quantises from; the model's own
    are made from them again afterwards, so that memory holds one model and one weight.
    """
    try:
        for name, weight in weights.items():
            here = weight.to(model.get_parameter(name).device)
            _replace(model, name, dequantize(*quantize(here, *scheme), scheme.bits, torch.float32))
        yield
    finally:
        for name, weight in weights.items():
            _replace(model, name, weight.to(model.get_parameter(name).device, torch.float32))


def _replace(model: torch.nn.Module, name: str, weight: torch.Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, torch.nn.Parameter(weight, requires_grad=False))


@contextmanager
def watched(model: torch.nn.Module, hear: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """While it lasts, `hear` is given the name of every linear and its input (..., k), when the model calls it."""
    handles = [linear.register_forward_pre_hook(lambda _, given, name=name: hear(name, given[0]))
               for name, linear in linears(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
