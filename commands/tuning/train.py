"""python -m tuning train: tune or pretrain; killed at any moment, the same command goes on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from commands.tuning.common import add_model, add_settings, settings_of
from runtime.arguments import CommandParser, chosen, flags
from runtime.errors import UserError
from tuning.options import CheckpointOptions, PartsOptions
from tuning.plan import Zero, job_of
from tuning.plan_fit import choice_of, require_fit
from tuning.train_options import OptimizerOptions, TrainOptions

ABOUT = """\
Tunes a checkpoint on a task's rows, or pretrains it on documents.

    python -m tuning train --task rte --data-dir RTE --cloze-eval --load glm-large --save runs/rte --epochs 50 --lr 1e-5

The folder of --save holds log.jsonl (a line for each step), and in the end a checkpoint that --load takes. A run that
was killed goes on with the same command, and ends with the very same files.
"""


def parser_of(name: str, about: str) -> CommandParser:
    """Of train, and of plan, which takes the same flags."""
    parser = CommandParser(description=about, prog=f"python -m tuning {name}")
    add_settings(parser)
    parser.set_defaults(split="train")
    add_model(parser)
    parser.add_argument("--save", type=Path, required=name == "train", metavar="DIR",
                        help="folder of the run and its result")
    parser.add_argument("--no-plan", action="store_true", help="start even where there is not memory enough")
    flags(parser.add_argument_group("optimizer"), OptimizerOptions)
    flags(parser.add_argument_group("training"), TrainOptions)
    return parser


def main(argv: Sequence[str]) -> int:
    parser = parser_of("train", ABOUT)
    arguments = parser.parse_args(argv)
    if arguments.load is None:
        raise UserError("no checkpoint was named: --load DIR")
    if arguments.save.resolve() == arguments.load.resolve():
        raise UserError(f"--save {arguments.save} is the folder of --load; name another")
    settings = settings_of(arguments)

    from runtime import parallel
    from runtime.files import Lock
    from runtime.program import FORESEEN, Interrupts, ended
    from tuning.deepspeed_config import settled
    from tuning.training import Asked, is_divided, run_training
    from tuning.training_data import read

    parallel.start(arguments.model_parallel_size or 1, device=arguments.device)
    given = settled(chosen(CheckpointOptions, arguments), chosen(TrainOptions, arguments),
                    chosen(OptimizerOptions, arguments), parser.said(argv), parallel.data_parallel_size())
    data = parallel.agree(lambda: read(settings, given.options, arguments.load, parallel.data_parallel_size()))
    asked = Asked(arguments.save, given.checkpoint, chosen(PartsOptions, arguments), settings, given.options,
                  given.optimizer, given.deepspeed)
    divides = parallel.agree(lambda: is_divided(given.deepspeed))
    if parallel.is_first_process():
        if given.deepspeed.unused:
            print(f"{given.options.deepspeed_config}: not used here: {', '.join(given.deepspeed.unused)}",
                  file=sys.stderr)
        if given.deepspeed.stage and not divides:
            print(f"{given.options.deepspeed_config}: one data-parallel rank, so that ZeRO has nothing to divide",
                  file=sys.stderr)
    if not arguments.no_plan:
        parallel.agree(lambda: require_fit(job_of(asked.checkpoint, asked.parts, settings, given.options, data,
                                                  zero=Zero.of(given.deepspeed),
                                                  optimizer=given.optimizer.optimizer),
                                           choice_of(settings, given.options), arguments.device))
    try:
        with ExitStack() as stack, Interrupts() as interrupts:
            parallel.agree(lambda: parallel.is_first_process() and stack.enter_context(Lock(arguments.save, "--save")))
            say = partial(print, file=sys.stderr, flush=True)
            run_training(asked, data, interrupts, telling(len(data.steps), say), say)
    except FORESEEN as error:
        return ended(error, f"the same command goes on from the last saved step: {arguments.save}")
    if parallel.is_first_process():
        report = "; report.html tells of it" if (arguments.save / "report.html").exists() else ""
        print(f"{arguments.save}: done{report}", file=sys.stderr)
    return 0


def telling(steps: int, say: Callable[[str], None]) -> Callable[[Mapping[str, Any]], None]:
    """What hears of each line of the log: says the first step, one when time has passed, and each validation."""
    from runtime.parallel import is_first_process
    from tuning.corpus_run import Lines

    lines = Lines(steps)

    def tell(line: Mapping[str, Any]) -> None:
        if not is_first_process() or line["loss"] is None:
            return
        if told := lines.after(line["step"] + 1, line["loss"], line.get("validation")):
            say(told)

    return tell
