"""A step of a few layers, timed on this machine's processor: by how much a training there takes longer than the
constants of tuning/plan_time.py say, which know neither the processor nor the code of the day.

It is the very step of the training: its dropout, what learns of it, its optimiser.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from glm import spec
from glm.adapters import lora
from glm.adapters.prefix import Prefix
from glm.dropout import Dropout
from planning.devices import Device
from planning.layers import narrowed, sample_model, tried_vocabulary
from planning.machine import seconds_of
from planning.shapes import layer_weights
from tuning.batch import batch_of
from tuning.data.sample import Kind, Row, Sample
from tuning.losses import loss_of
from tuning.model import Tuned
from tuning.optimizer import Optimizer
from tuning.packing import Size
from tuning.plan import Job, Zero
from tuning.plan_time import CPU, Pace, moving_seconds, part_seconds
from tuning.train_options import OptimizerOptions

LAYERS, MOST_WEIGHTS = 4, 100_000_000  # of the layers together
TOKENS = 1024  # of a part of the step
REPEATS, ENOUGH = 5, 1.0  # the fastest step counts; seconds after which there is but one


def pace(job: Job, device: Device) -> Pace:
    """device: this machine's processor, with the rates that job's times are planned from."""
    tried = smaller(job)
    size = tried.sizes[0]
    tuned, parameters = learner(tried)
    optimizer = Optimizer(parameters, OptimizerOptions(optimizer=job.optimizer))
    batch = batch_of([sample(size)] * size.rows, tried.setup.config)
    shares = job.hidden_dropout, job.attention_dropout, 0.0
    dropout = Dropout(*shares, 0, 0, prefix_share=job.hidden_dropout) if any(shares) else None
    found, end = [], time.perf_counter() + ENOUGH
    while len(found) < 2 or (time.perf_counter() < end and len(found) < REPEATS):
        part = seconds_of(lambda: optimizer.backward(loss_of(tuned, batch, dropout=dropout)))
        found.append((part, seconds_of(lambda: optimizer.move(0.0, tuned.is_split, lambda norm: None))))
    parts, updates = zip(*found[1:], strict=True)  # the first one also makes the moments
    moved = moving_seconds(sum(parameter.numel() for parameter in parameters.values()), device, CPU)
    return Pace(min(parts) / part_seconds(tried, size, device, CPU), min(updates) / moved)


def smaller(job: Job) -> Job:
    """Few layers and rows of it, on one rank."""
    config, _ = narrowed(job.setup.config)
    setup = replace(job.setup, config=config, degree=1, file=None)
    layers = max(1, min(config.num_layers, LAYERS, MOST_WEIGHTS // layer_weights(setup)))
    config = replace(config, num_layers=layers, vocab_size=tried_vocabulary(config), num_image_tokens=0)
    usual = sorted(job.sizes, key=lambda size: size.tokens)[len(job.sizes) // 2]
    width, rows = min(usual.width, TOKENS), max(1, min(usual.rows, TOKENS // usual.width))
    wanted = max(1, min(width - 1, usual.wanted // usual.rows))
    learned = replace(job.learned, layers=min(layers, job.learned.layers), beside=0)
    return replace(job, setup=replace(setup, config=config), sizes=(Size(rows, width, rows * wanted),), parts=1,
                   ranks=1, zero=Zero(), learned=learned)


def learner(job: Job) -> tuple[Tuned, dict[str, torch.nn.Parameter]]:
    """A model of random weights, and what of it learns."""
    setup, learned = job.setup, job.learned
    model = sample_model(setup, setup.config.num_layers)
    for low in learned.low_rank:
        made = lora.fresh(model.config, low.rank, low.rank, [low.linear], 0, low.pairs > 1, 0.1 * low.has_dropout)
        lora.attach(model, made, "--lora-rank")
    if learned.prefix:
        model.prefix = Prefix(model.config, learned.prefix, None)
        torch.nn.init.normal_(next(model.prefix.parameters()))
    tuned = Tuned(model)
    tuned.is_checkpointed = job.is_checkpointed
    frozen = tuned.frozen()
    if tuned.is_adapted:
        return tuned, tuned.learn(lambda name: name not in frozen)
    if learned.is_whole:
        return tuned, tuned.learn(lambda name: True)
    layers = tuple(spec.in_layer(number, "") for number in range(learned.layers))
    if layers:
        return tuned, tuned.learn(lambda name: name.startswith(layers))
    lowest = spec.in_layer(0, "")  # gradients go down through all layers to what is beside the model
    first = min(name for name in frozen if name.startswith(lowest) and "layernorm" in name)
    return tuned, tuned.learn(lambda name: name == first)


def sample(size: Size) -> Sample:
    width, wanted = size.width, size.wanted // size.rows
    places = tuple(range(width))
    return Sample("", Kind.LANGUAGE, (Row(tuple(place % 100 for place in places), places, (0,) * width, width - wanted,
                                          (1,) * width, (0,) * (width - wanted) + (1,) * wanted),))
