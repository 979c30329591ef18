"""python -m quantization report: what INT8 and INT4 change in a model, measured.

    python -m quantization report checkpoints/glm-small
    python -m quantization report CHECKPOINT --text held_out.txt --tasks tasks/chinese --data-path DIR --limit 200

A table on standard output; report.json and report.png in the output folder (docs/quantization.md). Exit codes: 0,
2 for a mistake (one line), 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from planning.machine import default_device
from runtime.arguments import CommandParser
from runtime.errors import UserError
from runtime.files import REPOSITORY, safe_name

TEXTS = [REPOSITORY / "tools" / "quantizing" / "texts" / name for name in ("en.txt", "zh.txt")]
TASKS = REPOSITORY / "tasks" / "quickstart"
REPORT = "report"
LEAST = {"limit": 1, "window": 32, "tokens": 1}


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == [REPORT]:
            return report(parse(argv[1:]))
        commands().parse_args(argv)
        raise UserError(f"no command was named; there is: {REPORT}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def commands() -> CommandParser:
    parser = CommandParser(__doc__, prog="python -m quantization")
    parser.add_argument("command", nargs="?", choices=[REPORT], help=f"`{REPORT} --help` lists its arguments")
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(__doc__, prog=f"python -m quantization {REPORT}")
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="folder of an unquantised checkpoint in one part")
    add("--text", type=Path, nargs="+", default=TEXTS, metavar="FILE",
        help="held-out text, UTF-8 (default: small English and Chinese ones that are here)")
    add("--tasks", nargs="+", default=[str(TASKS)], metavar="TASK",
        help="task files or folders; their multiple-choice tasks are used (default: tasks/quickstart)")
    add("--data-path", type=Path, default=REPOSITORY / "data", metavar="DIR",
        help="folder of the tasks' data (default: data/ of the repository)")
    add("--limit", type=int, metavar="N", help="only the first N rows of every data file")
    add("--group-sizes", type=int, nargs="+", metavar="N",
        help="groups of columns for INT4 (default: those of 128, 64, 32 that divide the model's columns)")
    add("--int8-groups", action="store_true", help="INT8 in these groups, too")
    add("--window", type=int, default=128, metavar="N",
        help="tokens of text read at a time; the second half is scored (default: 128)")
    add("--tokens", type=int, default=16384, metavar="N", help="most tokens of a text to be scored (default: 16384)")
    add("--output", type=Path, metavar="DIR", help="folder of report.json and report.png (default: one below outputs/)")
    add("--device", help="cpu, cuda or cuda:N (default: cuda where there is a GPU)")
    add("--tokenizer-path", type=Path, metavar="FILE", help="ice_text.model, where it is not beside the checkpoint")
    add("--model", metavar="NAME", help="shapes by name, where the checkpoint has no model_config.json")
    add("--no-plan", action="store_true", help="load the model even if it cannot fit in memory")
    arguments = parser.parse_args(list(argv))
    for name, least in LEAST.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: must be at least {least}")
    if arguments.output is None:
        name = safe_name(os.path.basename(os.path.realpath(arguments.checkpoint)))
        arguments.output = Path("outputs") / f"quantization-{name}"
    return arguments


def report(arguments: argparse.Namespace) -> int:
    if not os.path.isdir(arguments.checkpoint):
        raise UserError(f"{arguments.checkpoint}: no such folder; name the one that holds the checkpoint's file "
                        "'latest'")
    try:
        arguments.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {arguments.output}: {error.strerror}") from None
    if not arguments.no_plan:
        from planning.check import require_model

        require_model(arguments.checkpoint, arguments.model, arguments.device, "fp32", "this report, in float32,")
    from tools.quantizing import measure, show

    settings = measure.Settings(
        arguments.checkpoint, arguments.text, arguments.tasks, arguments.data_path, arguments.group_sizes,
        arguments.int8_groups, arguments.limit, arguments.window, arguments.tokens,
        arguments.device or default_device(), arguments.tokenizer_path, arguments.model)
    for line in show.write(measure.measure(settings), arguments.output):
        print(line)
    return 0
