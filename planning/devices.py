"""The devices that a plan can be made for: GPUs by the figures that their makers give (devices.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UserError
from runtime.show import nearest
from runtime.strict_yaml import read_mapping

if TYPE_CHECKING:
    from planning.trial import Trial

FILE = Path(__file__).with_name("devices.yaml")
GIB = 2**30
# Of the memory as sold: the driver keeps some, with ECC more (nvidia-smi shows 32510 of a V100's 32768 MiB, 40536 of an
# A100's 40960, 11019 of a 2080 Ti's 11264).
USABLE = 0.98
_KEYS = {"label", "memory_gib", "bandwidth_gb_s", "tflops", "link_gb_s", "peer_gb_s", "source"}


@dataclass(frozen=True)
class Device:
    """A GPU, or all of a processor."""

    name: str
    label: str  # for the user
    kind: str  # "cpu" or "cuda"
    memory: float  # bytes that programs get, together where they share it
    bandwidth: float  # bytes a second
    rates: dict[str, float]  # operations a second of matrix products, by precision
    link: float  # bytes a second from host memory
    peer: float  # bytes a second to the other devices
    source: str  # of these figures
    trial: Trial | None = None  # what some layers of the model took on it; None: it is not this machine's processor

    @property
    def is_simple_gpu(self) -> bool:
        """Of a compute capability before 8.0, as all have bf16 since."""
        return self.kind == "cuda" and "bf16" not in self.rates

    def rate(self, precision: str) -> float:
        """Of matrix products; UserError where the device has none in this precision."""
        if precision not in self.rates:
            raise UserError(f"{self.label} does not compute in {precision}; allowed: {', '.join(self.rates)}")
        return self.rates[precision]


def named(name: str) -> Device:
    """UserError for a name that devices.yaml does not have."""
    devices = known()
    if name not in devices:
        close = nearest(name, devices)
        hint = f"did you mean {close}? " if close else ""
        raise UserError(f"--device {name}: no such device; {hint}allowed: cpu, cuda, {', '.join(devices)}; "
                        "of another one there are no figures: name one that is like it")
    return devices[name]


@cache
def known() -> dict[str, Device]:
    """By name, in the order of the file."""
    return {name: _device(name, entry) for name, entry in read_mapping(FILE).items()}


def _device(name: str, entry: dict) -> Device:
    if set(entry) != _KEYS:
        wrong = ", ".join(sorted(set(entry) ^ _KEYS))
        raise UserError(f"{FILE}: {name}: these keys are missing or too many: {wrong}")
    return Device(name, entry["label"], "cuda", USABLE * entry["memory_gib"] * GIB, 1e9 * entry["bandwidth_gb_s"],
                  {precision: 1e12 * rate for precision, rate in entry["tflops"].items()}, 1e9 * entry["link_gb_s"],
                  1e9 * entry["peer_gb_s"], entry["source"])
