"""One measured line, the same for every engine; the shape that it is measured at; all lines as tables and a file."""

import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

import kernels
from planning.machine import crowd
from runtime.files import versions
from runtime.resources import processor
from runtime.show import table
from tools.benchmarking.rates import Timing, matrix_rate, repeat

SCHEMA = 1
PEERS = ("transformers", "llama_cpp_python", "openvino")  # packages that others' figures depend on


@dataclass(frozen=True)
class Shape:
    """A decoder with gated MLPs and tied embeddings, the same for every engine."""

    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int
    linears: tuple[tuple[int, int], ...]  # (n, k) of one layer's products: qkv, attention output, MLP in, MLP out

    @property
    def layer_parameters(self) -> int:
        """Weights of all layers' products, which every token of a prompt goes through."""
        return self.layers * sum(n * k for n, k in self.linears)

    @property
    def parameters(self) -> int:
        """Weights read per decoded token: the layers and the vocabulary's projection."""
        return self.layer_parameters + self.vocabulary * self.hidden

    def prefill_flops(self, tokens: int) -> float:
        """Of the products of a prompt; logits are needed at one place only, and attention is left out."""
        return 2.0 * (tokens * self.layer_parameters + self.vocabulary * self.hidden)


@dataclass(frozen=True)
class Result:
    """A prefill or a decoding."""

    engine: str
    precision: str
    kind: str  # "prefill": `tokens` in one pass; "decode": one token for each of `width` rows after `tokens` others
    tokens: int
    width: int
    timing: Timing
    weight_bytes: float  # read once per pass
    flops: float
    ceiling: float  # of the machine, measured beside it: bytes/s (decode) or FLOP/s (prefill)

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens if self.kind == "prefill" else self.width) / self.timing.median

    @property
    def rate(self) -> float:
        """Bytes of weights per second (decode), or FLOP per second (prefill)."""
        return (self.flops if self.kind == "prefill" else self.weight_bytes) / self.timing.median

    @property
    def share(self) -> float:
        """Of the ceiling, 0 .. 1."""
        return self.rate / self.ceiling

    def as_dict(self) -> dict:
        values = asdict(self)
        timing = values.pop("timing")
        return values | {f"seconds_{name}": timing[name] for name in ("median", "best")} | {
            "repeats": timing["repeats"], "tokens_per_second": self.tokens_per_second, "rate": self.rate,
            "share_of_ceiling": self.share}


def prefill_result(engine: str, precision: str, shape: Shape, tokens: int, timing: Timing, ceiling: float,
                   bytes_per_weight: float) -> Result:
    return Result(engine, precision, "prefill", tokens, 1, timing, bytes_per_weight * shape.parameters,
                  shape.prefill_flops(tokens), ceiling)


def decode_result(engine: str, precision: str, shape: Shape, context: int, width: int, timing: Timing, ceiling: float,
                  bytes_per_weight: float) -> Result:
    return Result(engine, precision, "decode", context, width, timing, bytes_per_weight * shape.parameters,
                  2.0 * width * shape.parameters, ceiling)


def prefill(engine: str, precision: str, shape: Shape, tokens: int, work: Callable[[], object], repeats: int,
            dtype: torch.dtype, device: str, bytes_per_weight: float) -> Result:
    """Times work(), one pass over `tokens`, between two measurements of the ceiling, the better of which counts."""
    ceiling = matrix_rate(tokens, shape.linears, dtype, device)
    timing = repeat(work, repeats, device)
    ceiling = max(ceiling, matrix_rate(tokens, shape.linears, dtype, device))
    return prefill_result(engine, precision, shape, tokens, timing, ceiling, bytes_per_weight)


def load_average() -> float:
    """Programs that wanted a core at a time, on average over the last minute."""
    return os.getloadavg()[0]


def describe(device: str, load_before: float) -> dict:
    """Facts about the machine, after a measurement. load_before: its load average before that."""
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


def crowded(machine: dict) -> list[str]:
    """A warning, as the doctor's, where others wanted the cores while speed was measured."""
    found = crowd(machine["load"], machine["cores"])
    return [f"warning: {found}: times are longer than the machine needs, and a share of the ceiling, which had its "
            "turn at another moment, may be far off, even above 100%; wait until the others have ended (top), and "
            "measure again"] if found else []


def tables(results: Sequence[Result]) -> list[str]:
    """One of prefills and one of decodings, where there are any."""
    found = []
    for kind, title, unit, scale in (
        ("prefill", "Prefill: one prompt in one pass; ceiling: bare matrix products of its shapes", "TFLOP/s", 1e12),
        ("decode", "Decoding: one step; ceiling: reading the weights once", "GB/s", 1e9),
    ):
        rows = [[r.engine, r.precision, str(r.tokens), str(r.width), f"{r.timing.median * 1e3:.2f}",
                 f"{r.timing.best * 1e3:.2f}", f"{r.tokens_per_second:.1f}", f"{r.rate / scale:.3g}",
                 f"{r.ceiling / scale:.3g}", f"{100 * r.share:.0f}"] for r in results if r.kind == kind]
        if rows:
            found.append(table(["engine", "precision", "tokens" if kind == "prefill" else "context", "width", "ms",
                                "best ms", "tokens/s", unit, f"ceiling {unit}", "% of ceiling"], rows, 2, title))
    return found


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def show(tables: Sequence[str], machine: dict, model: dict, notes: Sequence[str] = ()) -> None:
    for facts in (machine, model):
        print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
    print(*tables, *notes, *crowded(machine), sep="\n")


def write(path: Path, results: Sequence, skipped: dict[str, str], machine: dict, model: dict, settings: dict,
          command: str) -> None:
    """results: of any kind that has as_dict()."""
    values = {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine,
        "versions": versions(PEERS),
        "model": model,
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()},
        "results": [result.as_dict() for result in results],
        "skipped": skipped,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
