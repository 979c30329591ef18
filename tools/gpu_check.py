"""Everything about the CUDA kernels that needs a GPU, in one command of at most 8 minutes.

    python tools/gpu_check.py                              # all sections on the first GPU
    python tools/gpu_check.py --only build correctness     # some of them
    python tools/gpu_check.py --json result.json

Compiles the kernels, compares them with float32, compares the ids that the embedded model generates on the GPU with the
processor's, and measures them at GLM-130B's shapes beside the device's read
bandwidth and cuBLAS: single products, layers, and the whole INT4 model with random weights where it fits. It needs
torch for CUDA and this repository, nothing else; what more a section would need, SwissArmyTransformer, it names and
leaves out. Sections run in processes of their own and under a time limit; one
that fails does not stop the others. Exit code: 0 all is right, 1 a section failed, 2 there is no GPU.
"""

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
GRACE = 10  # seconds by which a section may overrun its time, for what it has begun


def make_parser() -> argparse.ArgumentParser:
    from runtime.arguments import CommandParser

    parser = CommandParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0", help="cuda:N; with --toy also cpu (default: cuda:0)")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="some sections, in the order of a whole run")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), metavar="FILE",
                        help="where the results go (default: gpu_check.json)")
    parser.add_argument("--seconds", type=float, default=470, help="for everything together (default: 470)")
    parser.add_argument("--toy", action="store_true", help="a toy's shapes: a test of this program, not of a GPU")
    parser.add_argument("--section", help=argparse.SUPPRESS)  # a process of its own runs this
    return parser


def run_section(name: str, device: str, is_toy: bool, seconds: float, folder: Path) -> dict:
    """The section's result; a failed one says why."""
    output = folder / f"{name}.json"
    command = [sys.executable, __file__, "--section", name, "--device", device, "--seconds", str(seconds), "--json",
               str(output), *(["--toy"] if is_toy else [])]
    begin, problem = time.monotonic(), None
    try:
        code = subprocess.run(command, timeout=seconds + GRACE, stdin=subprocess.DEVNULL).returncode
        if code not in (0, 1):
            problem = f"its process ended with code {code}"
    except subprocess.TimeoutExpired:
        problem = f"it was stopped after {seconds + GRACE:.0f} s"
    if output.exists():
        result = json.loads(output.read_text())
    else:
        result = {"status": "failed", "rows": [], "error": "it wrote nothing", "seconds": time.monotonic() - begin}
    if problem or result["status"] == "cut off":
        result |= {"status": "failed", "error": problem or "it ended before its end"}
    return result


def missing(device: str, is_toy: bool) -> str | None:
    """One line about what this machine lacks; None: nothing."""
    try:
        import torch
    except ImportError as error:
        return f"torch is not installed for {sys.executable} ({error}); install a build for CUDA: pip install torch"
    if device.startswith("cuda") and not torch.cuda.is_available():
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is not built for CUDA"
        return f"there is no GPU that torch can use (torch {torch.__version__} {built})"
    if not device.startswith("cuda") and not is_toy:
        return f"--device {device}: allowed are cuda and cuda:N"
    if device.startswith("cuda:") and not (device[5:].isdigit() and int(device[5:]) < torch.cuda.device_count()):
        return f"--device {device}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}"
    return None


def check(arguments: argparse.Namespace) -> int:
    from tools.checking_gpu import section

    unknown = [name for name in arguments.only or () if name not in section.SECTIONS]
    reason = f"--only {unknown[0]}: allowed are {', '.join(section.SECTIONS)}" if unknown else missing(
        arguments.device, arguments.toy)
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return 2
    begin = time.monotonic()
    facts = section.describe(arguments.device)
    found = {"what": "toy shapes: not a measurement" if arguments.toy else "GLM-130B's shapes",
             "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"), **facts,
             "sections": {}}
    print(", ".join(f"{key}: {value}" for key, value in facts.items()), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, _, seconds) in section.SECTIONS.items():
            if arguments.only and name not in arguments.only:
                continue
            left = arguments.seconds - GRACE - (time.monotonic() - begin)
            if left < 5:
                result = {"status": "skipped", "rows": [], "error": "no time was left", "seconds": 0.0}
            else:
                print(f"{name}: up to {min(seconds, left):.0f} s ...", file=sys.stderr, flush=True)
                result = run_section(name, arguments.device, arguments.toy, min(seconds, left), Path(folder))
            found["sections"][name] = result
            section.show(name, result)
            section.write_json(arguments.json, found | {"seconds": time.monotonic() - begin})
    failed = [name for name, result in found["sections"].items() if result["status"] != "ok"]
    print(f"\n{'failed: ' + ', '.join(failed) if failed else 'all sections are right'}; {arguments.json}")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    if arguments.section is None:
        return check(arguments)
    from tools.checking_gpu import section

    return 0 if section.run(arguments.section, arguments.device, arguments.toy, arguments.seconds,
                            arguments.json) else 1


if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))
    from runtime.program import run

    run(main)
