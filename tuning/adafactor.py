"""Adafactor (Shazeer and Stern 2018): of a matrix' squared gradients the means by row and by column are kept alone.

As the GLM repository takes it, from transformers, with rates from outside: no momentum, steps in proportion to a
parameter's own size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

TINY = 1e-30  # beside squared gradients
LEAST = 1e-3  # size of a parameter, for the length of its steps
FORGETTING = -0.8  # step ^ this is the share of the newest gradient in the means
LONGEST = 1.0  # root mean square of an update, before the rate


class Adafactor(torch.optim.Optimizer):
    """A group's weight_decay is the share of a parameter that goes in a step of the same length."""

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    move(parameter, self.state[parameter], group["lr"], group["weight_decay"])


def move(parameter: Tensor, state: dict[str, Tensor], rate: float, decay: float) -> None:
    """state: step, and of a matrix rows and columns, of others squares; empty before the first step."""
    gradient = parameter.grad
    if not state:
        state["step"] = torch.zeros(())
        if gradient.ndim < 2:
            state["squares"] = torch.zeros_like(gradient)
        else:
            state["rows"] = gradient.new_zeros(gradient.shape[:-1])
            state["columns"] = gradient.new_zeros(*gradient.shape[:-2], gradient.shape[-1])
    state["step"] += 1
    share, squares = float(state["step"]) ** FORGETTING, gradient.square().add_(TINY)
    if "squares" in state:
        state["squares"].lerp_(squares, share)
        update = state["squares"].rsqrt().mul_(gradient)
    else:
        rows, columns = state["rows"].lerp_(squares.mean(-1), share), state["columns"].lerp_(squares.mean(-2), share)
        factors = (rows / rows.mean(-1, keepdim=True)).rsqrt_()
        update = torch.mul(gradient, factors[..., None], out=squares).mul_(columns.rsqrt()[..., None, :])
    length = rate * size_of(parameter).clamp_(min=LEAST)
    update.mul_(length / (size_of(update) / LONGEST).clamp_(min=1.0))
    if decay:
        parameter.mul_(1 - decay * length)
    parameter.sub_(update)


def size_of(tensor: Tensor) -> Tensor:
    """Its root mean square."""
    return tensor.norm() / tensor.numel() ** 0.5
