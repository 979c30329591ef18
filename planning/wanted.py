"""From a command line's arguments to the run that they ask for: its Setup, and where it is to run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace

from glm.checkpoint import read_config
from glm.config import FIELDS, ModelConfig
from glm.spec import undivided
from planning import machine, stored
from planning.memory import cache_bytes, least_offloaded
from planning.shapes import Format, Setup
from planning.stored import Stored
from runtime.errors import UserError

ADDED_TOKENS = 8  # of a prompt without masks: blank, mask, sop, end


@dataclass(frozen=True)
class Use:
    """What generation is to hold in its cache. sizes: bytes of the prompts, of which a token has one at least; none:
    nothing is generated. beams: of each. batch_size: prompts at a time; None: by `bounds`, which is
    generation.batching.bounds. says_new_tokens: the command has a flag --new-tokens for them, as plan does."""

    sizes: tuple[int, ...] = ()
    beams: int = 1
    batch_size: int | None = None
    out_seq_length: int | None = None
    max_gen_length: int | None = None
    bounds: Callable[[int, int], tuple[int, int]] | None = None
    says_new_tokens: bool = False

    def places(self, config: ModelConfig) -> int:
        """That a row certainly has: room for its whole answer is made at once."""
        if not self.prompts(config):
            return 0
        total = self.total(config)
        return total if self.max_gen_length is None else min(total, self.max_gen_length + 1)

    def total(self, config: ModelConfig) -> int:
        return min(self.out_seq_length or config.max_sequence_length, config.max_sequence_length)

    def prompts(self, config: ModelConfig) -> int:
        """Those that are certainly not refused as too long."""
        return sum(size + ADDED_TOKENS < self.total(config) for size in self.sizes)

    def at_once(self, config: ModelConfig, place_bytes: int) -> int:
        """Prompts that certainly share a batch. place_bytes: of one beam's place."""
        prompts = self.prompts(config)
        if self.batch_size is not None:
            return min(self.batch_size, prompts)
        if self.bounds is None or self.max_gen_length is not None or not prompts:
            return min(1, prompts)  # rows may then be longer than is known here, and fewer
        rows, places = self.bounds(place_bytes, self.beams)
        return max(1, min(rows, places // self.places(config), prompts))


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
    bits, group_size = (getattr(arguments, f"quantization_{name}", None) for name in ("bit_width", "group_size"))
    if file is not None and file.bits is not None:
        bits, group_size = file.bits, file.group_size
    degree = getattr(arguments, "model_parallel_size", None) or (1 if found is None else found.parts)
    check_divisible(config, degree)
    setup = Setup(config, Format(precision, bits, group_size), kind, degree, file,
                  mapped=found is None or found.is_mapped, parts=found and found.parts,
                  context=1, new_tokens=max(0, use.places(config) - 1))
    place_bytes = int(cache_bytes(replace(setup, context=0, new_tokens=1)))  # of one row
    prompts = max(1, use.at_once(config, place_bytes))
    setup = replace(setup, rows=prompts * use.beams, read_rows=prompts)
    limit = getattr(arguments, "offload_memory_limit", None)
    if limit is not None:
        limit *= 1e9
    elif getattr(arguments, "bminf", False):
        limit = least_offloaded(setup)
    return replace(setup, offload_limit=limit)


def check_divisible(config: ModelConfig, degree: int) -> None:
    if degree < 1:
        raise UserError(f"--model-parallel-size {degree}: must be at least 1")
    if (name := undivided(config, degree)) is not None:
        raise UserError(f"{name} {getattr(config, name)} cannot be divided among {degree} tensor-parallel ranks")


def looked_at(arguments: argparse.Namespace, config: ModelConfig) -> Stored | None:
    return None if arguments.load is None else stored.look(arguments.load, config)


def place_of(arguments: argparse.Namespace, ranks: int) -> tuple[str, list[machine.Gpu]]:
    """"cpu", or "cuda" and the GPUs that so many ranks of this host will use."""
    device = arguments.device or ""
    if device == "cpu":
        return "cpu", []
    found = machine.gpus()
    if not device.startswith("cuda") and not found:
        return "cpu", []
    number = device.partition(":")[2]
    if number.isdigit():
        return "cuda", found[int(number):int(number) + 1]
    return "cuda", found[:ranks]


def precision_of(arguments: argparse.Namespace, kind: str, found: list[machine.Gpu], cpu_precision: str) -> str:
    """As is said; else what the device computes fastest. cpu_precision: that of this machine's processor."""
    if getattr(arguments, "precision", None):
        return arguments.precision
    if kind == "cuda":
        return "bf16" if not found or found[0].capability >= machine.BF16_SINCE else "fp16"
    return cpu_precision
