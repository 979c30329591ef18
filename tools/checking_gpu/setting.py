"""Where and how large a check runs, GLM-130B's shapes on a GPU or a toy's shapes anywhere, for tests; its clocks.

Kernels take microseconds: many calls are recorded as one CUDA graph, so that the host does not count.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

import kernels.reference
from glm.config import ModelConfig
from kernels.cuda import linear
from kernels.reference import PackedWeight

TOY = ModelConfig(num_layers=2, hidden_size=128, num_attention_heads=4, inner_hidden_size=192, vocab_size=64,
                  max_sequence_length=64)
WARM_UP = 2  # libraries and kernels are loaded by then; recording must not be what loads them


@dataclass(frozen=True)
class Setting:
    device: torch.device
    operations: Any  # the backend under test: kernels.cuda.Operators, or one of its stand-ins
    config: ModelConfig
    is_toy: bool
    deadline: float  # of time.monotonic(): what is not begun by then is left out

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self.deadline

    @property
    def kernels_device(self):
        """A kernels.cuda.driver.Device, which launches single kernels; None where there is none."""
        find = getattr(self.operations, "find", None)
        return find(self.device) if find else None

    def sizes(self, full: list, toy: list) -> list:
        return toy if self.is_toy else full


def make(device: str, is_toy: bool, seconds: float) -> Setting:
    chosen, ops = torch.device(device), kernels.reference
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        with torch.no_grad():
            ops = kernels.backend(torch.empty(0, dtype=torch.float16, device=chosen))
    config = TOY if is_toy else ModelConfig.from_name("glm-130b")
    return Setting(chosen, ops, config, is_toy, time.monotonic() + seconds)


def random_packed(setting: Setting, n: int, k: int, bits: int, group_size: int | None) -> PackedWeight:
    """Made on the device, all values of the format alike often; a product with it keeps the size of x."""
    weight = torch.randint(-128, 128, (n, k * bits // 8), dtype=torch.int8, device=setting.device)
    groups = () if group_size is None else (k // group_size,)
    spread = ((2**bits) ** 2 / 12) ** 0.5  # of the integers
    scale = (torch.rand((n, *groups), device=setting.device) * 0.5 + 0.75) / (spread * k**0.5)
    return PackedWeight(weight, scale.half(), bits, group_size)


def scheme_name(bits: int, group_size: int | None) -> str:
    return f"INT{bits}" + (f" groups of {group_size}" if group_size else "")


def bytes_of(weight: PackedWeight) -> int:
    return weight.weight.nbytes + weight.scale.nbytes


def recorded(setting: Setting, calls: list[Callable[[], object]]) -> Callable[[], list]:
    """All calls, one after the other, as one CUDA graph; on other devices a function that calls them.

    The function returns the calls' results.
    """
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
