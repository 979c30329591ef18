"""python -m tuning evaluate: scores, predictions, losses and metrics of a task, as one JSON object."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.tuning.common import add_model, add_settings, load_tuned, settings_of, write_object
from runtime.arguments import CommandParser, count
from runtime.errors import UserError
from runtime.files import replacing
from runtime.program import is_first_rank
from tuning.options import Settings

if TYPE_CHECKING:
    from tuning.data.sample import Sample, Unbuildable

ABOUT = """\
Scores, predictions, losses and metrics of a task, as one JSON object.

    python -m tuning evaluate --task rte --data-dir RTE --split dev --cloze-eval --load CHECKPOINT --tokenizer-type ...
    python -m tuning evaluate --task cnn_dm --data-dir cnn_dm --split test --load CHECKPOINT --num-beams 5 --select-topk
"""


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(description=ABOUT, prog="python -m tuning evaluate")
    add_settings(parser)
    add_model(parser)
    add = parser.add_argument
    add("--eval-batch-size", type=count, default=16, metavar="N", help="rows of a batch, whose mean losses are given")
    add("--losses", type=_names, default=(), metavar="F,G", help="which losses of the batches are given, too")
    add("--hyps", type=Path, metavar="FILE", help="seq2seq: what was written, a text a line, for scripts/"
        "evaluate_seq2seq.sh; the references beside it, in FILE with .refs in place of .hyps")
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments)
    if arguments.hyps and settings.data.task is not None:
        check_writes(settings)
    samples, found = evaluated(settings, arguments)
    if not is_first_rank():  # of several, which share the rows
        return 0
    if arguments.hyps:
        write_texts(found["rows"], arguments.hyps)
    write_object({"task": settings.data.task, "split": settings.data.split} | found, arguments.output)
    tell_notes(settings, samples)
    return 0


def evaluated(settings: Settings,
              arguments: argparse.Namespace) -> tuple[Sequence[Sample | Unbuildable], dict[str, Any]]:
    """The samples, and the figures of a task. Files are read, and their mistakes found, before a model is loaded."""
    from tuning.tasks import samples_of

    samples = samples_of(settings, arguments.load)
    from tuning.validation import evaluation_of

    call = evaluation_of(settings.data.task, arguments.load)
    tuned = load_tuned(arguments)
    about = {"load": str(arguments.load)} | ({"adapter": dict(tuned.model.adapter)} if tuned.model.adapter else {})
    return samples, about | call(tuned, settings, samples, arguments.eval_batch_size, arguments.losses)


def tell_notes(settings: Settings, samples: Sequence[Sample | Unbuildable]) -> None:
    """What is to be known of the rows, on standard error: behind the result, for a mistake is one line alone."""
    from tuning.notes import notes_on

    for note in notes_on(settings, samples):
        print(note, file=sys.stderr)


def check_writes(settings: Settings) -> None:
    """UserError where no texts will be written, said before a model is loaded."""
    from tuning.tasks import kind_of

    if kind_of(settings.data.task) != "seq2seq" or settings.seq2seq.no_decode:
        raise UserError(f"--task {settings.data.task}: no text is written; only seq2seq tasks write texts, without "
                        "--no-decode")


def _names(word: str) -> tuple[str, ...]:
    return tuple(name for name in word.split(",") if name)


def write_texts(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Predictions and references in two files, a text a line."""
    for file, name in ((path, "prediction"), (path.with_suffix(".refs"), "ref")):
        with replacing(file) as temporary:
            temporary.write_text("".join(" ".join(row[name].split()) + "\n" for row in rows), encoding="utf-8")
