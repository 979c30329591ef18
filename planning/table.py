"""A plan as a value that JSON can hold and as the table that is printed; and the README's table of the machines that a
model runs on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace

from glm.config import ModelConfig
from glm.spec import undivided
from planning import devices, memory, speed
from planning.check import MOST_DEGREE
from planning.devices import Device
from planning.memory import Memory
from planning.shapes import Format, Setup, weights
from planning.speed import Speed
from runtime.resources import cores
from runtime.show import counted, duration

GB = 1e9
# GPUs of a machine. The first five are those that the original lists.
MACHINES = (("a100-40g", 8), ("v100-32g", 8), ("rtx-3090", 8), ("rtx-3090", 4), ("rtx-2080ti", 8), ("a100-80g", 4),
            ("a100-40g", 4), ("h100-80g", 4), ("h200", 2))
FORMATS = (Format("fp16"), Format("fp16", 8), Format("fp16", 4))  # the finest first
MOST_STREAMED = 0.1  # of the weights; with more, a finer precision is not worth the time
HEAD = ("GPUs", "weights", "offloaded", "weights on each", "with {} tokens", "of", "context of {}", "a token")


@dataclass(frozen=True)
class Plan:
    """What a run takes of a device."""

    setup: Setup
    device: Device
    memory: Memory
    speed: Speed
    disk: float | None  # bytes a second; None: not known
    hours: dict[str, float]  # of an evaluation, by task
    ways: tuple[str, ...] = ()  # flags that would make it fit

    @property
    def fits(self) -> bool:
        return fits(self.setup, self.memory, self.device)


def fits(setup: Setup, room: Memory, device: Device) -> bool:
    """On a processor, where ranks share the memory, without the pages that the system takes back."""
    if device.kind == "cpu":
        return (room.host - room.mapped) * setup.degree <= device.memory
    return room.device <= device.memory


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
    if plan.device.trial is not None and setup.degree > cores():
        found += [f"  {setup.degree} ranks take turns on {counted(cores(), 'core')}, and wait for one another twice in "
                  "every layer: times scatter, and as many ranks as cores are faster"]
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


def machines(config: ModelConfig) -> list[str]:
    """A table in Markdown: sequences of the model's whole length, one at a time, of which half is read."""
    length = config.max_sequence_length
    head = [cell.format(f"{length:,}" if number == 4 else f"{length // 2:,}") for number, cell in enumerate(HEAD)]
    rule = ["---"] * len(head)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *_machine_rows(config))]


def _machine_rows(config: ModelConfig) -> Iterator[list[str]]:
    for name, count in MACHINES:
        device = devices.named(name)
        if undivided(config, count) is not None:
            continue
        for setup in _finest(config, device, count):
            room = memory.plan(setup)
            times = speed.plan(setup, room, device, None)
            offloaded = f"{room.streamed / 1e9:.1f} GB" if room.streamed else "–"
            precision = f"INT{setup.run.bits}" if setup.run.bits else "FP16"
            yield [f"{count} × {device.label}", precision, offloaded, f"{room.weights / 1e9:.1f} GB",
                   f"{room.device / 1e9:.1f} GB", f"{device.memory / 1e9:.1f} GB", f"{times.prefill:.2g} s",
                   f"{1000 * times.token:.0f} ms"]


def _finest(config: ModelConfig, device: Device, count: int) -> Iterator[Setup]:
    """The finest precision that fits, and before it a finer one of which a small part must be streamed."""
    length = config.max_sequence_length
    for held in FORMATS:
        setup = Setup(config, held, "cuda", count, context=length // 2, new_tokens=length - length // 2,
                      simple_gpu=device.is_simple_gpu)
        if memory.plan(setup).device <= device.memory:
            yield setup
            return
        streamed = _offloading(setup, device)
        if streamed is not None:
            yield streamed


def _offloading(setup: Setup, device: Device) -> Setup | None:
    """With as many layers on the device as fit; None where more than a small part would have to come for every pass."""
    total = memory.on_device(setup)[0]
    beside = memory.plan(setup).device - total
    tried = replace(setup, offload_limit=device.memory - beside)
    room = memory.plan(tried)
    has_room = fits(tried, room, device) and tried.offload_limit >= memory.least_offloaded(setup)
    return tried if has_room and room.streamed <= MOST_STREAMED * total else None
