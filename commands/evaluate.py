"""python -m evaluation: score a model on tasks.

    python -m evaluation tasks/quickstart
    python -m evaluation --load CHECKPOINT --data-path DIR --output DIR tasks/lambada tasks/chinese
    python scripts/launch.py 8 evaluation --load CHECKPOINT --model-parallel-size 4 ...   two groups share the work

Exit codes: 0 all tasks scored (or listed as missing with --allow-missing), 2 a mistake in the arguments, task files or
data (one line each), 130 or 143 interrupted: what was computed is kept, the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Sequence

from commands.evaluate_arguments import COMPARE, PROGRAM, limit_of, output_folder, parse
from commands.model import announce_loading, load_model, require_fit, start_processes
from evaluation.store import GO_ON
from runtime.arguments import CommandParser
from runtime.errors import UserError, printable
from runtime.files import Lock
from runtime.program import FORESEEN, ended, is_first_rank, terminating
from runtime.show import counted


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    output = None
    try:
        with terminating():
            if argv[:1] == [COMPARE]:
                return compare(argv[1:])
            arguments = parse(argv, __doc__)
            output = output_folder(arguments)
            arguments.command = f"{PROGRAM} {shlex.join(argv)}"
            return evaluate(arguments, output)
    except FORESEEN as error:
        return ended(error, f"{GO_ON}: {output}" if output else "")


def compare(argv: list[str]) -> int:
    from evaluation import compare as command

    parser = CommandParser(prog=f"{PROGRAM} {COMPARE}", description=command.__doc__)
    command.add_arguments(parser)
    return command.main(parser.parse_args(argv))


def evaluate(arguments: argparse.Namespace, output) -> int:
    say = Voice()
    configs = found = failure = None
    try:
        if not arguments.check and arguments.load.is_dir():  # where there is none, what is wrong with data comes first
            require_fit(arguments, "this evaluation")
        configs, found = looked_at(arguments, output)
    except UserError as error:
        if is_first_rank():
            raise
        failure = error  # on another host: the first process hears of it when the processes have met
    if arguments.check:
        return check(configs, found, say) if is_first_rank() else 0
    with Lock(output, "--output") if is_first_rank() else contextlib.nullcontext():
        announce_loading(arguments)
        model, tokenizer = loaded(arguments, failure)
        results = scored(arguments, output, model, tokenizer, configs, found, say)
        from runtime.parallel import agree  # there with the model

        agree(lambda: finish(output, results, say) if results is not None else None)
    return 0


def looked_at(arguments: argparse.Namespace, output):
    """The tasks, and the data of each. output: the folder that samples will be written to."""
    from evaluation.checking import look
    from evaluation.discovery import load_tasks
    from evaluation.sample_files import check_names
    from evaluation.work import relative

    longest = model_length(arguments)
    configs = load_tasks(arguments.paths, arguments.data_path, longest)
    warn_of_longer(configs, longest)
    tell_without_effect(configs)
    found = look(configs, arguments.allow_missing)
    check_names(output, {config.name: [relative(config, path) for path in found[config.name].rows]
                         for config in configs})
    if all(each.reason for each in found.values()) and not arguments.check:
        raise UserError("none of the tasks has data: " + "; ".join(each.reason for each in found.values()))
    for note in dict.fromkeys(note for each in found.values() for note in each.notes) if is_first_rank() else ():
        print(printable(f"warning: {note}"), file=sys.stderr, flush=True)
    return configs, found


def tell_without_effect(configs) -> None:
    """Of keys of a task file that change nothing."""
    from evaluation.checking import without_effect
    from evaluation.config import STRATEGIES

    for config in configs if is_first_rank() else ():
        if keys := without_effect(config):
            print(f"note: {config.source}: without effect: {', '.join(keys)} (only with sampling_strategy: "
                  f"{STRATEGIES[1]})", file=sys.stderr, flush=True)


def model_length(arguments: argparse.Namespace) -> int:
    """Tokens that the model is made for. Without a checkpoint, which may be told of later, what the original takes."""
    from evaluation.config import LONGEST
    from planning.check import config_of

    if not arguments.load.is_dir():
        return LONGEST
    try:
        return config_of(arguments).max_sequence_length
    except UserError:
        if arguments.check:  # which asks nothing of a model
            return LONGEST
        raise


def warn_of_longer(configs, longest: int) -> None:
    """Of tasks that allow sequences longer than the model is made for."""
    if not is_first_rank():
        return
    for config in configs:
        if config.max_seq_length > longest:
            print(f"warning: {config.source}: max_seq_length {config.max_seq_length} is more than the {longest} tokens "
                  "that the model takes (max_sequence_length); longer items are scored all the same, and counted as "
                  "`long`", file=sys.stderr)


def check(configs, found, say) -> int:
    for config in configs:
        rows, reason = found[config.name].rows, found[config.name].reason
        what = reason or f"{counted(len(rows), 'file')}, {counted(sum(rows.values()), 'row')}"
        say(f"{'missing' if reason else 'ready'}  {config.name}: {what}")
    return 0


def loaded(arguments: argparse.Namespace, failure: UserError | None):
    """The model and the tokenizer; UserError on all processes if one had a `failure` before, or weights are damaged."""
    start_processes(arguments)
    from glm.diagnose import check_weights
    from runtime import parallel
    from runtime.parallel import agree

    def confess() -> None:
        if failure is not None:
            raise failure

    is_started = parallel.is_started()
    if is_started:
        agree(confess)
    model, tokenizer = load_model(arguments)
    if not is_started:
        agree(confess)
    check_weights(model, arguments.load)
    return model, tokenizer


def scored(arguments: argparse.Namespace, output, model, tokenizer, configs, found, say) -> dict | None:
    from evaluation.keeper import Settings
    from evaluation.run import run
    from evaluation.scorer import Scorer

    settings = Settings(
        arguments.load, arguments.data_path, output, limit_of(arguments), arguments.max_batch_tokens,
        arguments.micro_batch_size, arguments.allow_missing,
        is_replaceable=arguments.overwrite or arguments.output is None, command=arguments.command)
    return run(model, tokenizer, Scorer(model), configs, found, settings, say)


def finish(output, results: dict, say) -> None:
    """The report, the closing table, and where everything is."""
    from shutil import get_terminal_size

    from evaluation.report import write_report
    from evaluation.table import closing_table

    is_terminal = sys.stdout.isatty()
    say("")
    say.table(closing_table(results, get_terminal_size().columns if is_terminal else None,
                            is_terminal and not os.environ.get("NO_COLOR")))
    say(f"Results: {output}; to look at: {write_report(output, own_code=True)}")


class Voice:
    """What the first process prints to standard output: lines, and a table that brings its own terminal codes."""

    def __call__(self, line: str) -> None:
        self.table(printable(line))

    def table(self, text: str) -> None:
        if is_first_rank():
            print(text.rstrip("\n"), flush=True)
