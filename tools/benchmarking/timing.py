"""Clocks for work that takes milliseconds on a machine that others use too."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one repetition: the median, which is reported, and the best, which tells how noisy the machine is."""

    median: float
    best: float
    repeats: int

    @classmethod
    def of(cls, seconds: list[float]) -> "Timing":
        return cls(median(seconds), min(seconds), len(seconds))


def clock(device: str = "cpu") -> float:
    """Seconds on a steady clock, after all work given to the device is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def repeat(work: Callable[[], object], repeats: int, device: str = "cpu", warm_up: int = 1) -> Timing:
    """Times `work`, called `repeats` times after `warm_up` calls that do not count."""
    for _ in range(warm_up):
        work()
    seconds = []
    for _ in range(repeats):
        start = clock(device)
        work()
        seconds.append(clock(device) - start)
    return Timing.of(seconds)
