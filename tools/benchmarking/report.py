"""The table for people and the JSON file for programs."""

import json
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.table import Table

from planning.machine import crowd
from tools.benchmarking.result import Result

SCHEMA = 1
PLAIN_WIDTH = 140


def say(text: str) -> None:
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def show_tables(tables: Sequence[Table], machine: dict, model: dict, notes: Sequence[str] = ()) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)  # in a file nothing is to be cut off
    for facts in (machine, model):
        console.print(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()))
    for each in (*tables, *notes, *crowded(machine)):
        console.print(each)


def crowded(machine: dict) -> list[str]:
    """A warning, as the doctor's, where others wanted the cores while speed was measured."""
    found = crowd(machine["load"], machine["cores"])
    return [f"warning: {found}: times are longer than the machine needs, and a share of the ceiling, which had its "
            "turn at another moment, may be far off, even above 100%; wait until the others have ended (top), and "
            "measure again"] if found else []


def show(results: list[Result], skipped: dict[str, str], machine: dict, model: dict) -> None:
    tables = []
    for kind, title, unit, scale in (
        ("prefill", "Prefill: one prompt in one pass; ceiling: bare matrix products of its shapes", "TFLOP/s", 1e12),
        ("decode", "Decoding: one step; ceiling: reading the weights once", "GB/s", 1e9),
    ):
        chosen = [result for result in results if result.kind == kind]
        if not chosen:
            continue
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("engine")
        table.add_column("precision")
        columns = ["tokens" if kind == "prefill" else "context", "width", "ms", "best ms", "tokens/s", unit,
                   f"ceiling {unit}", "% of ceiling"]
        for column in columns[:1] + columns[1 if kind == "decode" else 2 :]:
            table.add_column(column, justify="right")
        for r in chosen:
            width = [str(r.width)] if kind == "decode" else []
            table.add_row(r.engine, r.precision, str(r.tokens), *width, f"{r.timing.median * 1e3:.2f}",
                          f"{r.timing.best * 1e3:.2f}", f"{r.tokens_per_second:.1f}", f"{r.rate / scale:.3g}",
                          f"{r.ceiling / scale:.3g}", f"{100 * r.share:.0f}")
        tables.append(table)
    show_tables(tables, machine, model, [f"{engine}: not measured: {reason}" for engine, reason in skipped.items()])


def write(path: Path, results: list[Result], skipped: dict[str, str], machine: dict, versions: dict, model: dict,
          settings: dict, command: str) -> None:
    values = {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": machine,
        "versions": versions,
        "model": model,
        "settings": settings,
        "results": [result.as_dict() for result in results],
        "skipped": skipped,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
