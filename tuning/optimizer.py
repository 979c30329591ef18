"""AdamW or Adafactor as the originals use them: two groups, a bound for the norm of the whole gradient, masters in
float32, and in float16 a scale of the loss that finds itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from runtime import parallel
from runtime.errors import UserError
from tuning.adafactor import Adafactor

if TYPE_CHECKING:
    from tuning.train_options import OptimizerOptions

FIRST_SCALE = 2.0**16  # of the loss in float16, as DeepSpeed begins
CLIP_EPSILON = 1e-6  # beside the norm
MOMENTS = {"AdamW": ({"exp_avg", "exp_avg_sq", "step"},), "Muon": ({"momentum_buffer"},),
           "Adafactor": ({"rows", "columns", "step"}, {"squares", "step"})}  # of a parameter


def is_decayed(name: str) -> bool:
    """By the name of a parameter in the originals: all but biases and LayerNorms. An LSTM's `bias_ih_l0` is not named
    a bias, and decays."""
    return not (name.endswith(".bias") or name == "bias" or "layernorm" in name)


@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied by, so that float16 gradients do not vanish.

    `hysteresis` overflows halve it (the earlier ones only count), `window` steps without one double it.
    """

    value: float = FIRST_SCALE
    good: int = 0  # steps since the last overflow or doubling
    left: int = 2  # overflows until it is halved

    def after(self, has_overflowed: bool, options: OptimizerOptions) -> LossScale:
        if has_overflowed:
            if self.left > 1:
                return replace(self, good=0, left=self.left - 1)
            return replace(self, good=0, value=max(self.value / 2, options.min_scale))
        if self.good + 1 < options.loss_scale_window:
            return replace(self, good=self.good + 1)
        return LossScale(self.value * 2, 0, options.hysteresis)


class Optimizer:
    """Of named parameters. What is half precision in the model has a float32 master here, which is moved.

    Each data-parallel rank holds all of it; tuning/zero.py has one that is divided over them.
    """

    is_divided = False  # whether all ranks have to make the same number of passes

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], options: OptimizerOptions):
        if not parameters:
            raise UserError("nothing learns: all of the model is frozen, and there is nothing beside it")
        self.parameters, self.options = dict(parameters), options
        self.masters = self.masters_of(parameters)
        self.scale = None
        if any(parameter.dtype == torch.float16 for parameter in parameters.values()):
            self.scale = (LossScale(left=options.hysteresis) if options.loss_scale is None
                          else LossScale(options.loss_scale))
        self._moving = self.made()

    def masters_of(self, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
        return {name: parameter if parameter.dtype == torch.float32 else
                torch.nn.Parameter(parameter.detach().float()) for name, parameter in parameters.items()}

    def made(self) -> list[torch.optim.Optimizer]:
        """What moves the masters. A group's `share`, where it has one, is that of the rate."""
        options = self.options
        groups = [{"params": [self.masters[name] for name in names], "weight_decay": decay}
                  for names, decay in ((self.decayed, options.weight_decay), (self.not_decayed, 0.0)) if names]
        if options.optimizer == "adafactor":
            return [Adafactor(groups, options.lr)]
        return [torch.optim.AdamW(groups, lr=options.lr, betas=(options.adam_beta1, options.adam_beta2),
                                  eps=options.adam_eps, fused=True)]

    @property
    def decayed(self) -> list[str]:
        return sorted(filter(is_decayed, self.parameters))

    @property
    def not_decayed(self) -> list[str]:
        return sorted(set(self.parameters) - set(self.decayed))

    @property
    def loss_factor(self) -> float:
        return 1.0 if self.scale is None else self.scale.value

    def _moving_of(self, master: Tensor) -> torch.optim.Optimizer:
        return next(moving for moving in self._moving
                    if any(master is each for group in moving.param_groups for each in group["params"]))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a part of the step's mean loss to the parameters'."""
        (loss * self.loss_factor).backward()

    def move(self, rate: float, is_split: Callable[[str], bool], check: Callable[[float], None]) -> tuple[float, bool]:
        """Move the weights by the gradients of all ranks -> the norm of the whole gradient before its bound, and
        whether the step was skipped, since it has overflowed.

        is_split: whether tensor-parallel ranks hold parts of a parameter of this name. check: raises what a norm says
        against moving.
        """
        self.gather()
        if parallel.data_parallel_size() > 1:
            self.share(parallel.sum_over_data)
        norm = self.norm(is_split, parallel.sum_over_parts) if parallel.size() > 1 else self.norm()
        if is_skipped := self.skips(norm):
            self.forget()
        else:
            check(norm)
            self.step(rate, norm)
        return norm, is_skipped

    def whole(self) -> AbstractContextManager[None]:
        """While it lasts, each rank can compute with all weights."""
        return nullcontext()

    def written(self) -> AbstractContextManager[None]:
        """While it lasts, the ranks that write can read all weights."""
        return nullcontext()

    def gather(self) -> None:
        """The parameters' gradients become the masters', without the loss' scale."""
        for name, master in self.masters.items():
            parameter = self.parameters[name]
            if master is not parameter:
                master.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
            if self.scale is not None and master.grad is not None:
                master.grad /= self.scale.value

    def share(self, add: Callable[[Tensor], None]) -> None:
        """Sum the gradients over ranks, of which some may have none of a parameter. add: sums a tensor in place."""
        masters = list(self.masters.values())
        has = torch.tensor([float(master.grad is not None) for master in masters], device=masters[0].device)
        add(has)
        for master, count in zip(masters, has.tolist(), strict=True):
            if count:
                master.grad = torch.zeros_like(master) if master.grad is None else master.grad
                add(master.grad)

    def gradients(self) -> dict[str, Tensor]:
        return {name: master.grad for name, master in self.masters.items() if master.grad is not None}

    def norm(self, is_split: Callable[[str], bool] = lambda name: False,
             add: Callable[[Tensor], None] = lambda squares: None) -> float:
        """Of the whole gradient; float32 sums, may be infinite or NaN.

        is_split: whether tensor-parallel ranks hold parts of a parameter of this name; add: sums over them in place.
        """
        found = self.gradients()
        split, whole = (torch.stack([torch.zeros((), device=next(iter(self.masters.values())).device), *(
            gradient.norm() for name, gradient in found.items() if is_split(name) is kind)]).square().sum()
            for kind in (True, False))
        add(split)
        return float((split + whole).sqrt())

    def step(self, rate: float, norm: float) -> None:
        """Move the masters at this rate, the gradient shortened to its bound, and the parameters with them."""
        bound = self.options.clip_grad
        if bound and (factor := bound / (norm + CLIP_EPSILON)) < 1.0:
            for gradient in self.gradients().values():
                gradient *= factor
        for moving in self._moving:
            for group in moving.param_groups:
                group["lr"] = rate * group.get("share", 1.0)
            moving.step()
        with torch.no_grad():
            for name, master in self.masters.items():
                if master is not self.parameters[name]:
                    self.parameters[name].copy_(master)
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        for each in (*self.masters.values(), *self.parameters.values()):
            each.grad = None

    def skips(self, norm: float) -> bool:
        """Whether the step's gradient has overflowed, and only the loss' scale changes. Without a scale nothing is
        skipped."""
        if self.scale is None or self.options.loss_scale is not None:
            return False
        has_overflowed = not math.isfinite(norm)
        if has_overflowed and self.scale.value <= self.options.min_scale and self.scale.left <= 1:
            return False  # a smaller loss will not help
        self.scale = self.scale.after(has_overflowed, self.options)
        return has_overflowed

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, by the parameters' names; tensors are not copied."""
        masters, moments = self.held()
        return {"parameters": masters, "moments": moments,
                "scale": None if self.scale is None else list(astuple(self.scale))}

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        """Raises KeyError, RuntimeError or TypeError for a state of other parameters."""
        masters = state["parameters"]
        if set(masters) != set(self.parameters):
            raise KeyError(*set(masters) ^ set(self.parameters))
        for name, parameter in self.parameters.items():
            parameter.copy_(masters[name])
        self.take(masters, state["moments"])
        if state["scale"] is not None:
            self.scale = LossScale(*state["scale"])

    def held(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """The masters and their moments, by the parameters' names."""
        return {name: master.detach() for name, master in self.masters.items()}, {
            name: dict(moving.state[master]) for moving in self._moving
            for name, master in self.masters.items() if master in moving.state}

    def take(self, masters: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        """What held() gave. The parameters themselves have their values already."""
        for name, master in self.masters.items():
            if master is not self.parameters[name]:
                master.copy_(masters[name])
            if own := moments.get(name):
                moving = self._moving_of(master)
                if set(own) not in MOMENTS[type(moving).__name__]:
                    raise KeyError(*own)  # of another kind of optimiser
                moving.state[master] = {key: tensor.to(master.device) for key, tensor in own.items()}
