"""Measure low-resource inference: decoding and scoring with streamed layers under limited memory, beside the same model
that stays in memory and beside what the disk gives.

    python tools/benchmark_offload.py --load glm-1.3b --dtype bf16 --limits 0.8 0.4 --room 0.9

Needs one checkpoint for one rank. With --room each run but the first has a control group of its own, whose memory is
limited to the weights' limit and so much more for Python, torch, caches and activations (root, Linux). How a figure is
read: docs/benchmarks.md.
"""

import argparse
import shlex
import sys
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    from runtime.arguments import CommandParser

    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--load", type=Path, required=True, metavar="CHECKPOINT", help="folder with the file 'latest'")
    add("--dtype", default="bf16", choices=("bf16", "fp16", "fp32"), help="of the run (default: bf16)")
    add("--limits", nargs="+", type=float, required=True, metavar="GB", help="--offload-memory-limit of each run")
    add("--room", type=float, metavar="GB", help="memory beside the weights; without it nothing is limited")
    add("--steps", type=int, default=16, help="tokens to decode (default: 16)")
    add("--score", nargs=2, type=int, default=[4, 512], metavar=("ROWS", "TOKENS"),
        help="size of the batch that is scored; 0 0: none (default: 4 512)")
    add("--repeats", type=int, default=2, help="of the scoring, of which the best counts (default: 2)")
    add("--threads", type=int, help="of the processor (default: torch's choice)")
    add("--json", type=Path, metavar="FILE", help="also write the results to this file")
    return parser


def main() -> int:
    arguments = make_parser().parse_args()
    from runtime.errors import UserError

    try:
        measure_all(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def measure_all(arguments: argparse.Namespace) -> None:
    import json

    from glm.loading import DTYPES
    from tools.benchmarking import machine, report
    from tools.benchmarking.capped import run_capped
    from tools.benchmarking.offload import Task, measure, row_of, table

    dtype = str(DTYPES[arguments.dtype]).removeprefix("torch.")
    rows, resident, before = [], None, machine.load_average()
    for limit in (None, *arguments.limits):
        cap = None if limit is None or arguments.room is None else int((limit + arguments.room) * 1e9)
        task = Task(arguments.load, dtype, limit, arguments.steps, tuple(arguments.score), arguments.repeats,
                    arguments.threads)
        found, peak = run_capped(measure, (task,), cap)
        resident = resident or found
        rows.append(row_of(limit, found, resident, cap, peak))
        report.say(", ".join(f"{name} {value}" for name, value in rows[-1].items()))
    facts = machine.describe("cpu", before)
    report.show_tables([table(rows)], facts, {"model": str(arguments.load), "precision": arguments.dtype})
    if arguments.json:
        arguments.json.write_text(json.dumps({"command": shlex.join(sys.argv), "machine": facts, "results": rows},
                                             indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from runtime.program import run

    run(main)
