"""The sections of the check, and what they found as tables on the screen and a JSON file.

One runs in a process of its own: a kernel that reads where it must not makes a process useless for all that follows.
"""

import json
import subprocess
import time
import traceback
from importlib import import_module
from pathlib import Path

from runtime.files import replacing
from runtime.show import table

# What is run, in this order, with the seconds that each may take.
SECTIONS = {
    "build": ("tools.checking_gpu.correctness", "builds", 50),
    "correctness": ("tools.checking_gpu.correctness", "rows", 60),
    "step": ("tools.checking_gpu.step", "kernels", 30),
    "product": ("tools.checking_gpu.answers", "product", 85),
    "recorded": ("tools.checking_gpu.recorded", "eager_and_recorded", 30),
    "glm": ("tools.checking_gpu.correctness", "small_model", 30),
    "decoding": ("tools.checking_gpu.products", "decoding", 50),
    "prefill": ("tools.checking_gpu.products", "prefill", 25),
    "layers": ("tools.checking_gpu.model", "layers", 35),
    "model": ("tools.checking_gpu.model", "whole_model", 60),
    "tilings": ("tools.checking_gpu.products", "tilings", 15),
}


def run(name: str, device: str, is_toy: bool, seconds: float, output: Path) -> bool:
    """Write {"status", "rows", "error", "seconds"} of a section to `output` as it goes; True if all is right."""
    from tools.checking_gpu import setting

    module, function, _ = SECTIONS[name]
    begin, rows, error = time.monotonic(), [], None
    try:
        where = setting.make(device, is_toy, seconds)
        for row in getattr(import_module(module), function)(where):
            rows.append(row)
            write(output, "cut off", rows, None, begin)
        wrong = [row for row in rows if not row.get("right", True) or not row.get("finite", True)]
        if wrong:
            error = f"{len(wrong)} of {len(rows)} are wrong, first: {wrong[0]}"
        if failure := getattr(where.operations, "failure", None):
            error = f"the kernels were not used: {failure}"
    except Exception as problem:  # the other sections run all the same
        error = f"{type(problem).__name__}: {problem}"
        traceback.print_exc()
    write(output, "failed" if error else "ok", rows, error, begin)
    return error is None


def write(output: Path, status: str, rows: list[dict], error: str | None, begin: float) -> None:
    write_json(output, {"status": status, "seconds": time.monotonic() - begin, "error": error, "rows": rows})


def describe(device: str) -> dict:
    """Facts about the device and the software."""
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
    print(table(columns, cells))


def as_text(value) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}"
    return "" if value is None else str(value)


def write_json(path: Path, value: dict) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
