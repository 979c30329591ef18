"""A plan as a value that JSON can hold, and as the table that is printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from planning import memory, speed
from planning.devices import Device
from planning.memory import Memory
from planning.remedies import MOST_DEGREE
from planning.shapes import Setup, weights
from planning.speed import Speed
from runtime.show import counted, duration

GB = 1e9


@dataclass(frozen=True)
class Plan:
    """hours: by task, of an evaluation. disk: bytes a second, None: not known. ways: flags that would make it fit."""

    setup: Setup
    device: Device
    memory: Memory
    speed: Speed
    disk: float | None
    hours: dict[str, float]
    ways: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """On a processor, where ranks share the memory, without the pages that the system takes back."""
        if self.device.kind == "cpu":
            return (self.memory.host - self.memory.mapped) * self.setup.degree <= self.device.memory
        return self.memory.device <= self.device.memory


def make(setup: Setup, device: Device, disk: float | None, hours: dict[str, float] | None = None) -> Plan:
    room = memory.plan(setup)
    return Plan(setup, device, room, speed.plan(setup, room, device, disk), disk, hours or {})


def as_json(plan: Plan) -> dict:
    """Bytes and seconds."""
    setup = {field.name: getattr(plan.setup, field.name) for field in fields(plan.setup)}
    for name in ("config", "run", "file"):
        setup[name] = asdict(setup[name]) if setup[name] is not None else None
    room = asdict(plan.memory) | {"device": plan.memory.device, "host": plan.memory.host}
    return {"setup": setup, "device": asdict(plan.device), "disk": plan.disk, "fits": plan.fits, "memory": room,
            "ways": list(plan.ways), "seconds": asdict(plan.speed), "task_hours": plan.hours}


def lines(plan: Plan) -> list[str]:
    setup, room, times = plan.setup, plan.memory, plan.speed
    count = sum(weight.count for weight in weights(Setup(setup.config, setup.run)))
    where = f"{setup.degree} x {plan.device.label}" if setup.degree > 1 else plan.device.label
    found = [f"{numerous(count)} weights, {words(setup)}, on {where}",
             f"{counted(setup.rows, 'sequence')} of {setup.context} tokens read and {setup.new_tokens} "
             "written", ""]
    if setup.degree > MOST_DEGREE:
        found[1:1] = [f"tensor parallelism stays inside one machine: it must be one with {setup.degree} of them"]
    here = "in memory" if plan.device.kind == "cpu" else "on the device"
    if setup.degree > 1:
        here += ", each rank"
    found += [f"{here:<34}GB"]
    found += [row(name, size) for name, size in (
        ("weights", room.weights), ("keys and values", room.cache), ("activations and logits", room.activations),
        ("expanded or arriving weights", room.workspace),
        ("Python and torch" if plan.device.kind == "cpu" else "CUDA", room.process)) if size]
    found += [row("in all", room.device) + f" of {plan.device.memory / GB:.2f}: {'fits' if plan.fits else 'TOO MUCH'}"]
    found += [f"  would fit with {way}" for way in plan.ways]
    if room.streamed:
        found += [row("read again for every pass", room.streamed)]
    found += ["", row("host memory at most, loading", room.host_loading), row("host memory at most", room.host)]
    if room.mapped:
        found += [row("  of it pages of the mapped file", room.mapped) + " (given back when memory is short)"]
    found += ["", f"{'seconds':<28}{'at best':>10}{'expected':>10}"]
    if times.load is not None:
        found += [f"{'until the model is ready':<28}{'':>10}{short(times.load):>10} ({rate(plan.disk)} from disk)"]
    found += [f"{'reading the contexts':<28}{short(times.prefill_floor):>10}{short(times.prefill):>10}",
              f"{'one more token':<28}{short(times.token_floor):>10}{short(times.token):>10}"
              f" ({setup.rows / times.token:.3g} tokens/s)"]
    if plan.hours:
        found += ["", f"{'task':<40}{'time':>12}"]
        found += [f"{name:<40}{duration(3600 * hours):>12}" for name, hours in (
            *plan.hours.items(), ("all", sum(plan.hours.values())))]
    return found


def numerous(count: int) -> str:
    """127 billion, 15.2 million, 61,440."""
    for size, name in ((1e9, "billion"), (1e6, "million")):
        if count >= 0.9995 * size:
            return f"{count / size:.3g} {name}"
    return f"{count:,}"


def words(setup: Setup) -> str:
    """The precision: "fp16", "INT4 in groups of 32, the rest bf16"."""
    if not setup.run.bits:
        return setup.run.precision
    groups = f" in groups of {setup.run.group_size}" if setup.run.group_size else ""
    return f"INT{setup.run.bits}{groups}, the rest {setup.run.precision}"


def row(name: str, size: float) -> str:
    return f"{name:<32}{size / GB:>6.2f}" if size < 100 * GB else f"{name:<32}{size / GB:>6.1f}"


def short(seconds: float) -> str:
    return f"{seconds:.3g}"


def rate(value: float | None) -> str:
    return f"{value / GB:.2g} GB/s" if value else "unknown rate"
