"""python -m tuning COMMAND: what a model is given, its scores, training, and what is done with the result."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from runtime.arguments import CommandParser
from runtime.program import FORESEEN, ended

PROGRAM = "python -m tuning"
COMMANDS = {  # name: what it does; commands/tuning/NAME.py has its main
    "inspect": "what a model will be given, a JSON line a sample",
    "evaluate": "scores, predictions, losses and metrics of a task",
    "predict": "predictions of a split as the task's own files have them",
    "train": "tune or pretrain; killed, the same command goes on",
    "plan": "what a training takes of memory and time, before it begins",
    "score-text": "ROUGE and BLEU of given texts",
    "forget": "what a tuned model still does of what its base could do",
    "original": "a command line of the GLM repository or of ChatGLM's ptuning, as it is",
    "merge": "a checkpoint with an adapter's products added",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code; usable any number of times in a process."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0] in COMMANDS:
            return import_module(f"commands.tuning.{argv[0].replace('-', '_')}").main(argv[1:]) or 0
        parser = CommandParser(description=about(), prog=PROGRAM)
        parser.add_argument("command", nargs="?", choices=tuple(COMMANDS), help="what to do")
        parser.parse_args(argv)
        parser.error(f"no command was named; there are: {', '.join(COMMANDS)}")
    except SystemExit as end:  # of the parser: --help, or a wrong flag
        return int(end.code or 0)
    except FORESEEN as error:
        return ended(error)


def about() -> str:
    return "\n".join(["", *(f"    {PROGRAM} {name:<11} {what}" for name, what in COMMANDS.items()), "",
                      f"{PROGRAM} COMMAND --help lists the arguments of one.", ""])
