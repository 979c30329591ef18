"""python -m tuning evaluate: scores, predictions, losses and metrics of a task, as one JSON object."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from commands.tuning.common import add_model, add_settings, load_tuned, settings_of, write_object
from runtime.arguments import CommandParser, count
from tuning.options import Settings

ABOUT = """\
Scores, predictions, losses and metrics of a task, as one JSON object.

    python -m tuning evaluate --task rte --data-dir RTE --split dev --cloze-eval --load CHECKPOINT --tokenizer-type ...
"""


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(description=ABOUT, prog="python -m tuning evaluate")
    add_settings(parser)
    add_model(parser)
    add = parser.add_argument
    add("--eval-batch-size", type=count, default=16, metavar="N", help="rows of a batch, whose mean losses are given")
    add("--losses", type=_names, default=(), metavar="F,G", help="which losses of the batches are given, too")
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments)
    found = _evaluated(settings, arguments)
    if skipped := found.get("skipped"):
        print(f"{len(skipped)} rows cannot be built, and are left out: {', '.join(skipped[:5])}"
              + (" ..." if len(skipped) > 5 else ""), file=sys.stderr)
    write_object({"task": settings.data.task, "split": settings.data.split} | found, arguments.output)
    return 0


def _evaluated(settings: Settings, arguments: argparse.Namespace) -> dict[str, Any]:
    """Files are read, and their mistakes found, before a model is loaded."""
    from tuning.tasks import CHAT, module_of, samples_of

    task = settings.data.task
    kind = CHAT if task == CHAT else module_of(task).__name__.rpartition(".")[2]
    samples = samples_of(settings, arguments.load)
    from tuning import evaluate

    call = {CHAT: evaluate.evaluate_chat, "cloze": evaluate.evaluate_choices}[kind]
    return call(load_tuned(arguments), settings, samples, arguments.eval_batch_size, arguments.losses)


def _names(word: str) -> tuple[str, ...]:
    return tuple(name for name in word.split(",") if name)

