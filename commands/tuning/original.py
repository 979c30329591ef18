"""python -m tuning original PROGRAM FLAGS: a command line of GLM's repository or of ChatGLM's ptuning, as it is."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

from runtime.errors import UserError
from runtime.program import is_first_rank
from tuning.originals import PROGRAMS, translated

ABOUT = f"""\
Runs a command line of the GLM repository ({', '.join(PROGRAMS[:-1])}) or of ChatGLM-6B's ptuning folder (main.py).

    python -m tuning original finetune_glm.py --task COPA --data-dir COPA --load-pretrained glm-large --save runs ...

What it becomes is said first; the same words with `python -m tuning` do the same. Flags without effect here are named.
"""


def main(argv: Sequence[str]) -> int:
    if not argv:
        raise UserError(f"which program's command line? There are {', '.join(PROGRAMS)}; --help tells more")
    if argv[0] in ("-h", "--help"):
        print(ABOUT, end="")
        return 0
    found = translated(argv[0], argv[1:])
    if is_first_rank():
        if found.left_out:
            print(f"without effect here: {' '.join(dict.fromkeys(found.left_out))}", file=sys.stderr)
        for command in found.commands:
            print(f"python -m tuning {shlex.join(command)}", file=sys.stderr)
    for command, *words in found.commands:
        if code := import_module(f"commands.tuning.{command}").main(words) or 0:
            return code
    return 0
