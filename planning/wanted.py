"""From a command line's arguments to the run that they ask for: its Setup, and where it is to run."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass

from glm.checkpoint import read_config
from glm.config import FIELDS, ModelConfig
from glm.errors import UserError
from planning import machine, stored
from planning.memory import least_offloaded
from planning.shapes import Format, Setup
from planning.stored import Stored


@dataclass(frozen=True)
class Use:
    """The sequences that a command is certain to hold in its cache at a time.

    prompts: at once; beams: of each; places: of each beam. sets_length: whether --out-seq-length shortens them.
    """

    prompts: int = 0
    beams: int = 1
    places: int = 0
    sets_length: bool = False


def shapes_of(arguments: argparse.Namespace) -> dict:
    """The single numbers of the shape that the command line gives."""
    return {name: value for name in FIELDS if (value := getattr(arguments, name, None)) is not None}


def config_of(arguments: argparse.Namespace) -> ModelConfig:
    """Of the checkpoint with what else is said; of the preset alone where no checkpoint is named."""
    if arguments.load is not None:
        return read_config(arguments.load, arguments.model, **shapes_of(arguments))
    return ModelConfig.from_name(arguments.model).override(**shapes_of(arguments))


def setup_of(arguments: argparse.Namespace, config: ModelConfig, found: Stored | None, kind: str, precision: str,
             use: Use) -> Setup:
    """kind: "cpu" or "cuda". precision: of the run."""
    file = None if found is None else found.format
    bits, group_size = arguments.quantization_bit_width, getattr(arguments, "quantization_group_size", None)
    if file is not None and file.bits is not None:
        bits, group_size = file.bits, file.group_size
    degree = arguments.model_parallel_size or (1 if found is None else found.parts)
    check_divisible(config, degree)
    setup = Setup(config, Format(precision, bits, group_size), kind, degree, file,
                  mapped=found is None or found.is_mapped, rows=max(1, use.prompts * use.beams),
                  read_rows=max(1, use.prompts), context=1, new_tokens=max(0, use.places - 1))
    limit = getattr(arguments, "offload_memory_limit", None)
    if limit is not None:
        limit *= 1e9
    elif getattr(arguments, "bminf", False):
        limit = least_offloaded(setup)
    return Setup(**vars(setup) | {"offload_limit": limit})


def check_divisible(config: ModelConfig, degree: int) -> None:
    if degree < 1:
        raise UserError(f"--model-parallel-size {degree}: must be at least 1")
    for name in ("num_attention_heads", "hidden_size", "inner_hidden_size", "vocab_size"):
        if getattr(config, name) % degree:
            raise UserError(f"{name} {getattr(config, name)} cannot be divided among {degree} tensor-parallel ranks")


def looked_at(arguments: argparse.Namespace, config: ModelConfig) -> Stored | None:
    return None if arguments.load is None else stored.look(arguments.load, config)


def place_of(arguments: argparse.Namespace) -> tuple[str, list[machine.Gpu]]:
    """"cpu", or "cuda" and the GPUs that this host's ranks will use."""
    device = arguments.device or ""
    if device == "cpu":
        return "cpu", []
    found = machine.gpus()
    if not device.startswith("cuda") and not found:
        return "cpu", []
    number = device.partition(":")[2]
    if number.isdigit():
        return "cuda", found[int(number):int(number) + 1]
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return "cuda", found[:ranks]


def precision_of(arguments: argparse.Namespace, kind: str, found: list[machine.Gpu], cpu_precision: str) -> str:
    """As is said; else what the device computes fastest. cpu_precision: that of this machine's processor."""
    if getattr(arguments, "precision", None):
        return arguments.precision
    if kind == "cuda":
        return "bf16" if not found or found[0].capability >= machine.BF16_SINCE else "fp16"
    return cpu_precision
