"""python -m tuning predict: the predictions of a split in the form of the task's own files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from commands.tuning.common import add_model, add_settings, load_tuned, settings_of, write_lines
from commands.tuning.evaluate import check_writes, evaluated, tell_notes, write_texts
from runtime.arguments import CommandParser, count
from runtime.errors import UserError
from runtime.program import is_first_rank
from tuning.options import Settings

ABOUT = """\
The predictions of a split in the form of the task's own files.

    python -m tuning predict --task rte --data-dir RTE --cloze-eval --load CHECKPOINT --output RTE.jsonl
    python -m tuning predict --task gigaword --data-dir DIR --load CHECKPOINT --num-beams 5 --output test.hyps
    python -m tuning predict --task chat --test-file dev.json --load chatglm-6b --adapter runs/ads --output FILE

Of tasks whose answers are chosen a line {"idx", "label"} a row, as leaderboards take them; MultiRC's lie within their
questions and passages. Of seq2seq tasks a text a line, and the references beside it, in FILE with .refs in place of its
ending. Of --task chat a JSON line {"labels", "predict"} a row of --test-file, which is drawn as ptuning draws it.
"""


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(description=ABOUT, prog="python -m tuning predict")
    add_settings(parser)
    add_model(parser)
    parser.set_defaults(split="test", losses=())
    parser.add_argument("--eval-batch-size", type=count, default=16, metavar="N", help="rows at a time")
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments)

    from tuning.data import cloze, seq2seq
    from tuning.data.sample import built
    from tuning.tasks import CHAT, module_of

    if settings.data.task == CHAT:
        found = _replies(settings, arguments)
        if is_first_rank():
            write_lines(found, arguments.output)
        return 0
    module = module_of(settings.data.task)
    if module not in (cloze, seq2seq):
        raise UserError(f"--task {settings.data.task}: its rows have no predictions; evaluate gives their figures")
    if module is seq2seq and arguments.output is None:
        raise UserError("--output FILE: where are the texts to be written? References go beside it")
    if module is seq2seq:
        check_writes(settings)
    samples, found = evaluated(settings, arguments)
    if not is_first_rank():
        return 0
    if module is seq2seq:
        write_texts(found["rows"], arguments.output)
    else:
        predictions = [row["prediction"] for row in found["rows"]]
        write_lines(cloze.prediction_lines(settings, built(samples), predictions), arguments.output)
    tell_notes(settings, samples)
    return 0


def _replies(settings: Settings, arguments: argparse.Namespace) -> list[dict[str, str]]:
    from tuning.chat_replies import replies
    from tuning.data.chat_files import prompts
    from tuning.evaluate import shared
    from tuning.tokenizers import open_for

    asked, _ = prompts(settings)  # mistakes in the file come before the model is loaded
    tokenizer, tuned = open_for(settings, arguments.load), load_tuned(arguments)
    return shared(range(len(asked)), lambda numbers: list(
        replies(tuned, settings, tokenizer, arguments.load, arguments.eval_batch_size, numbers)))
