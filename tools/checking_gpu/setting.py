"""Where and how large a check runs: GLM-130B's shapes on a GPU, or a toy's shapes anywhere, for tests."""

import time
from dataclasses import dataclass
from typing import Any

import torch

import kernels.reference
from glm.config import ModelConfig
from kernels.reference import PackedWeight

TOY = ModelConfig(num_layers=2, hidden_size=128, num_attention_heads=4, inner_hidden_size=192, vocab_size=64,
                  max_sequence_length=64)


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
        """What launches single kernels (kernels.cuda.driver.Device), None where nothing does."""
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
