"""Clocks for a machine that others use too, and what it can do at best: its read bandwidth and its matrix rate."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F

import kernels


@dataclass(frozen=True)
class Timing:
    """Seconds of one repetition."""

    median: float  # this is reported
    best: float  # tells how noisy the machine is
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


def read(buffer: torch.Tensor) -> None:
    """Reads all of a buffer, by the compiled kernels where it lies in host memory and they are there."""
    compiled = kernels.compiled() if buffer.device.type == "cpu" else None
    compiled.read(buffer) if compiled else buffer.sum()


class Bandwidth:
    """The read bandwidth (bytes per second), measured again and again: on a shared machine it changes by the minute, so
    that every result needs the ceiling of its own time."""

    def __init__(self, device: str, buffer_bytes: int):
        self.device = device
        self.buffer = torch.zeros(buffer_bytes // 4, dtype=torch.float32, device=device)

    def measure(self, repeats: int = 3) -> float:
        """The best of some readings of the whole buffer."""
        return self.buffer.nbytes / repeat(lambda: read(self.buffer), repeats, self.device).best

    def sample(self) -> float:
        """One reading of a quarter of the buffer: of this moment, good enough for a median of many."""
        part = self.buffer[: len(self.buffer) // 4]
        return part.nbytes / repeat(lambda: read(part), 1, self.device, warm_up=0).best


class Steps:
    """Clock of a decoding: start(), then done() after every step."""

    SKIPPED = 2  # steps during which caches, beams and libraries are being set up

    def __init__(self, device: str = "cpu"):
        self.device = device
        self.seconds: list[float] = []
        self.start()

    def start(self) -> None:
        self.began = clock(self.device)

    def done(self) -> None:
        self.seconds.append(clock(self.device) - self.began)
        self.start()

    def timing(self) -> Timing:
        return Timing.of(self.seconds[self.SKIPPED :])


class StepsBesideReading(Steps):
    """Between the steps of a model that fits no cache the read bandwidth is sampled, so that both medians are of the
    same seconds; of a small one, before and after."""

    NO_CACHE_HOLDS = 256 << 20  # bytes

    def __init__(self, bandwidth: Bandwidth, weight_bytes: float):
        self.bandwidth = bandwidth
        self.between = weight_bytes > self.NO_CACHE_HOLDS and bandwidth.device == "cpu"
        self.rates = [] if self.between else [bandwidth.measure()]
        super().__init__(bandwidth.device)

    def done(self) -> None:
        super().done()
        if self.between:
            self.rates.append(self.bandwidth.sample())
            self.start()

    def result(self) -> tuple[Timing, float]:
        """Time of a step, and the ceiling in bytes per second."""
        return self.timing(), (median(self.rates[self.SKIPPED :]) if self.between else
                               max(*self.rates, self.bandwidth.measure()))


def matrix_rate(rows: int, shapes: list[tuple[int, int]], dtype: torch.dtype, device: str, repeats: int = 3) -> float:
    """FLOP/s of torch's bare products of `rows` rows with weights (n, k) of these shapes, several of each in turn."""
    flops = seconds = 0.0
    for n, k in shapes:
        weights = [torch.empty(n, k, dtype=dtype, device=device).normal_() for _ in range(4)]
        x = torch.empty(rows, k, dtype=dtype, device=device).normal_()

        def products(x=x, weights=weights):
            for weight in weights:
                F.linear(x, weight)

        with torch.inference_mode():
            seconds += repeat(products, repeats, device).best
        flops += 2.0 * rows * n * k * len(weights)
    return flops / seconds
