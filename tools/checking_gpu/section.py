"""One section of the check, run in a process of its own: a kernel that reads where it must not makes a process useless
for everything that follows."""

import json
import time
import traceback
from importlib import import_module
from pathlib import Path

from runtime.files import replacing

# What is run, in this order, with the seconds that each may take.
SECTIONS = {
    "build": ("tools.checking_gpu.build", "rows", 50),
    "correctness": ("tools.checking_gpu.correctness", "rows", 70),
    "glm": ("tools.checking_gpu.small_model", "rows", 50),
    "decoding": ("tools.checking_gpu.products", "decoding", 75),
    "prefill": ("tools.checking_gpu.products", "prefill", 35),
    "layers": ("tools.checking_gpu.model", "layers", 45),
    "model": ("tools.checking_gpu.model", "whole_model", 90),
    "tilings": ("tools.checking_gpu.products", "tilings", 40),
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
    except Exception as problem:  # whatever it is: the other sections are to run
        error = f"{type(problem).__name__}: {problem}"
        traceback.print_exc()
    write(output, "failed" if error else "ok", rows, error, begin)
    return error is None


def write(output: Path, status: str, rows: list[dict], error: str | None, begin: float) -> None:
    result = {"status": status, "seconds": time.monotonic() - begin, "error": error, "rows": rows}
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(result))
