"""What a DeepSpeed JSON says, in the words of this program: the originals' files are read as they are.

A value that the command line says, too, must be the same: which of both would win is nothing that a user should have to
know. "auto" leaves a value to the command line, as Hugging Face's Trainer has it. Knows neither torch nor DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from runtime.errors import UserError, shown
from runtime.reading import read_json
from tuning.options import CheckpointOptions
from tuning.train_options import OptimizerOptions, TrainOptions

AUTO = "auto"
OPTIMIZERS = ("adam", "adamw")
NUMBERS: dict[str, str] = {  # place in the JSON -> field of OptimizerOptions
    "optimizer.params.lr": "lr", "optimizer.params.eps": "adam_eps", "optimizer.params.weight_decay": "weight_decay",
    "gradient_clipping": "clip_grad", "fp16.loss_scale_window": "loss_scale_window", "fp16.hysteresis": "hysteresis",
    "fp16.min_loss_scale": "min_scale",
}
OFFLOADS, HOST = ("offload_optimizer", "offload_param"), "cpu"
OF_ZERO = {
    "stage", *OFFLOADS, "cpu_offload", "contiguous_gradients", "overlap_comm", "reduce_scatter", "sub_group_size",
    "reduce_bucket_size", "allgather_partitions", "allgather_bucket_size", "round_robin_gradients",
    "ignore_unused_parameters", "load_from_fp32_weights", "elastic_checkpoint", "stage3_max_live_parameters",
    "stage3_max_reuse_distance", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
    "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save"}  # what DeepSpeed is told
MICRO, PARTS, WHOLE = "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"
USED = {"optimizer", "gradient_clipping", "fp16", "bf16", "zero_optimization", MICRO, PARTS, WHOLE,
        "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer"}  # keys of the file


@dataclass(frozen=True)
class DeepSpeed:
    """What remains for DeepSpeed itself."""

    zero: Mapping[str, Any] = field(default_factory=dict)  # zero_optimization, with its own names
    unused: tuple[str, ...] = ()  # keys of the file that say something and change nothing

    @property
    def stage(self) -> int:
        return self.zero.get("stage", 0)

    @property
    def is_offloaded(self) -> bool:
        return any(device_of(self.zero, part) == HOST for part in OFFLOADS)


@dataclass(frozen=True)
class Settled:
    checkpoint: CheckpointOptions
    options: TrainOptions
    optimizer: OptimizerOptions
    deepspeed: DeepSpeed = DeepSpeed()


def settled(checkpoint: CheckpointOptions, options: TrainOptions, optimizer: OptimizerOptions, said: Iterable[str],
            ranks: int) -> Settled:
    """The options with what the JSON of --deepspeed-config says. UserError for a value that it and a flag say
    differently, naming both places, and for what cannot be meant.

    said: names of the flags of the command line. ranks: of data parallelism.
    """
    path = options.deepspeed_config
    if path is None:
        return Settled(checkpoint, options, optimizer)
    config, said = read_json(path), set(said)
    if not isinstance(config, dict):
        raise UserError(f"{path}: must hold a JSON object, holds {shown(config)}")
    both = _Both(path, config, said)
    numbers = {name: value for place, name in NUMBERS.items()
               if (value := both.value(place, name, getattr(optimizer, name))) is not None}
    betas = both.at("optimizer.params.betas")
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != 2:
            raise UserError(f"{path}: optimizer.params.betas is {shown(betas)}; it must be two numbers")
        for number, name in enumerate(("adam_beta1", "adam_beta2")):
            numbers[name] = both.same("optimizer.params.betas", name, betas[number], getattr(optimizer, name))
    scale = both.value("fp16.loss_scale", "loss_scale", optimizer.loss_scale)
    if scale:  # 0: it finds itself
        numbers["loss_scale"] = scale
    kind = both.at("optimizer.type")
    if kind is not None and str(kind).lower() not in OPTIMIZERS:
        raise UserError(f"{path}: optimizer.type is {shown(kind)}; only Adam and AdamW train as the originals do")
    zero = _zero(both)
    if optimizer.optimizer != "adam" and (kind is not None or zero.get("stage")):
        raise UserError(f"--optimizer {optimizer.optimizer}, but {path} "
                        + (f"says {kind}" if kind is not None else "divides by zero_optimization, which is AdamW's")
                        + "; leave one of them out")
    return Settled(_precision(both, checkpoint), _batch(both, options, ranks), replace(optimizer, **numbers),
                   DeepSpeed(zero, tuple(key for key, value in config.items() if key not in USED and value)))


@dataclass(frozen=True)
class _Both:
    """A JSON beside a command line."""

    path: Path
    config: Mapping[str, Any]
    said: set[str]

    def at(self, place: str) -> Any:
        """None where the file says nothing, or "auto"."""
        found: Any = self.config
        for key in place.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        return None if found == AUTO else found

    def value(self, place: str, name: str, flag: Any) -> float | int | None:
        """A number of the file; None where it says none."""
        found = self.at(place)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, (int, float)) or found < 0:
            raise UserError(f"{self.path}: {place} is {shown(found)}; it must be a number of 0 or more")
        return self.same(place, name, found, flag)

    def same(self, place: str, name: str, found: Any, flag: Any) -> Any:
        if name in self.said and found != flag:
            raise UserError(f"--{name.replace('_', '-')} is {flag}, but {place} of {self.path} is {found}: say it in "
                            "one place, or the same in both")
        return found


def device_of(zero: Mapping[str, Any], part: str) -> str:
    """Where a part is kept: "none" is where the model is."""
    found = zero.get(part) or {}
    return found.get("device", "none") if isinstance(found, dict) else shown(found)


def _zero(both: _Both) -> Mapping[str, Any]:
    """zero_optimization without what is automatic. UserError for what cannot be done."""
    path, zero = both.path, both.at("zero_optimization") or {}
    if not isinstance(zero, dict) or isinstance(zero.get("stage"), bool) or zero.get("stage", 0) not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization must be an object whose stage is 0, 1, 2 or 3")
    if unknown := sorted(set(zero) - OF_ZERO):
        raise UserError(f"{path}: zero_optimization.{unknown[0]} cannot be used here; leave it away (used are "
                        f"{', '.join(sorted(OF_ZERO))})")
    zero = dict(zero)
    if zero.pop("cpu_offload", False) is True:  # the name of old versions
        zero.setdefault(OFFLOADS[0], {"device": HOST})
    for part in OFFLOADS:
        if (device := device_of(zero, part)) not in ("none", HOST):
            raise UserError(f"{path}: zero_optimization.{part}.device is {device}; weights, gradients and moments are "
                            f"kept with the model (none) or in the host's memory ({HOST})")
    stage = zero.get("stage", 0)
    for part, least in zip(OFFLOADS, (1, 3), strict=True):
        if stage < least and device_of(zero, part) == HOST:
            raise UserError(f"{path}: zero_optimization.{part} needs stage {least}{' or more' * (least < 3)}, and the "
                            f"stage is {stage}")
    return {key: value for key, value in zero.items() if value != AUTO}


def _precision(both: _Both, checkpoint: CheckpointOptions) -> CheckpointOptions:
    for key, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        if both.at(f"{key}.enabled") is True:
            return replace(checkpoint, dtype=both.same(f"{key}.enabled (true)", "dtype", dtype, checkpoint.dtype))
    return checkpoint


def _batch(both: _Both, options: TrainOptions, ranks: int) -> TrainOptions:
    """There a batch is what is computed at once, here the rows of a step, which may be computed in parts."""
    parts = both.value(PARTS, PARTS, options.gradient_accumulation_steps)
    parts = options.gradient_accumulation_steps if parts is None else parts
    micro, whole = both.value(MICRO, "", None), both.value(WHOLE, "", None)
    if micro is None and whole is None:
        return replace(options, gradient_accumulation_steps=parts)
    size = micro * parts if micro is not None else whole // ranks
    if whole is not None and size * ranks != whole:
        raise UserError(f"{both.path}: {WHOLE} is {whole}, but {MICRO} {micro} times {PARTS} {parts} times {ranks} "
                        f"ranks is {size * ranks}")
    place = f"{MICRO} times {PARTS}" if micro is not None else WHOLE
    return replace(options, gradient_accumulation_steps=parts,
                   batch_size=both.same(place, "batch_size", size, options.batch_size))
