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
import hashlib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from commands import compare
from commands.model import add_model_arguments, announce_loading, load_model, require_fit, start_processes
from evaluation.store import GO_ON
from runtime.arguments import CommandParser
from runtime.errors import Faults, UserError, printable
from runtime.files import REPOSITORY, Lock, safe_name
from runtime.program import FORESEEN, ended, is_first_rank, terminating
from runtime.show import counted

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


def parser() -> EvaluationParser:
    found = EvaluationParser(__doc__, prog=PROGRAM, epilog=f"{PROGRAM} {compare.COMPARE} RUN_A RUN_B compares the "
                             f"results of two runs ({compare.COMPARE} --help).")
    add_model_arguments(found)
    what = found.add_argument_group("tasks and data")
    what.add_argument("paths", nargs="*", metavar="TASK", help="task files, folders of them, or globs")
    what.add_argument("--task", nargs="+", action="extend", default=[], metavar="TASK", help="the same")
    what.add_argument("--data-path", type=Path, default=Path(os.environ.get("DATA_PATH") or REPOSITORY / "data"),
                      metavar="DIR", help="folder of the data, which `path` in a task file is relative to (default: "
                                          "$DATA_PATH, else data/ of the repository)")
    what.add_argument("--allow-missing", action="store_true",
                      help="tasks without data are listed as missing, the others are scored")
    what.add_argument("--limit", type=share_or_rows, metavar="N",
                      help="only the first N rows of every file, or, below 1, that share of them (0.1)")
    what.add_argument("--sample-seed", type=int, metavar="S",
                      help="--limit draws its rows instead: with one seed always the same ones, under all prompts")
    what.add_argument("--num-fewshot", type=int, metavar="N",
                      help="examples in front of every question, whatever task files say (0: none)")
    what.add_argument("--chat-format", action="store_true",
                      help="chat models: put every text to the model as a question, in the format it was trained on")
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


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Arguments whose numbers make sense; raises UserError, or ends the program for flags that do not exist."""
    arguments = parser().parse_args(list(argv))
    arguments.paths += arguments.task
    if not arguments.paths:
        raise UserError("no task was named; give task files, folders or globs, for example: tasks/quickstart")
    for flag, least in (("max_batch_tokens", 1), ("micro_batch_size", 1), ("num_fewshot", 0)):
        value = getattr(arguments, flag)
        if value is not None and value < least:
            raise UserError(f"--{flag.replace('_', '-')} {value}: must be at least {least}")
    if arguments.limit is not None and arguments.limit <= 0:
        raise UserError(f"--limit {arguments.limit}: must be at least 1 row, or a share between 0 and 1")
    if arguments.sample_seed is not None and arguments.limit is None:
        raise UserError("--sample-seed draws the rows that --limit takes; say how many with --limit")
    return arguments


def share_or_rows(text: str) -> int | float:
    """A whole number, or what lies between 0 and 1."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: must be a number of rows, or a share between 0 and 1")


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


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    output = None
    try:
        with terminating():
            if argv[:1] == [compare.COMPARE]:
                return compare.main(argv[1:])
            arguments = parse(argv)
            output = output_folder(arguments)
            arguments.command = f"{PROGRAM} {shlex.join(argv)}"
            return evaluate(arguments, output)
    except FORESEEN as error:
        return ended(error, f"{GO_ON}: {output}" if output else "")


def evaluate(arguments: argparse.Namespace, output: Path) -> int:
    say = Voice()
    configs = found = failure = None
    arguments.int8_vocabulary = arguments.int8_vocabulary or "off"  # of the same results whatever batches there are
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


def looked_at(arguments: argparse.Namespace, output: Path):
    """The tasks, and the data of each. output: the folder that samples will be written to."""
    from evaluation.discovery import load_tasks
    from evaluation.output import check_names
    from evaluation.plan import look, relative

    longest = model_length(arguments)
    configs = load_tasks(arguments.paths, arguments.data_path, longest)
    if arguments.num_fewshot is not None:
        configs = with_examples(configs, arguments.num_fewshot)
    warn(note for config in configs for note in oddities(config, longest))
    found = look(configs, arguments.allow_missing)
    check_names(output, {config.name: [relative(config, path) for path in found[config.name].rows]
                         for config in configs})
    if all(each.reason for each in found.values()) and not arguments.check:
        raise UserError("none of the tasks has data: " + "; ".join(each.reason for each in found.values()))
    warn(f"warning: {note}" for note in dict.fromkeys(note for each in found.values() for note in each.notes))
    return configs, found


def with_examples(configs, number: int) -> list:
    """The tasks with so many examples in front of every question; UserError for those that take none."""
    from dataclasses import replace

    from evaluation.config import ExampledTaskConfig

    faults = Faults()
    if number:
        faults += [f"{config.source}: a {config.type.value} task takes no examples; leave it out, or --num-fewshot"
                   for config in configs if not isinstance(config, ExampledTaskConfig)]
    faults.tell()
    return [replace(config, num_fewshot=number) if isinstance(config, ExampledTaskConfig) else config
            for config in configs]


def oddities(config, longest: int):
    """What is most likely a mistake in a task file. longest: tokens that the model is made for."""
    from evaluation.config import STRATEGIES
    from evaluation.task_file import without_effect

    if config.max_seq_length > longest:
        yield (f"warning: {config.source}: max_seq_length {config.max_seq_length} is more than the {longest} tokens "
               "that the model takes (max_sequence_length); longer items are scored all the same, and counted as "
               "`long`")
    if keys := without_effect(config):
        yield (f"note: {config.source}: without effect: {', '.join(keys)} (only with sampling_strategy: "
               f"{STRATEGIES[1]})")


def warn(lines) -> None:
    for line in lines if is_first_rank() else ():
        print(printable(line), file=sys.stderr, flush=True)


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


def scored(arguments: argparse.Namespace, output: Path, model, tokenizer, configs, found, say) -> dict | None:
    from evaluation.plan import Limit
    from evaluation.run import Settings, run
    from evaluation.scorer import Scorer

    limit = None if arguments.limit is None else Limit(arguments.limit, arguments.sample_seed)
    settings = Settings(
        arguments.load, arguments.data_path, output, limit, arguments.max_batch_tokens, arguments.micro_batch_size,
        arguments.allow_missing, arguments.num_fewshot, arguments.chat_format,
        is_replaceable=arguments.overwrite or arguments.output is None,
        command=arguments.command)
    return run(model, tokenizer, Scorer(model, tokenizer), configs, found, settings, say)


def finish(output: Path, results: dict, say) -> None:
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
