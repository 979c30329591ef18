"""python -m glm lm-eval: lm-evaluation-harness with the model `glm`; the arguments are the harness's own.

    python -m glm lm-eval --model glm --model_args pretrained=checkpoints/glm-small --tasks TASK --batch_size auto
    python -m glm lm-eval --help
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from runtime.program import FORESEEN, ended, is_first_rank

PROGRAM = "lm-eval"


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        from evaluation import harness  # here, because torch takes seconds to import

        harness.register()
        if not is_first_rank():  # all ranks ask the same, one speaks of it
            os.environ["LMEVAL_LOG_LEVEL"] = "ERROR"
        from lm_eval.__main__ import cli_evaluate

        before, sys.argv = sys.argv, [PROGRAM, *argv]  # where the harness looks for its arguments
        try:
            cli_evaluate()
        finally:
            sys.argv = before
        return 0
    except FORESEEN as error:
        return ended(error)
