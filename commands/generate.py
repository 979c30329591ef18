"""python -m generation: fill blanks and write text, in a session or for a file of prompts.

    python -m generation --input-source interactive
    python -m generation --load CHECKPOINT --input-source prompts.txt --output-path answers
    python scripts/launch.py 8 generation --load CHECKPOINT --model-parallel-size 8 --model glm-130b --fp16 ...

Exit codes: 0 all prompts answered, 2 a mistake in the arguments or files or some prompts without an answer (each with
one message and an `error` in results.jsonl), 130 or 143 interrupted: with --resume the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.model import add_model_arguments, announce_loading, load_model, require_fit
from generation.batching import bounds
from generation.params import STRATEGIES, BeamParams, Options, SamplingParams, without_effect
from generation.prompt_file import PromptLine, read_prompts
from generation.records import RESULTS, Results
from planning.check import Use
from runtime.arguments import CommandParser, chosen, flags
from runtime.errors import UserError, printable, unsteering
from runtime.program import FAILED, FORESEEN, ended, is_first_rank, is_unheard, terminating

INTERACTIVE = "interactive"
OF_FILES = ("output_path", "with_id", "batch_size", "resume", "overwrite")
OF_SESSIONS = ("print_all_beams", "no_stream", "no_color")
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
LONG_TIMEOUT = 7 * 24 * 3600.0  # ranks wait for a user who thinks


def parser() -> CommandParser:
    found = CommandParser(__doc__, prog="python -m generation")
    add_model_arguments(found)
    files = found.add_argument_group("prompts and answers")
    files.add_argument("--input-source", default=INTERACTIVE, metavar="FILE",
                       help="a file of prompts, one a line, or JSON lines (.jsonl), or 'interactive' (default)")
    files.add_argument("--output-path", type=Path, metavar="DIR",
                       help="where a file's answers go (default: samples): results.jsonl, a text file per prompt")
    files.add_argument("--with-id", action="store_true", help="a line is an id, a tab and the prompt")
    files.add_argument("--batch-size", type=int, metavar="N", help="most prompts at a time (default: by memory)")
    again = files.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="skip the prompts that results.jsonl has answers to")
    again.add_argument("--overwrite", action="store_true", help="replace an earlier results.jsonl")
    files.add_argument("--chat", action="store_true", help="a conversation with a chat model, in a session")
    files.add_argument("--print-all-beams", action="store_true",
                       help="show all beams of beam search with their scores, not the best alone (session)")
    files.add_argument("--no-stream", action="store_true", help="show an answer when it is complete (session)")
    files.add_argument("--no-color", action="store_true", help="no terminal codes (also: NO_COLOR=1)")
    add_strategy_arguments(found)
    return found


def add_strategy_arguments(found: CommandParser) -> None:
    group = found.add_argument_group("strategy")
    group.add_argument("--sampling-strategy", dest="strategy", default=STRATEGIES[0], choices=STRATEGIES,
                       help=f"default: {STRATEGIES[0]}")
    flags(group, Options.sampling, Options.beams)
    group.add_argument("--stop", action="append", default=[], metavar="TEXT",
                       help="an answer ends before this text; repeatable")


def options_of(arguments: argparse.Namespace) -> Options:
    return Options(chosen(SamplingParams, arguments), chosen(BeamParams, arguments), arguments.strategy,
                   arguments.print_all_beams, tuple(arguments.stop))


def main(argv: list[str] | None = None) -> int:
    known = parser()
    arguments = known.parse_args(argv)
    arguments.given = known.said(argv)
    try:
        options = options_of(arguments)
        if arguments.batch_size is not None and arguments.batch_size < 1:
            raise UserError(f"--batch-size {arguments.batch_size}: must be at least 1")
        if arguments.chat and arguments.input_source != INTERACTIVE:
            raise UserError("--chat is a session; leave out --input-source")
        if arguments.input_source == INTERACTIVE:
            return session(arguments, options)
        return file_run(arguments, options)
    except FORESEEN as error:
        return ended(error, _go_on(arguments))


def _go_on(arguments: argparse.Namespace) -> str:
    """How to go on with what has been answered, if anything has."""
    if arguments.input_source == INTERACTIVE:
        return ""
    answers = output_folder(arguments) / RESULTS
    is_begun = os.path.isfile(answers) and os.path.getsize(answers) > 0
    return f"--resume goes on from here: {answers.parent}" if is_begun else ""


def loaded(arguments: argparse.Namespace, lines: Sequence[PromptLine], timeout_seconds: float = 1800):
    """The model and the tokenizer, for these prompts."""
    require_fit(arguments, "this run", use_of(arguments, lines))
    announce_loading(arguments)
    model, tokenizer = load_model(arguments, timeout_seconds)
    from runtime import parallel

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != parallel.size():
        raise UserError(f"{world} processes, but the model is split into {parallel.size()}; start exactly as many: "
                        f"python scripts/launch.py {parallel.size()} generation ...")
    return model, tokenizer


def use_of(arguments: argparse.Namespace, lines: Sequence[PromptLine]) -> Use:
    def longest(name: str) -> int | None:
        values = [getattr(line.options.params, name) for line in lines] or [getattr(arguments, name)]
        return None if None in values else max(values)

    sizes = tuple(len(line.text.encode("utf-8", "replace")) for line in lines)
    return Use(sizes, options_of(arguments).params.num_beams, arguments.batch_size, longest("out_seq_length"),
               longest("max_gen_length"), bounds)


def file_run(arguments: argparse.Namespace, options: Options) -> int:
    results = None
    with contextlib.ExitStack() as stack:
        if is_first_rank():
            lines = read_prompts(arguments.input_source, arguments.with_id, options)
            results = stack.enter_context(Results(output_folder(arguments), lines, arguments.resume,
                                                  arguments.overwrite, arguments.input_source))
        stack.enter_context(terminating())
        todo = [] if results is None else [line for line in results.lines
                                           if line.error is None and line.index not in results.done]
        model, tokenizer = loaded(arguments, todo)
        from generation.file_run import run_file
        from runtime import parallel

        tell_without_effect(arguments, options, model, OF_SESSIONS, "in a session only")
        counts = run_file(model, tokenizer, results, options, arguments.batch_size, arguments.load)
        if results is not None:
            skipped = f", {counts['resumed']} there already" if counts["resumed"] else ""
            print(printable(f"{counts['answered']} of {counts['prompts']} prompts answered{skipped}, "
                            f"{counts['failed']} failed: {results.path}"))
        return FAILED if parallel.broadcast_object(counts["failed"]) else 0


def tell_without_effect(arguments: argparse.Namespace, options: Options, model, others: Sequence[str], why: str):
    """One line on what was said and changes nothing. others: arguments of the other way to run; why: they do not."""
    mine = [name for name in arguments.given if name not in others]
    elsewhere = ", ".join(name for name in dict.fromkeys(arguments.given) if name in others)
    told = [f"without effect: {elsewhere} ({why})" if elsewhere else "",
            without_effect(options, mine, model.config.max_sequence_length)]
    if any(told) and is_first_rank():
        print(f"note: {'; '.join(filter(None, told))}", file=sys.stderr, flush=True)


def output_folder(arguments: argparse.Namespace) -> Path:
    return arguments.output_path or Path("samples")


def session(arguments: argparse.Namespace, options: Options) -> int:
    model, tokenizer = loaded(arguments, [PromptLine(0, 1, "", options=options)], LONG_TIMEOUT)
    from generation.chat_session import CHAT_QUERY, ChatSession, follow_chat
    from generation.chatting import format_of
    from generation.session import QUERY, Session, follow, line_editing
    from runtime import parallel

    kind, query, followed = (ChatSession, CHAT_QUERY, follow_chat) if arguments.chat else (Session, QUERY, follow)
    if arguments.chat:
        own = Options(sampling=format_of(model).sampling)
        options = own.changed(**{name: value for name, value in options.values().items() if name in arguments.given})
    tell_without_effect(arguments, options, model, OF_FILES, "for a file of prompts only")
    if not is_first_rank():
        followed(model, tokenizer)
        return 0
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    colour = sys.stdout.isatty() and not arguments.no_color and not os.environ.get("NO_COLOR")

    def write(text: str) -> None:
        print(unsteering(text) if sys.stdout.isatty() else text, end="", flush=True)

    def note(text: str) -> None:
        if sys.stdout.isatty():
            write(f"{DIM}{text}{PLAIN}\n" if colour else f"{text}\n")
        else:  # a program that reads standard output wants the answers alone
            print(text, file=sys.stderr, flush=True)

    def read() -> str:
        if is_unheard():
            raise EOFError
        return input(query if is_terminal else "")

    with line_editing(is_terminal):
        kind(model, tokenizer, options, read, write, note, colour, not arguments.no_stream).run()
    parallel.broadcast_object(None)
    return 0
