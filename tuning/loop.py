"""The one loop of all trainings. A step is a function of weights, moments, seed and its number.

What a step reads, drops and blanks comes from the seed and its number; a run that was killed goes on from its last
state and does the very same steps. Data-parallel ranks share a step's samples; their gradients are weighted by targets,
so that any number of ranks, or of parts of an accumulation, gives the result of one, but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from runtime import parallel
from runtime.errors import UserError
from tuning.data.sample import Sample
from tuning.losses import OF_TOKENS
from tuning.optimizer import Optimizer
from tuning.packing import cut
from tuning.schedules import Schedule
from tuning.steps import Work

if TYPE_CHECKING:
    from runtime.program import Interrupts
    from tuning.run import Run

SHOWN = 8  # rows in a message
MOST_EMPTY = 100  # drawn batches with nothing to learn, if there was none before that had something


# An epoch, where the training stands, and what gives every rank all weights while it lasts -> what the log says.
Validate = Callable[[int, "Progress", Callable[[], AbstractContextManager[None]]], Mapping[str, Any]]


@dataclass(frozen=True)
class Training:
    """What is learned from what."""

    steps: Sequence[Work]
    samples_of: Callable[[Work], Sequence[Sample]]
    loss: Callable[[Sequence[Sample], int, int], Tensor]  # samples, number of the first within the step, step -> mean
    optimizer: Optimizer
    schedule: Schedule
    parts: int = 1  # that a step's samples are computed in, on each rank
    saved_every: int = 5000  # steps
    validate: Validate | None = None  # at an epoch's end -> what the log says of it
    is_split: Callable[[str], bool] = lambda name: False  # whether tensor-parallel ranks hold parts of a parameter
    is_hinge: bool = False  # a loss of 0 is what it should be


@dataclass
class Progress:
    step: int = 0  # the next one
    updates: int = 0  # steps that moved the weights: what the schedule counts
    best: float | None = None  # of the metric, in all epochs so far


def train(training: Training, run: Run, asked: Interrupts | None = None,
          tell: Callable[[Mapping[str, Any]], None] = lambda line: None) -> None:
    """From the run's last state to the last step. Raises UserError for a loss that says something is wrong, and what
    `asked` has noted, both with the last state kept.

    tell: hears of every line of the log.
    """
    optimizer, progress = training.optimizer, Progress()
    if (state := parallel.agree(run.state)) is not None:
        progress = restored(state, optimizer, run)
    run.write_parameters(optimizer.decayed, optimizer.not_decayed)
    parallel.agree(lambda: run.begin_log(progress.step))
    while progress.step < len(training.steps):
        work, step = training.steps[progress.step], progress.step
        line = one_step(training, work, progress)
        if training.validate is not None and work.epoch is not None:
            line |= training.validate(work.epoch, progress, optimizer.whole)
        run.log(line)
        tell(line)
        is_last = progress.step == len(training.steps)
        is_asked = any_rank(bool(asked))
        if (step + 1) % training.saved_every == 0 or is_last or is_asked:
            run.save_state(asdict(progress) | optimizer.state())
        if is_asked and not is_last:
            asked.check()
            raise KeyboardInterrupt  # another rank was asked


def restored(state: Mapping[str, Any], optimizer: Optimizer, run: Run) -> Progress:
    try:
        optimizer.load(state)
        return Progress(**{field.name: state[field.name] for field in fields(Progress) if field.name in state})
    except (KeyError, RuntimeError, TypeError, ValueError):
        raise run.wrong_state() from None


def one_step(training: Training, work: Work, progress: Progress) -> dict[str, Any]:
    """Moves the weights, and the progress; returns the log's line."""
    step, optimizer = progress.step, training.optimizer
    samples = training.samples_of(work)
    total = weight_of(samples)
    if not total and work.is_drawn and (progress.updates or step < MOST_EMPTY):
        progress.step += 1
        return {"step": step, "loss": None, "learning_rate": None, "gradient_norm": None, "targets": 0, "empty": True}
    if not total:
        raise UserError(f"step {step}: its samples have no target, so there is nothing to learn{rows_of(work)}")
    loss = float(all_summed(accumulated(training, samples, total, step)))
    rate = optimizer.options.lr * training.schedule.factor(progress.updates)
    norm, is_skipped = optimizer.move(rate, training.is_split, lambda norm: check(training, work, step, loss, norm))
    line: dict[str, Any] = {"step": step, "loss": loss, "learning_rate": rate, "gradient_norm": norm,
                            "targets": total}
    if is_skipped:
        line |= {"skipped": True, "gradient_norm": None, "loss": loss if math.isfinite(loss) else None}
    else:
        progress.updates += 1
    progress.step += 1
    return line | ({"rows": list(work.rows)} if work.order is None else {})


def accumulated(training: Training, samples: Sequence[Sample], total: int, step: int) -> Tensor:
    """This rank's share of the mean loss; its gradients are added to the parameters'."""
    ranks, rank = parallel.data_parallel_size(), parallel.data_parallel_rank()
    loss = torch.zeros(())
    for first, part in cut(samples, ranks * training.parts)[rank * training.parts:(rank + 1) * training.parts]:
        weight = weight_of(part)
        if not weight and training.optimizer.is_divided:  # passes of all ranks meet: one that counts nothing
            part, first = [next(sample for sample in samples if weight_of([sample]))], 0
        elif not weight:
            continue
        share = training.loss(part, first, step) * (weight / total)
        training.optimizer.backward(share)
        loss = loss + share.detach().float().cpu()
    return loss


def weight_of(samples: Sequence[Sample]) -> int:
    """What a mean loss is the mean of: scored tokens, or samples."""
    if samples and samples[0].kind in OF_TOKENS:
        return sum(sum(row.loss_mask) for sample in samples for row in sample.rows)
    return len(samples)


def all_summed(tensor: Tensor) -> Tensor:
    """In place, over the data-parallel ranks."""
    if parallel.data_parallel_size() > 1:
        parallel.sum_over_data(tensor)
    return tensor


def any_rank(is_so: bool) -> bool:
    """Whether it is so on one rank at least: all must end together."""
    if torch.distributed.get_world_size() == 1:
        return is_so
    flag = torch.tensor(float(is_so))
    parallel.sum_over_all(flag)
    return bool(flag)


def check(training: Training, work: Work, step: int, loss: float, norm: float) -> None:
    """UserError where the loss says that something is wrong: training on would only hide it."""
    if math.isfinite(loss) and math.isfinite(norm):
        if loss == 0.0 and norm == 0.0 and not training.is_hinge:
            raise UserError(f"step {step}: the loss is exactly 0, and nothing would be learned from it: numbers "
                            f"underflow in this precision, or the choices of a row are all alike{rows_of(work)}")
        return
    what = "loss" if not math.isfinite(loss) else "gradient"
    value = loss if what == "loss" else norm
    raise UserError(f"step {step}: the {what} is {value}: numbers overflow (a lower --lr or --clip-grad, or --dtype "
                    f"bfloat16 or float32 mends that), or the weights of --load hold such numbers{rows_of(work)}; the "
                    "last saved state stays")


def rows_of(work: Work) -> str:
    rows = ", ".join(map(str, work.rows[:SHOWN])) + ", ..." * (len(work.rows) > SHOWN)
    return f" ({'rows' if work.order is None else f'batch {work.order.count}, samples'} {rows})"
