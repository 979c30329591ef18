"""What was looked at, in a few lines: a visit without findings should not be silent about what it has seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from doctor.machine import GB
from doctor.run import Report
from runtime.show import counted


def summary(report: Report) -> Iterator[str]:
    """A line for every host, and one for the all-reduce."""
    hosts = {report.facts["host"]: report.facts} if "host" in report.facts else report.facts
    for name, facts in hosts.items():
        yield f"{name}: {', '.join(seen(facts))}"
    outcome = report.all_reduce
    if report.not_joined:
        yield f"the ranks were not joined: {report.not_joined}"
    if outcome and outcome.bandwidth is not None:
        yield f"all-reduce of {outcome.world} ranks over {outcome.backend}: {outcome.bandwidth:.3g} GB/s"


def seen(facts: Mapping) -> Iterator[str]:
    stages, machine = facts["stages"], facts["machine"]
    yield f"Python {facts['packages']['python']}"
    torch = stages.get("torch", {})
    if "torch" in torch:
        gpus = [gpu["name"] for gpu in torch["gpus"]]
        yield f"torch {torch['torch']}"
        yield ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus)) or "no GPU"
        yield f"{torch['precision']} unless told otherwise"
    yield f"{machine['cores']} cores, {machine['free_memory'] / GB:.1f} GB of memory free"
    if kernels := stages.get("cpu-kernels", {}).get("instructions"):
        yield f"compiled kernels ({kernels})"
    if "bytes" in (shards := stages.get("shards", {})):
        parts = counted(shards["shards"], "part")
        yield f"checkpoint {shards['folder']} ({shards['iteration']}, {parts}, {shards['bytes'] / GB:.2f} GB)"
    if (data := facts.get("data")) and data["tasks"]:
        yield f"data of {counted(len(data['tasks']), 'task')}"
