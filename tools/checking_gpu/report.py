"""Tables on the screen and a JSON file, of what the sections found."""

import json
import subprocess
import sys
from pathlib import Path

from runtime.files import replacing


def describe(device: str) -> dict:
    """The device and the software, as far as they tell."""
    import torch

    from kernels.cache import BuildError
    from kernels.cuda import nvrtc
    from runtime.files import versions

    facts = {"device": device, "versions": versions(), "cuda": torch.version.cuda}
    try:
        facts["nvrtc"] = nvrtc.find().version
    except BuildError as error:
        facts["nvrtc"] = str(error)
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        facts |= {"gpu": properties.name, "compute capability": f"{properties.major}.{properties.minor}",
                  "processors": properties.multi_processor_count, "memory GB": properties.total_memory / 1e9,
                  "driver and clocks": query_driver()}
    return facts


def query_driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,clocks.max.mem,power.limit",
               "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def show(name: str, result: dict) -> None:
    """A section's rows as a table; of correct cases only their number."""
    rows = result["rows"]
    print(f"\n{name}: {result['status']}, {result['seconds']:.0f} s" +
          (f": {result['error']}" if result.get("error") else ""), flush=True)
    if rows and "right" in rows[0]:
        wrong = [row for row in rows if not row["right"]]
        print(f"{len(rows) - len(wrong)} of {len(rows)} cases are right")
        left_out = [row["case"] for row in rows if row["case"].startswith("not ")]
        print(*left_out, sep="\n", end="\n" if left_out else "")
        rows = wrong[:20]
    if not rows:
        return
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[as_text(row.get(column)) for column in columns] for row in rows]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:  # a bare machine
        for line in (columns, *cells):
            print("  ".join(line))
        return
    table = Table()
    for index, column in enumerate(columns):
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=index == 0)
    for line in cells:
        table.add_row(*line)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def as_text(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
    return "" if value is None else str(value)


def write(path: Path, report: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
