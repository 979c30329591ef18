"""What a step's learning rate is, and which rows an epoch takes in which order: functions of numbers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from runtime.errors import UserError
from tuning.options import STYLES


@dataclass(frozen=True)
class Schedule:
    """GLM's learning rates: a linear warm-up from 0, then a decay to a share of the peak.

    Step 0 has the rate 0 where there is a warm-up. Behind the last step a linear decay goes on falling, a cosine stays.
    """

    style: str  # of STYLES
    total: int  # optimiser steps of the run
    warmup: float = 0.0  # share of them
    ratio: float = 0.1  # of the peak that is left at the end

    def __post_init__(self):
        if self.style not in STYLES:
            raise UserError(f"a learning rate decays as one of {', '.join(STYLES)}, not {self.style!r}")
        if self.total < 1 or not 0 <= self.warmup <= 1:
            raise UserError(f"a schedule has 1 step or more, a share of 0 to 1 of them for the warm-up; these are "
                            f"{self.total} and {self.warmup:g}")

    def factor(self, step: int) -> float:
        """Share of the peak rate in optimiser step 0, 1, ..."""
        warm = self.warmup * self.total
        if warm > 0 and step <= warm:
            return step / warm
        done = (step - warm) / max(self.total - warm, 1e-9)
        if self.style == "linear":
            return 1.0 - (1.0 - self.ratio) * done
        if self.style == "cosine":
            return self.ratio + (1.0 - self.ratio) * (1.0 + math.cos(math.pi * min(done, 1.0))) / 2.0
        return 1.0


@dataclass(frozen=True)
class LateDecay:
    """Of a training whose end may be decided late: a linear warm-up, then either a cosine to the end, or a constant
    rate with a cosine from `decay_from` on. What was trained before does not depend on the number of steps."""

    steps: int
    warm_up: int = 100  # steps
    decay_from: int | None = None  # step; None: the cosine begins where the warm-up ends
    final: float = 0.02  # share of the peak rate at the last step

    def factor(self, step: int) -> float:
        """Share of the peak rate for step 0, 1, ..., steps - 1."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        start = self.warm_up if self.decay_from is None else max(self.decay_from, self.warm_up)
        if step < start:
            return 1.0
        done = min((step - start) / max(self.steps - 1 - start, 1), 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


def learning_rates(style: str, total: int, warmup: float, ratio: float, steps: int) -> list[float]:
    """Of steps 0, 1, ... for a peak of 1."""
    schedule = Schedule(style, total, warmup, ratio)
    return [schedule.factor(step) for step in range(steps)]


def row_order(rows: int, seed: int, epoch: int, world_size: int = 1, rank: int = 0) -> list[int]:
    """The rows of an epoch on one rank, as torch's DistributedSampler gives them: shuffled by seed + epoch, begun again
    where their number is no multiple of the ranks', dealt in turn."""
    import torch

    if rows < 1:
        return []
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch)).tolist()
    size = math.ceil(rows / world_size) * world_size
    return [order[place % rows] for place in range(rank, size, world_size)]


def batches_of(order: Sequence[int], size: int) -> list[list[int]]:
    """Consecutive batches; the last may be short."""
    return [list(order[first:first + size]) for first in range(0, len(order), size)]
