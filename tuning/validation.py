"""Validation of a training: rows of the dev split are scored as `evaluate` scores them, and the best epoch is kept.

Its metrics are those of the task; where the model's answers are texts, `loss` beside them, the mean of the tokens of
those rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tuning.batch import batch_of
from tuning.data.language import TEXTS
from tuning.data.sample import Sample, Unbuildable, built
from tuning.evaluate import evaluate_chat, evaluate_choices, shared
from tuning.evaluate_texts import evaluate_texts, readable
from tuning.evaluate_windows import evaluate_windows
from tuning.loop import Progress, weight_of
from tuning.losses import loss_of
from tuning.model import Tuned
from tuning.options import Settings
from tuning.tasks import CHAT, kind_of
from tuning.tokenizers import open_for
from tuning.train_options import TrainOptions

Samples = Sequence[Sample | Unbuildable]
MOST_NATS = 20  # of a perplexity, as the original cuts it off
LOSS = "loss"  # the metric of which less is better
WRITING = ("seq2seq", CHAT)  # kinds of tasks whose answers are texts


@dataclass(frozen=True)
class Validation:
    metrics: Callable[[int], Mapping[str, float]]  # epoch -> those of the live model
    every: int = 1  # epochs
    metric: str | None = None  # that chooses the best epoch; None: the first
    keep: Callable[[int], None] = lambda steps: None  # called after the best epoch so far


def evaluation_of(task: str | None, load: Path | None) -> Callable[..., dict[str, Any]]:
    """What scores a task's samples: (tuned, settings, samples, batch_size, names of losses) -> what `evaluate` says.

    load: the checkpoint, where the tokenizer is its own.
    """
    return {CHAT: partial(evaluate_chat, load=load), "cloze": evaluate_choices,
            "language": evaluate_windows if task in TEXTS else evaluate_choices,
            "seq2seq": partial(evaluate_texts, load=load)}[kind_of(task)]


def of_dev(settings: Settings) -> Settings:
    return replace(settings, data=replace(settings.data, split="dev"))


def evaluated(tuned: Tuned, settings: Settings, options: TrainOptions, samples: Samples, load: Path) -> dict[str, Any]:
    """What `evaluate` says of the dev split's rows, and the loss of those that have texts to be written."""
    task, size = settings.data.task, options.eval_batch_size or options.batch_size
    is_written = kind_of(task) in WRITING
    found = evaluation_of(task, load)(tuned, of_dev(settings), samples, size, ("cross_entropy",) if is_written else ())
    if is_written:
        whole, losses = built(samples), found["losses"]["cross_entropy"]
        found["metrics"] = {**found["metrics"], LOSS: mean_loss(losses, [
            whole[begin:begin + size] for begin in range(0, len(whole), size)])}
    return {"task": task, "split": "dev"} | found


@torch.no_grad()
def evaluated_documents(tuned: Tuned, settings: Settings, batches: Sequence[Sequence[Sample]]) -> dict[str, Any]:
    """The mean losses of batches of pretraining, and that of all their tokens, with its perplexity."""
    device = next(tuned.model.parameters()).device
    losses = shared(batches, lambda own: [
        loss_of(tuned, batch_of(batch, tuned.model.config, device)).item() for batch in own])
    loss = mean_loss(losses, batches)
    return {"task": settings.data.task, "split": "dev", "rows": [
        {"index": number, LOSS: each} for number, each in enumerate(losses)],
        "metrics": {LOSS: loss, "ppl": math.exp(min(MOST_NATS, loss))}}


def reading(settings: Settings, load: Path) -> Callable[[Sample], str]:
    """What makes a text for people of a sample: its own, or that of its source's ids."""
    if kind_of(settings.data.task) not in WRITING:
        return lambda sample: sample.text
    tokenizer = open_for(settings, load)
    padding = tokenizer.commands.get("pad")

    def read(sample: Sample) -> str:
        ids = list(sample.rows[0].input_ids[:sample.rows[0].sep])
        while ids and ids[-1] == padding:
            ids.pop()
        return sample.text or tokenizer.detokenize(readable(ids, tokenizer))

    return read


def mean_loss(losses: Sequence[float], batches: Sequence[Sequence[Sample]]) -> float:
    """Of all tokens. losses: means of those of each batch."""
    weights = list(map(weight_of, batches))
    return sum(loss * weight for loss, weight in zip(losses, weights, strict=True) if weight) / max(sum(weights), 1)


def validated(validation: Validation, epoch: int, progress: Progress,
              whole: Callable[[], AbstractContextManager[None]] = nullcontext) -> dict[str, Any]:
    """What the log says of an epoch that has ended; the best so far is kept. whole: in which every rank has all
    weights."""
    if (epoch + 1) % validation.every:
        return {"epoch": epoch}
    with whole():
        return _validated(validation, epoch, progress)


def _validated(validation: Validation, epoch: int, progress: Progress) -> dict[str, Any]:
    metrics = dict(validation.metrics(epoch))
    name = validation.metric or next(iter(metrics))
    is_best = progress.best is None or (
        metrics[name] < progress.best if name == LOSS else metrics[name] > progress.best)
    if is_best:
        progress.best = metrics[name]
        validation.keep(progress.step)
    return {"epoch": epoch, "validation": metrics, "is_best": is_best}
