"""The command line of the evaluation: its flags, and where its results go.

Imports nothing heavy: a wrong flag is refused, and --help answered, before torch is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from commands.model import add_model_arguments
from evaluation.limiting import Limit
from runtime.arguments import CommandParser
from runtime.errors import UserError
from runtime.files import REPOSITORY, safe_name

COMPARE = "compare"
PROGRAM = "python -m evaluation"
# What results do not depend on: the same folder whatever is said of these.
_ABOUT_THE_RUN = ("output", "overwrite", "check", "paths", "task", "sequential_initialization", "local_rank",
                  "model_parallel_size", "mode", "layernorm_order", "tokenizer_type", "skip_init",
                  "from_quantized_checkpoint", "no_plan", "offload_memory_limit", "bminf")


class EvaluationParser(CommandParser):
    """Paths may stand anywhere between the flags."""

    def parse_known_args(self, args=None, namespace=None):
        found, unknown = super().parse_known_args(args, namespace)
        found.paths = [*found.paths, *(word for word in unknown if not word.startswith("-"))]
        return found, [word for word in unknown if word.startswith("-")]


def parser(about: str | None) -> EvaluationParser:
    found = EvaluationParser(
        about, prog=PROGRAM,
        epilog=f"{PROGRAM} {COMPARE} RUN_A RUN_B compares the results of two runs ({COMPARE} --help).")
    add_model_arguments(found)
    what = found.add_argument_group("tasks and data")
    what.add_argument("paths", nargs="*", metavar="TASK", help="task files, folders of them, or globs")
    what.add_argument("--task", nargs="+", action="extend", default=[], metavar="TASK", help="the same")
    what.add_argument("--data-path", type=Path, default=Path(os.environ.get("DATA_PATH") or REPOSITORY / "data"),
                      metavar="DIR", help="folder of the data, which `path` in a task file is relative to (default: "
                                          "$DATA_PATH, else data/ of the repository)")
    what.add_argument("--allow-missing", action="store_true",
                      help="tasks without data are listed as missing, the others are scored")
    what.add_argument("--limit", type=int, metavar="N", help="only the first N rows of every file")
    what.add_argument("--sample-seed", type=int, metavar="S",
                      help="--limit draws its rows instead: with one seed always the same ones, under all prompts")
    what.add_argument("--check", action="store_true", help="look at task files and data, load no model")
    how = found.add_argument_group("results and batches")
    how.add_argument("--output", type=Path, metavar="DIR",
                     help="folder of the results; the same command goes on there with what was cut off (default: one "
                          "below outputs/, named after checkpoint, tasks and settings)")
    how.add_argument("--overwrite", action="store_true", help="replace the results of another run in --output")
    how.add_argument("--max-batch-tokens", type=int, metavar="N", help="most tokens of a batch (default: found out)")
    how.add_argument("--micro-batch-size", type=int, metavar="N", help="most items of a batch (default: no limit; what "
                                                                       "task files say is not needed here)")
    return found


def parse(argv: Sequence[str], about: str | None) -> argparse.Namespace:
    """Arguments whose numbers make sense; raises UserError, or ends the program for flags that do not exist."""
    arguments = parser(about).parse_args(list(argv))
    arguments.paths += arguments.task
    if not arguments.paths:
        raise UserError("no task was named; give task files, folders or globs, for example: tasks/quickstart")
    for flag in ("limit", "max_batch_tokens", "micro_batch_size"):
        value = getattr(arguments, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be at least 1")
    if arguments.sample_seed is not None and arguments.limit is None:
        raise UserError("--sample-seed draws the rows that --limit takes; say how many with --limit")
    return arguments


def output_folder(arguments: argparse.Namespace) -> Path:
    """--output; else a folder that the same command will find again, and another one will not."""
    if arguments.output is not None:
        return arguments.output
    settings = {name: str(value) for name, value in sorted(vars(arguments).items())
                if name not in _ABOUT_THE_RUN and value is not None and value is not False}
    settings |= {name: os.path.realpath(getattr(arguments, name)) for name in ("load", "data_path")}
    settings["paths"] = sorted(str(Path(path).absolute()) for path in arguments.paths)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    checkpoint = safe_name(os.path.basename(os.path.realpath(arguments.load)))
    first = re.sub(r"[*?\[\]]", "_", safe_name(Path(os.path.realpath(arguments.paths[0])).stem))
    return Path("outputs") / checkpoint / f"{first}-{digest}"


def limit_of(arguments: argparse.Namespace) -> Limit | None:
    return None if arguments.limit is None else Limit(arguments.limit, arguments.sample_seed)
