"""python -m tuning forget: what a tuned model still does of what its base could do."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

from commands import compare, evaluate
from runtime.arguments import CommandParser
from runtime.errors import UserError

ABOUT = """\
Tasks that a model was not tuned on, before and after, in one table with intervals of the differences.

    python -m tuning forget --base DIR --adapter FILE --output DIR --tasks tasks/quickstart
    python -m tuning forget --base DIR --load TUNED --output DIR --tasks tasks/quickstart --limit 200 --bf16

Tasks are those of `python -m evaluation`, which is given all other flags. Its results are in DIR/before and DIR/after;
killed, the same command goes on.
"""
BEFORE, AFTER = "before", "after"  # folders in --output


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(description=ABOUT, prog="python -m tuning forget")
    add = parser.add_argument
    add("--base", type=Path, required=True, metavar="DIR", help="the checkpoint before tuning")
    add("--load", type=Path, metavar="DIR", help="the tuned checkpoint, where it is one of its own")
    add("--adapter", type=Path, metavar="FILE", help="what was tuned beside the base")
    add("--tasks", nargs="+", required=True, metavar="TASK", help="task files, folders of them, or globs")
    add("--output", type=Path, required=True, metavar="DIR", help="for both evaluations")
    arguments, others = parser.parse_known_args(argv)
    if (arguments.load is None) == (arguments.adapter is None):
        raise UserError("what was tuned? --adapter FILE, of --base, or --load DIR, a checkpoint of its own: name one")
    for what, path in (("checkpoint folder", arguments.load), ("adapter", arguments.adapter)):
        if path is not None and not path.exists():  # said before the base is scored
            raise UserError(f"there is no {what} {path}")
    adapter = [] if arguments.adapter is None else ["--adapter", str(arguments.adapter)]
    runs = {BEFORE: [str(arguments.base)], AFTER: [str(arguments.load or arguments.base), *adapter]}
    for name, model in runs.items():
        print(f"{name}: {model[0]}", file=sys.stderr, flush=True)
        with redirect_stdout(sys.stderr):
            code = evaluate.main(["--load", *model, "--output", str(arguments.output / name), *others, "--task",
                                  *arguments.tasks])
        if code:
            return code
    return compare.main([str(arguments.output / name) for name in runs])
