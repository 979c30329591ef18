"""How long a training takes: its operations over the rate of the device, and what is moved beside them.

A weight costs 2 operations for every token forward, 2 for the gradient of what comes in, and 2 for its own where it
learns; layers that are computed again cost 2 more. The constants were measured on a CPU
(tools/check_training_plan.py) and are assumed for GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from glm.spec import LINEARS
from kernels import HEAD_BYTES
from planning.devices import Device
from planning.shapes import embedding, linears
from tuning.packing import Size
from tuning.plan import Job, learned_parameters, low_rank_parameters
from tuning.plan_memory import FLOAT, layer_bytes


@dataclass(frozen=True)
class Costs:
    """What one kind of device takes on top of the bounds."""

    products: float  # share of its matrix rate that products reach
    attention: float  # the same of attention
    passes: float  # times that what autograd keeps is written or read
    draw: float  # seconds of a number that decides what is dropped
    update: float  # times that a parameter's values are read or written by the optimiser
    step: float  # seconds of a step's calls for each layer


CPU = Costs(products=0.85, attention=0.5, passes=6.0, draw=2.5e-9, update=14.0, step=3e-3)
CUDA = Costs(products=0.5, attention=0.35, passes=6.0, draw=2e-11, update=14.0, step=1.5e-3)


@dataclass(frozen=True)
class Pace:
    """Times that a device takes longer than is planned here (tuning/plan_trial.py)."""

    part: float = 1.0  # of a pass forward and backward
    update: float = 1.0  # of the optimiser


def epoch_seconds(job: Job, device: Device, pace: Pace = Pace()) -> float:
    """Of an epoch's steps, or of the whole training where it has no epochs; without validation and saving."""
    costs = CPU if device.kind == "cpu" else CUDA
    seconds = {size: part_seconds(job, size, device, costs) for size in set(job.sizes)}
    part = fmean(seconds[size] for size in job.sizes)
    return job.of_epoch * (job.parts * pace.part * part + pace.update * update_seconds(job, device, costs))


def part_seconds(job: Job, size: Size, device: Device, costs: Costs) -> float:
    """Forward and backward."""
    setup, config = job.setup, job.setup.config
    layers, rate = config.num_layers, device.rate(setup.run.precision)
    again = int(job.is_checkpointed)
    learn = min(layers, job.learned.layers) / layers
    of_layer = dict(zip(LINEARS, (weight.count for weight in linears(setup)), strict=True))
    products = 2.0 * size.tokens * layers * sum(of_layer.values()) * (2 + again + learn)
    last = 2.0 * (size.tokens - size.wanted) * sum(list(of_layer.values())[1:]) * (2 + again + (learn == 1))
    seconds = (products - last + 6.0 * size.tokens * low_rank_parameters(job)) / (rate * costs.products)
    looked_at = 4.0 * size.tokens * size.width * setup.heads_width * layers
    seconds += looked_at * (3 + again) / (rate * costs.attention)
    many = size.wanted * FLOAT * config.vocab_size > HEAD_BYTES
    head = 2.0 * size.wanted * embedding(setup).count * (2 + many + job.learned.is_whole)
    seconds += head / (rate * costs.products)
    kept = layer_bytes(job, size, 0) * layers + size.wanted * FLOAT * config.vocab_size
    seconds += costs.passes * kept * (1 + again / 3) / device.bandwidth + costs.step * layers * (1 + again / 2)
    drawn = size.tokens * (size.width * config.num_attention_heads * bool(job.attention_dropout)
                           + 2 * config.hidden_size * bool(job.hidden_dropout)) * layers
    return seconds + drawn * (1 + again) * costs.draw


def update_seconds(job: Job, device: Device, costs: Costs) -> float:
    """Of the optimiser, and of the sum of gradients over data-parallel ranks."""
    learned = learned_parameters(job)
    share = job.ranks if job.zero.stage else 1
    seconds = moving_seconds(learned / share, device, costs)
    if job.ranks > 1:
        seconds += 2 * FLOAT * learned * (job.ranks - 1) / job.ranks / device.peer
    return seconds


def moving_seconds(parameters: float, device: Device, costs: Costs) -> float:
    """Of the optimiser, for so many of them."""
    return FLOAT * costs.update * parameters / device.bandwidth
