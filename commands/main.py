"""glm COMMAND, or python -m glm COMMAND: every program of the toolkit under one name."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from runtime.arguments import CommandParser

PROGRAM = "python -m glm"
# Name: the function that is given the words behind it, words that go first, and what it does. Imported when named.
COMMANDS = {
    "generate": ("commands.generate:main", (), "fill blanks and write text, in a session or for a file of prompts"),
    "chat": ("commands.generate:main", ("--chat",), "a conversation with a chat model"),
    "evaluate": ("commands.evaluate:main", (), "score a model on tasks"),
    "lm-eval": ("commands.lm_eval:main", (), "lm-evaluation-harness with this toolkit's models, where it is installed"),
    "compare": ("commands.evaluate:main", ("compare",), "what differs between two evaluations, and whether by chance"),
    "serve": ("commands.serve:main", (), "an OpenAI-compatible server, with a page"),
    "tune": ("commands.tuning:main", (), "tune or pretrain a model, and see what it is given (python -m tuning)"),
    "plan": ("commands.plan:main", (), "memory and time of a run, before it is started"),
    "doctor": ("commands.doctor:main", (), "what is wrong with this installation, and how to mend it"),
    "convert": ("commands.convert:main", (), "another tensor-parallel degree, or quantised weights, for a checkpoint"),
    "export-hf": ("commands.huggingface:export_main", (), "a checkpoint as a folder in Hugging Face's layout"),
    "import-hf": ("commands.huggingface:import_main", (), "a folder of Hugging Face's in the toolkit's own layout"),
    "verify": ("commands.convert:verify", (), "is a checkpoint whole and unchanged?"),
    "quantization": ("commands.quantization:main", (), "what INT8 and INT4 change in a model, measured"),
}


def main(argv: Sequence[str] | None = None, program: str = PROGRAM) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        target, words, _ = COMMANDS[argv[0]]
        module, _, function = target.partition(":")
        return getattr(import_module(module), function)([*words, *argv[1:]])
    parser = CommandParser(description=about(program), prog=program)
    parser.add_argument("command", nargs="?", choices=tuple(COMMANDS), help="what to do")
    parser.parse_args(argv)
    parser.error(f"no command was named; there are: {', '.join(COMMANDS)}")


def about(program: str) -> str:
    return "\n".join(["", *(f"    {program} {name:<13} {what}" for name, (_, _, what) in COMMANDS.items()), "",
                      f"{program} COMMAND --help lists the arguments of one.", ""])
