"""On which machines a model runs, and how: the table of the README."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from glm.config import ModelConfig
from glm.spec import undivided
from planning import devices, memory, speed
from planning.shapes import Format, Setup

# GPUs of a machine. The first five are those that the original lists.
MACHINES = (("a100-40g", 8), ("v100-32g", 8), ("rtx-3090", 8), ("rtx-3090", 4), ("rtx-2080ti", 8), ("a100-80g", 4),
            ("a100-40g", 4), ("h100-80g", 4), ("h200", 2))
FORMATS = (Format("fp16"), Format("fp16", 8), Format("fp16", 4))
MOST_STREAMED = 0.1  # of the weights; with more, a finer precision is not worth the time
HEAD = ("GPUs", "weights", "offloaded", "weights on each", "with {} tokens", "of", "context of {}", "a token")


def table(config: ModelConfig) -> list[str]:
    """Markdown. Sequences of the model's whole length, one at a time, of which half is read."""
    length = config.max_sequence_length
    head = [cell.format(f"{length:,}" if number == 4 else f"{length // 2:,}") for number, cell in enumerate(HEAD)]
    rule = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows(config))]


def rows(config: ModelConfig) -> Iterator[list[str]]:
    for name, count in MACHINES:
        device = devices.named(name)
        if undivided(config, count) is not None:
            continue
        for setup in ways(config, device, count):
            room = memory.plan(setup)
            times = speed.plan(setup, room, device, None)
            offloaded = f"{room.streamed / 1e9:.1f} GB" if room.streamed else "–"
            precision = f"INT{setup.run.bits}" if setup.run.bits else "FP16"
            yield [f"{count} × {device.label}", precision, offloaded, f"{room.weights / 1e9:.1f} GB",
                   f"{room.device / 1e9:.1f} GB", f"{device.memory / 1e9:.1f} GB", f"{times.prefill:.2g} s",
                   f"{1000 * times.token:.0f} ms"]


def ways(config: ModelConfig, device: devices.Device, count: int) -> Iterator[Setup]:
    """The finest precision that fits, and before it a finer one of which a small part must be streamed."""
    length = config.max_sequence_length
    for held in FORMATS:
        setup = Setup(config, held, "cuda", count, context=length // 2, new_tokens=length - length // 2)
        if memory.plan(setup).device <= device.memory:
            yield setup
            return
        streamed = offloading(setup, device)
        if streamed is not None:
            yield streamed


def offloading(setup: Setup, device: devices.Device) -> Setup | None:
    """With as many layers on the device as fit; None where more than a small part would have to come for every pass."""
    total = memory.on_device(setup)[0]
    beside = memory.plan(setup).device - total
    tried = replace(setup, offload_limit=device.memory - beside)
    room = memory.plan(tried)
    fits = room.device <= device.memory and tried.offload_limit >= memory.least_offloaded(setup)
    return tried if fits and room.streamed <= MOST_STREAMED * total else None
