"""How long tasks will take: their own requests and batches, each timed by planning.speed instead of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evaluation.discovery import load_tasks
from evaluation.plan import Limit, Work, look, prepare
from evaluation.requests import GenerateRequest, Request, cpu_tokens, gpu_tokens, shape_of
from generation.batching import CPU_READ_TOKENS
from planning import memory, speed
from planning.devices import Device
from planning.shapes import Setup

ITEM = 3e-4  # seconds that the host needs for every request beside the model: inputs, journal, metrics


def hours(paths: Sequence[str], data_path: Path, tokenizer, setup: Setup, device: Device, disk: float | None,
          limit: int | None, max_tokens: int | None, max_items: int | None,
          allow_missing: bool = False) -> dict[str, float]:
    """By the task's name. Answers that are generated count as long as they may become, so that theirs are the most
    that it may take. Raises UserError as the evaluation does for task files and data."""
    longest = setup.config.max_sequence_length
    configs = load_tasks(paths, data_path, longest)
    found = look(configs, allow_missing)

    def budget(requests: Sequence[Request]) -> int:
        return max_tokens or batch_tokens(setup, device, requests)

    head = None if limit is None else Limit(limit)
    works = [prepare(config, tokenizer, found[config.name].rows, head, budget, max_items, setup.config)
             for config in configs if found[config.name].reason is None]
    return {work.config.name: seconds(work, setup, device, disk) / 3600 for work in works}


def batch_tokens(setup: Setup, device: Device, requests: Sequence[Request]) -> int:
    """evaluation.requests.default_max_tokens for a model that is not there."""
    per_place = 2 * setup.config.num_layers * setup.heads_width * setup.element
    if setup.kind == "cuda":
        return gpu_tokens(setup.config, setup.element, per_place, device.memory, memory.on_device(setup)[0])
    return cpu_tokens(requests, per_place)


def seconds(work: Work, setup: Setup, device: Device, disk: float | None) -> float:
    def of(batch: Sequence[int]) -> float:
        step = work.at_once(batch)
        parts = [batch[begin:begin + step] for begin in range(0, len(batch), step)]
        return sum(batch_seconds([work.requests[index] for index in part], setup, device, disk) for part in parts)

    return sum(map(of, work.batches))


def batch_seconds(requests: Sequence[Request], setup: Setup, device: Device, disk: float | None) -> float:
    rows = len(requests)
    if isinstance(requests[0], GenerateRequest):
        beams = requests[0].params.num_beams
        context = max(len(request.context) for request in requests) - 1
        most = max(request.limit for request in requests)
        read = max(CPU_READ_TOKENS, context) if setup.kind == "cpu" else None
        asked = replace(setup, rows=rows * beams, read_rows=rows, context=max(1, context), new_tokens=most,
                        pass_tokens=read)
        times = speed.plan(asked, memory.plan(asked), device, disk)
        return times.prefill + most * times.token + rows * ITEM
    sequences, width = shape_of(requests)
    places = sum(len(ids) for request in requests for ids in request.segments)
    if setup.run.precision == "fp32":
        from evaluation.scorer import padded_places, padded_width  # imports torch

        places, width = padded_places(places), padded_width(width, sequences)
    asked = replace(setup, rows=sequences, read_rows=sequences, context=width, new_tokens=0, pass_tokens=None,
                    scored=places)
    times = speed.plan(asked, memory.plan(asked), device, disk)
    return times.prefill + speed.head_seconds(asked, device) + rows * ITEM
