"""AdamW whose state is divided over the data-parallel ranks: DeepSpeed's ZeRO behind the interface of tuning.optimizer.

Stage 1 divides masters and moments, 2 the gradients, too, 3 the weights, too; offloading keeps what is divided in the
host's memory. States have the form of the plain optimiser's, whole and by name: a run can go on with another stage,
another number of ranks, or without ZeRO. A parameter to which no loss gives a gradient moves as one whose gradient is 0.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from runtime import parallel
from runtime.errors import UserError
from tuning.optimizer import LossScale, Optimizer

if TYPE_CHECKING:
    from tuning.train_options import OptimizerOptions

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")  # elements, of which DeepSpeed takes half a billion
COMPILED_SUMS = "deepspeed_shm_comm"  # compiled for minutes at first use on a CPU; gloo sums as well

Loss = Callable[..., Tensor]


class Passes(torch.nn.Module):
    """What DeepSpeed calls in a forward pass: a function that uses the modules."""

    def __init__(self, modules: torch.nn.Module, function: Loss) -> None:
        super().__init__()
        self.modules_used, self.function = modules, function

    def forward(self, *arguments: Any) -> Tensor:
        return self.function(*arguments)


class DividedOptimizer(Optimizer):
    """The model is taken over when training begins, after load() has put an earlier state into it."""

    is_divided = True

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], options: OptimizerOptions,
                 modules: torch.nn.Module, loss: Loss, zero: Mapping[str, Any], parts: int,
                 is_split: Callable[[str], bool]):
        """modules: all that the loss uses. loss: a part of a step -> its mean loss. zero: zero_optimization of
        DeepSpeed's JSON. parts: passes of a step."""
        if not parameters:
            raise UserError("nothing learns: all of the model is frozen, and there is nothing beside it")
        self.parameters, self.options, self.scale = dict(parameters), options, None
        self.loss_of, self._modules = loss, modules
        self._zero, self._parts, self._passes = dict(zero), parts, 0
        self._engine: Any = None
        for name, parameter in parameters.items():
            parameter.model_parallel = is_split(name)  # DeepSpeed's mark of what counts on each tensor-parallel rank

    @property
    def engine(self) -> Any:
        if self._engine is None:
            self._engine = self._begun()
        return self._engine

    def _begun(self) -> Any:
        deepspeed = imported()
        moving = self.made()[0]
        engine, *_ = deepspeed.initialize(model=Passes(self._modules, self.loss_of), optimizer=moving,
                                          config=self._config(), mpu=parallel.mpu if parallel.size() > 1 else None,
                                          dist_init_required=False)
        begin_moments(engine.optimizer)
        return engine

    def made(self) -> list[torch.optim.Optimizer]:
        self.masters = self.parameters  # DeepSpeed makes the masters
        return super().made()

    def _config(self) -> dict[str, Any]:
        options, some = self.options, next(iter(self.parameters.values()))
        largest = sum(parameter.numel() for parameter in self.parameters.values())
        zero = self._zero | {name: min(largest, int(self._zero.get(name, largest))) for name in BUCKETS}
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": self._parts,
            "gradient_clipping": options.clip_grad, "zero_optimization": zero, "communication_data_type": "fp32",
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False}  # torch's AdamW is as fast on a CPU, and needs no compiler
        if some.dtype == torch.float16:
            scale = 0 if options.loss_scale is None else options.loss_scale
            config["fp16"] = {"enabled": True, "loss_scale": scale, "hysteresis": options.hysteresis,
                              "loss_scale_window": options.loss_scale_window, "min_loss_scale": options.min_scale}
        elif some.dtype == torch.bfloat16:
            config["bf16"] = {"enabled": True}
        return config

    def loss(self, *arguments: Any) -> Tensor:
        """The loss of a part, computed by DeepSpeed's forward pass, which has all weights."""
        return self.engine(*arguments)

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss * parallel.data_parallel_size(), scale_wrt_gas=False)  # it takes means over ranks
        self._passes += 1
        if self._passes % self._parts:
            self.engine.step()  # only counts

    def move(self, rate: float, is_split: Callable[[str], bool], check: Callable[[float], None]) -> tuple[float, bool]:
        engine = self.engine
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        engine.step()
        norm = float(engine.get_global_grad_norm())
        if not getattr(engine.optimizer, "overflow", False):
            check(norm)
            return norm, False
        if next(iter(self.parameters.values())).dtype != torch.float16 or self.options.loss_scale is not None:
            check(math.inf)
        return norm, True

    @contextmanager
    def whole(self) -> Iterator[None]:
        if self._zero["stage"] < 3 or self._engine is None:
            yield
            return
        with imported().zero.GatheredParameters(list(self._engine.module.parameters())):
            yield

    def state(self) -> dict[str, Any]:
        """As the plain optimiser's; only on the ranks that write does it hold tensors. Every rank calls it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self.engine  # noqa: B018  a run that ends before its first step
        is_writer, step = parallel.data_parallel_rank() == 0, self._steps()
        found: dict[str, Any] = {"parameters": {}, "moments": {}}
        for name, parameter in self.parameters.items():
            master = safe_get_full_fp32_param(parameter)
            moments = {} if not step else {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            if is_writer:
                found["parameters"][name] = master.reshape(shape_of(parameter)).cpu()
                if step:
                    found["moments"][name] = {"step": torch.tensor(float(step))} | {
                        key: tensor.reshape(shape_of(parameter)).cpu() for key, tensor in moments.items()}
        return found | {"scale": self._scale()}

    def _steps(self) -> int:
        """Updates so far."""
        return next((int(state["step"]) for state in self.engine.optimizer.optimizer.state.values() if "step" in state),
                    0)

    def _scale(self) -> list | None:
        scaler = getattr(self.engine.optimizer, "loss_scaler", None)
        if next(iter(self.parameters.values())).dtype != torch.float16:
            return None
        if self.options.loss_scale is not None:
            return [self.options.loss_scale, 0, self.options.hysteresis]
        good = (scaler.cur_iter - scaler.last_overflow_iter - 1) % self.options.loss_scale_window
        return [scaler.cur_scale, good, scaler.cur_hysteresis]

    @torch.no_grad()
    def load(self, state: Mapping[str, Any]) -> None:
        if set(state["parameters"]) != set(self.parameters):
            raise KeyError(*set(state["parameters"]) ^ set(self.parameters))
        for name, parameter in self.parameters.items():
            parameter.copy_(state["parameters"][name])
        optimizer = self.engine.optimizer
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        step = max((int(moments["step"]) for moments in state["moments"].values()), default=0)
        for moments in optimizer.optimizer.state.values():
            moments["step"].fill_(step)
        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, state["parameters"][name].float().to(parameter.device))
            for key in MOMENTS if step else ():
                moment = state["moments"].get(name, {}).get(key, torch.zeros(shape_of(parameter)))
                safe_set_full_optimizer_state(parameter, moment.to(parameter.device), key)
        if state["scale"] is not None:
            scale, scaler = LossScale(*state["scale"]), optimizer.loss_scaler
            scaler.cur_scale, scaler.cur_hysteresis = scale.value, scale.left
            scaler.cur_iter, scaler.last_overflow_iter = 0, -1 - scale.good


def shape_of(parameter: Tensor) -> torch.Size:
    """Of the whole, which stage 3 leaves no rank."""
    return getattr(parameter, "ds_shape", parameter.shape)


def begin_moments(optimizer: Any) -> None:
    """Moments of 0 for all groups, as torch's AdamW begins them. Else DeepSpeed's stages 1 and 2 link parameters with
    what there is after the first group's first step, and never find those of the other groups."""
    is_third = hasattr(optimizer, "fp32_partitioned_groups_flat")
    for part in optimizer.fp32_partitioned_groups_flat if is_third else optimizer.single_partition_of_fp32_groups:
        optimizer.optimizer.state[part] = {"step": torch.zeros((), device=part.device),
                                           **{key: torch.zeros_like(part) for key in MOMENTS}}
    if not is_third:
        optimizer._lazy_init_hp_params_optimizer_state()


def imported() -> Any:
    """DeepSpeed, which takes seconds, and tells its users much."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    if not deepspeed.comm.is_initialized():
        deepspeed.ops.__compatible_ops__[COMPILED_SUMS] = False
        os.environ.setdefault("LOCAL_RANK", "0")  # of a single process
        deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False, dist_init_required=False,
                                   verbose=False)
    return deepspeed
