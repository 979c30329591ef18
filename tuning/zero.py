"""AdamW whose state is divided over the data-parallel ranks: DeepSpeed's ZeRO behind the interface of tuning.optimizer.

Stage 1 divides masters and moments, 2 the gradients, too, 3 the weights, too; offloading keeps what is divided in the
host's memory. States have the form of the plain optimiser's, whole and by name: a run can go on with another stage,
another number of ranks, or without ZeRO. A parameter without a gradient moves as one whose gradient is 0.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from runtime import parallel
from runtime.errors import UserError
from tuning.optimizer import Optimizer

if TYPE_CHECKING:
    from tuning.train_options import OptimizerOptions

MOMENTS = ("exp_avg", "exp_avg_sq")
BUCKETS = ("reduce_bucket_size", "allgather_bucket_size")  # elements, of which DeepSpeed takes half a billion
ALIGNED = 2  # elements, of whose number DeepSpeed wants a multiple
COMPILED_SUMS = "deepspeed_shm_comm"  # compiled for minutes at first use on a CPU; gloo sums as well

Loss = Callable[..., Tensor]


class Passes(torch.nn.Module):
    """What DeepSpeed calls in a forward pass: a function, beside all that is to be divided."""

    def __init__(self, divided: torch.nn.Module, function: Loss) -> None:
        super().__init__()
        self.divided, self.function = divided, function

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
        super().__init__(parameters, options)
        self._first = narrowed(parameters)
        divided = modules if zero["stage"] == 3 else torch.nn.ParameterList(parameters.values())
        dtypes = {each.dtype for each in parameters.values()}
        if dtypes != {torch.float32}:  # DeepSpeed converts all that it divides
            dtypes |= {each.dtype for each in divided.parameters() if each.is_floating_point()}
        if len(dtypes) > 1:
            raise UserError("zero_optimization: what is divided must have one precision, and this has "
                            f"{', '.join(sorted(map(str, dtypes)))}; give --dtype float32, or leave the stage away")
        self._divided, self._modules = Passes(divided, loss), modules
        self._zero, self._parts = dict(zero), parts
        self._engine: Any = None
        for name, parameter in parameters.items():
            parameter.model_parallel = is_split(name)  # DeepSpeed's mark of what counts on each tensor-parallel rank

    def masters_of(self, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.nn.Parameter]:
        return dict(parameters)  # DeepSpeed makes the masters, divided

    @property
    def engine(self) -> Any:
        if self._engine is None:
            try:
                self._engine, *_ = imported().initialize(
                    model=self._divided, optimizer=self._moving[0], config=self._config(),
                    mpu=parallel.mpu if parallel.size() > 1 else None, dist_init_required=False)
            except (AssertionError, ValueError) as error:
                raise UserError(f"zero_optimization: DeepSpeed refuses it: {' '.join(str(error).split())}") from None
            begin_moments(self._engine.optimizer)
            for name, value in self._first.items():
                put(self.parameters[name], value)
            self._first.clear()
        return self._engine

    def _config(self) -> dict[str, Any]:
        dtype = next(iter(self.parameters.values())).dtype
        largest = sum(parameter.numel() for parameter in self.parameters.values())
        largest += largest % ALIGNED
        zero = self._zero | {name: min(largest, int(self._zero.get(name, largest))) for name in BUCKETS}
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": self._parts,
            "gradient_clipping": self.options.clip_grad, "zero_optimization": zero, "communication_data_type": "fp32",
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False}  # torch's fused AdamW needs no compiler
        if dtype == torch.float16:
            config["fp16"] = {"enabled": True, "loss_scale": self._scale}  # constant there: backward() sets it
        elif dtype == torch.bfloat16:
            config["bf16"] = {"enabled": True}
        return config

    def loss(self, *arguments: Any) -> Tensor:
        """The loss of a part, computed by DeepSpeed's forward pass, which has all weights."""
        return self.engine(*arguments)

    def backward(self, loss: Tensor) -> None:
        engine = self.engine
        if self.scale is not None:
            engine.optimizer.loss_scaler.cur_scale = self._scale
        engine.backward(loss * parallel.data_parallel_size(), scale_wrt_gas=False)  # it takes means over ranks
        if not engine.is_gradient_accumulation_boundary():
            engine.step()  # only counts

    @property
    def _scale(self) -> float:
        """With backward()'s number of ranks it makes float16 gradients as large as the plain optimiser's."""
        return self.loss_factor / parallel.data_parallel_size()

    def move(self, rate: float, is_split: Callable[[str], bool], check: Callable[[float], None]) -> tuple[float, bool]:
        engine = self.engine
        for group in engine.optimizer.param_groups:
            group["lr"] = rate
        engine.step()
        norm = math.inf if engine.optimizer.overflow else float(engine.get_global_grad_norm())
        is_skipped = self.skips(norm)
        if not is_skipped:
            check(norm)
        return norm, is_skipped

    @property
    def _is_parted(self) -> bool:
        """Whether no rank holds all weights."""
        return self._zero["stage"] == 3 and self._engine is not None

    def whole(self) -> AbstractContextManager[None]:
        """Stage 3: each rank holds all weights while it lasts."""
        if not self._is_parted:
            return super().whole()
        return imported().zero.GatheredParameters(list(self._modules.parameters()))

    def written(self) -> AbstractContextManager[None]:
        """Stage 3: one parameter at a time becomes whole, in the host's memory of the ranks that write."""
        return self._copied() if self._is_parted else super().written()

    @contextmanager
    def _copied(self) -> Iterator[None]:
        parameters, is_writer = list(self._modules.parameters()), parallel.data_parallel_rank() == 0
        kept, copies = [parameter.data for parameter in parameters], []
        for parameter in parameters:
            with imported().zero.GatheredParameters([parameter]):
                copies.append(parameter.detach().to("cpu", copy=True) if is_writer else None)
        for parameter, copy in zip(parameters, copies, strict=True):
            if copy is not None:
                parameter.data = copy
        try:
            yield
        finally:
            for parameter, data in zip(parameters, kept, strict=True):
                parameter.data = data

    def held(self) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """As the plain optimiser's; empty on the ranks that do not write. Every rank calls it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        step = next(iter(self.engine.optimizer.optimizer.state.values()))["step"].cpu()
        masters, moments = {}, {}
        for name, parameter in self.parameters.items():
            shape = shape_of(parameter)
            master = safe_get_full_fp32_param(parameter).reshape(shape)
            own = {key: safe_get_full_optimizer_state(parameter, key).reshape(shape) for key in MOMENTS}
            if parallel.data_parallel_rank() == 0:
                masters[name] = master.cpu()
                moments[name] = {"step": step.clone(), **{key: each.cpu() for key, each in own.items()}}
        return masters, moments

    def take(self, masters: Mapping[str, Tensor], moments: Mapping[str, Mapping[str, Tensor]]) -> None:
        step = max((float(each["step"]) for each in moments.values()), default=0.0)
        for each in self.engine.optimizer.optimizer.state.values():
            each["step"].fill_(step)
        for name, parameter in self.parameters.items():
            put(parameter, masters[name].float())
            for key in MOMENTS:
                put(parameter, moments[name][key] if name in moments else torch.zeros(shape_of(parameter)), key)


def narrowed(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, Tensor]:
    """Gives all the precision of those that have less, which DeepSpeed wants: a head, a prompt encoder beside a model
    of float16 compute in float16 then, as in the original. -> the float32 values, with which their masters begin."""
    narrow = {parameter.dtype for parameter in parameters.values()} - {torch.float32}
    if len(narrow) != 1:
        return {}
    values = {name: parameter.detach().clone() for name, parameter in parameters.items()
              if parameter.dtype == torch.float32}
    for name in values:
        parameters[name].data = parameters[name].data.to(*narrow)
    return values


def shape_of(parameter: Tensor) -> torch.Size:
    """Of the whole, which stage 3 leaves no rank."""
    return getattr(parameter, "ds_shape", parameter.shape)


def put(parameter: torch.nn.Parameter, value: Tensor, moment: str | None = None) -> None:
    """This rank's part of a parameter's master, or of one of its moments. value: the whole."""
    from deepspeed import utils

    value = value.to(parameter.device)
    if not hasattr(parameter, "ds_id"):
        utils.safe_set_full_fp32_param(parameter, value) if moment is None else (
            utils.safe_set_full_optimizer_state(parameter, value, moment))
        return
    size = parameter.ds_tensor.numel()  # the last rank's is filled up
    parts = torch.zeros(size * parallel.data_parallel_size(), device=value.device)
    parts[:value.numel()] = value.flatten()
    own = parts[parallel.data_parallel_rank() * size:][:size]
    utils.safe_set_local_fp32_param(parameter, own) if moment is None else (
        utils.safe_set_local_optimizer_state(parameter, own, moment))


def begin_moments(optimizer: Any) -> None:
    """Moments of 0, as torch begins them: DeepSpeed's parameters find those alone that are there when the first group
    has moved."""
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
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # DeepSpeed's calls
    if not deepspeed.comm.is_initialized():
        deepspeed.ops.__compatible_ops__[COMPILED_SUMS] = False
        os.environ.setdefault("LOCAL_RANK", "0")  # of a single process
        deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False, dist_init_required=False,
                                   verbose=False)
    return deepspeed
