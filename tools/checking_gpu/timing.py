"""Clocks for kernels of some microseconds: many calls recorded as one CUDA graph, so that the host does not count."""

import time
from collections.abc import Callable
from statistics import median

import torch

from kernels.cuda import linear
from tools.checking_gpu.setting import Setting

WARM_UP = 2  # libraries and kernels are loaded by then; recording must not be what loads them


def recorded(setting: Setting, calls: list[Callable[[], object]]) -> Callable[[], list]:
    """All calls, one after the other, as one CUDA graph; on other devices a function that calls them. Returns what
    they return."""
    if setting.device.type != "cuda":
        return lambda: [call() for call in calls]
    side = torch.cuda.Stream(setting.device)
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]

    def replay() -> list:
        graph.replay()
        return kept  # what the recorded calls returned: its memory is written again

    return replay


def seconds(setting: Setting, work: Callable[[], object], repeats: int = 7) -> float:
    """Median time of `work` on the device."""
    if setting.is_toy:
        repeats = 1
    for _ in range(0 if setting.is_toy else WARM_UP):
        work()
    if setting.device.type != "cuda":
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            work()
            times.append(time.perf_counter() - begin)
        return median(times)
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    return median(begin.elapsed_time(end) for begin, end in events) / 1000


def seconds_each(setting: Setting, calls: list[Callable[[], object]], repeats: int = 7) -> float:
    """Median time of one of `calls`, which differ only in the memory that they read."""
    return seconds(setting, recorded(setting, calls), repeats) / len(calls)


class Bandwidth:
    """The device's read bandwidth in bytes per second, of the moment: the better of this repository's reading kernel
    and torch's sum, over memory that no cache holds."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.buffer = torch.zeros((1 << 20 if setting.is_toy else 2 << 30) // 4, device=setting.device)

    def measure(self) -> float:
        ways = [lambda: self.buffer.sum()]
        if device := self.setting.kernels_device:
            ways.append(lambda: linear.read(device, self.buffer))
        return self.buffer.nbytes / min(seconds(self.setting, way, 5) for way in ways)
