"""What the results are read against: the machine, its versions, its read bandwidth and its matrix rate."""

import os
import platform
from statistics import median

import torch
import torch.nn.functional as F

import kernels
from runtime.resources import processor
from tools.benchmarking.timing import Timing, clock, repeat

PEERS = ("transformers", "llama_cpp_python", "openvino")  # packages that others' figures depend on


def load_average() -> float:
    """How many programs wanted a core at a time, during the last minute."""
    return os.getloadavg()[0]


def describe(device: str, load_before: float) -> dict:
    """The machine, as far as it tells, after a measurement. load_before: its load average before that."""
    facts = {
        "processor": processor("model name") or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(max(load_before + torch.get_num_threads(), load_average()), 1),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "instructions": kernels.compiled().path if kernels.compiled() else "no compiled kernels",
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "gpu_memory_gb": round(properties.total_memory / 2**30, 1)}
    return facts


class Bandwidth:
    """Measures the read bandwidth (bytes per second) again and again: on a shared machine it changes by the minute, so
    that every result needs the ceiling of its own time."""

    def __init__(self, device: str, buffer_bytes: int):
        self.device = device
        self.buffer = torch.zeros(buffer_bytes // 4, dtype=torch.float32, device=device)

    def measure(self, repeats: int = 3) -> float:
        """The best of some readings of the whole buffer."""
        return self.buffer.nbytes / repeat(lambda: self._read(self.buffer), repeats, self.device).best

    def sample(self) -> float:
        """One reading of a quarter of the buffer: of this moment, good enough for a median of many."""
        part = self.buffer[: len(self.buffer) // 4]
        return part.nbytes / repeat(lambda: self._read(part), 1, self.device, warm_up=0).best

    def _read(self, part: torch.Tensor) -> None:
        compiled = kernels.compiled() if self.device == "cpu" else None
        if compiled:
            compiled.read(part)
        else:
            part.sum()


class Steps:
    """Clock of a decoding: start(), then done() after every step. Between the steps of a model that fits no cache the
    read bandwidth is sampled, so that both medians are of the same seconds; of a small one, before and after."""

    SKIPPED = 2  # steps during which caches, beams and libraries are being set up
    NO_CACHE_HOLDS = 256 << 20  # bytes

    def __init__(self, bandwidth: Bandwidth, weight_bytes: float):
        self.bandwidth, self.device = bandwidth, bandwidth.device
        self.between = weight_bytes > self.NO_CACHE_HOLDS and self.device == "cpu"
        self.seconds: list[float] = []
        self.rates = [] if self.between else [bandwidth.measure()]
        self.start()

    def start(self) -> None:
        self.began = clock(self.device)

    def done(self) -> None:
        self.seconds.append(clock(self.device) - self.began)
        if self.between:
            self.rates.append(self.bandwidth.sample())
        self.start()

    def result(self) -> tuple[Timing, float]:
        """Time of a step, and the ceiling in bytes per second."""
        if self.between:
            return Timing.of(self.seconds[self.SKIPPED :]), median(self.rates[self.SKIPPED :])
        return Timing.of(self.seconds[self.SKIPPED :]), max(*self.rates, self.bandwidth.measure())


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
