"""python -m tuning plan: what a training takes of memory and time, before it is started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from commands.tuning.common import settings_of
from commands.tuning.train import parser_of
from planning import devices, machine
from planning.check import Room
from planning.devices import Device
from planning.shapes import weights
from planning.table import numerous, row, words
from runtime.arguments import chosen
from runtime.errors import UserError
from runtime.program import FAILED
from runtime.show import duration
from tuning.deepspeed_config import settled
from tuning.options import CheckpointOptions, PartsOptions
from tuning.plan import Job, Zero, job_of, learned_parameters
from tuning.plan_fit import Choice, choice_of, lack, room_of, rows, ways
from tuning.plan_memory import Needs, learned_parts, needs
from tuning.plan_time import Pace, epoch_seconds
from tuning.train_options import OptimizerOptions, TrainOptions

ABOUT = """\
What a training takes of memory and time: the flags are those of train, nothing is loaded.

    python -m tuning plan --task rte --data-dir RTE --cloze-eval --load glm-large --epochs 50
    python -m tuning plan --load glm-10b --seq-length 512 --batch-size 8 --dtype bfloat16 --device a100-80g

Without --task all rows are --seq-length tokens long, and scored. Memory is arithmetic on what a training allocates;
time is from this machine's rates, measured now, or for a GPU by name (python -m glm plan --devices lists them) from its
maker's. Exit codes: 0 the training fits, 2 it does not, or a mistake in the arguments (one line).
"""


def main(argv: Sequence[str]) -> int:
    parser = parser_of("plan", ABOUT)
    parser.add_argument("--json", action="store_true", help="as JSON")
    arguments = parser.parse_args(argv)
    if arguments.load is None:
        raise UserError("no checkpoint was named: --load DIR")
    settings = settings_of(arguments)
    ranks = max(1, int(os.environ.get("WORLD_SIZE", "1")) // (arguments.model_parallel_size or 1))
    given = settled(chosen(CheckpointOptions, arguments), chosen(TrainOptions, arguments),
                    chosen(OptimizerOptions, arguments), parser.said(argv), ranks)
    options, model = given.options, (given.checkpoint, chosen(PartsOptions, arguments))
    data = None
    if settings.data.task is not None:
        from tuning.training_data import read

        data = read(settings, options, arguments.load, job_of(*model, settings, options, None).ranks)
    job = job_of(*model, settings, options, data, zero=Zero.of(given.deepspeed),
                 optimizer=given.optimizer.optimizer)
    device, room = place_of(job, arguments.device)
    choice, wanted = choice_of(settings, options), needs(job)
    fits = lack(wanted, room) is None
    found, seconds = as_json(job, wanted, room), epoch_seconds(job, device, pace_of(job, device, fits))
    if arguments.json:
        print(json.dumps(found | {"seconds": seconds, "fits": fits}, indent=2))
    else:
        print("\n".join(lines(job, choice, wanted, device, room, seconds)))
    return 0 if fits else FAILED


def place_of(job: Job, name: str) -> tuple[Device, Room]:
    """The device with its rates, and how much is free; of a GPU that is named alone its own memory counts."""
    if name == "cpu":
        with machine.measured():
            return machine.processor(job.setup, sum(map(job.setup.run.bytes, weights(job.setup)))), room_of(name)
    if name.partition(":")[0] != "cuda":
        device = devices.named(name)
        endless = float("inf")
        return device, Room(endless, endless, endless, device.memory, device.label)
    from commands.plan import gpu_here

    _, gpus = machine.place_of(name, 1)
    return gpu_here(gpus), room_of(name)


def pace_of(job: Job, device: Device, fits: bool) -> Pace:
    """As a few layers show it, on this machine's processor. fits: whether there is memory for that."""
    if device.kind != "cpu" or not fits:
        return Pace()
    from tuning.plan_trial import pace

    return pace(job, device)


def lines(job: Job, choice: Choice, wanted: Needs, device: Device, room: Room, seconds: float) -> Iterator[str]:
    setup, on_cpu = job.setup, device.kind == "cpu"
    yield f"{numerous(sum(weight.count for weight in weights(setup)))} weights, {words(setup)}, on {device.label}"
    yield f"{numerous(learned_parameters(job))} parameters learn: {' and '.join(learned_parts(job.learned))}"
    yield f"at most {rows(wanted.size)} at a time, {wanted.size.wanted} of them scored"
    yield ""
    yield f"{'in memory' if on_cpu else 'on the device'}{', each rank' if room.ranks * setup.degree > 1 else ''}"
    for name, size in parts_of(wanted, on_cpu):
        if size:
            yield row(name, size)
    free = room.host if on_cpu else room.device
    total = wanted.host if on_cpu else wanted.device
    found = lack(wanted, room)
    verdict = "fits" if found is None else f"TOO MUCH: {found.where} has {found.free / 1e9:.2f}"
    yield f"{row('at most', total)} of {free / 1e9:.2f}: {verdict}"
    if found is not None:
        for way in ways(job, choice, lambda tried: lack(needs(tried), room) is None):
            yield f"  would fit with {way}"
    if not on_cpu:
        yield row("host memory at most", wanted.host)
    yield row("copies while it is saved", wanted.saving)
    yield ""
    yield f"{'a step':<32}{duration(seconds / max(1, job.of_epoch)):>12}"
    yield f"{f'an epoch, {job.of_epoch:.0f} steps':<32}{duration(seconds):>12}"
    yield f"{f'all {job.steps} steps':<32}{duration(seconds * job.steps / max(1, job.of_epoch)):>12}"


def parts_of(wanted: Needs, on_cpu: bool) -> list[tuple[str, float]]:
    return [("weights", wanted.weights), ("gradients", wanted.gradients), ("moments of the optimiser", wanted.moments),
            ("activations and logits", wanted.activations), ("samples", wanted.samples),
            ("Python and torch" if on_cpu else "CUDA", wanted.process)]


def as_json(job: Job, wanted: Needs, room: Room) -> dict[str, Any]:
    """Bytes of one rank."""
    return {"learned_parameters": learned_parameters(job), "rows": wanted.size.rows, "width": wanted.size.width,
            "weights": wanted.weights, "gradients": wanted.gradients, "moments": wanted.moments,
            "activations": wanted.activations, "samples": wanted.samples, "process": wanted.process,
            "saving": wanted.saving, "device": wanted.device, "host": wanted.host, "ranks": room.ranks,
            "of_epoch": job.of_epoch}
