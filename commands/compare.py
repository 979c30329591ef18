"""python -m evaluation compare RUN_A RUN_B: what has changed between two runs over the same items, and how surely.

Every figure's difference has a paired bootstrap interval. Where an item is either right or wrong, McNemar's exact test
says whether the items that flipped did so more in one direction than chance would have it, and Holm's correction keeps
many tasks from making one of them look changed. With several prompts for the same items, an item counts once, for the
run that has it right under more of the prompts.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.arguments import CommandParser
from runtime.errors import UserError

COMPARE = "compare"


def parser() -> CommandParser:
    found = CommandParser(prog=f"python -m evaluation {COMPARE}", description=__doc__)
    found.add_argument("run_a", type=Path, metavar="RUN_A",
                       help="output folder of a run, or a file of `python -m tuning evaluate` or `score-text`")
    found.add_argument("run_b", type=Path, metavar="RUN_B", help="the same, of the run to compare with it")
    found.add_argument("--common", action="store_true",
                       help="where the runs differ in tasks, data or number of items, take what is the same")
    found.add_argument("--own-code", action="store_true",
                       help="import the code that task files outside this repository name for their metrics")
    found.add_argument("--show-flips", type=int, default=0, metavar="N",
                       help="list the first N items of every task that one run has right and the other wrong")
    found.add_argument("--json", type=Path, metavar="FILE", help="write everything, with all indices, to FILE")
    return found


def main(argv: Sequence[str]) -> int:
    """0: compared, whatever came of it. Raises UserError for a mistake."""
    arguments = parser().parse_args(list(argv))
    if arguments.show_flips < 0:
        raise UserError(f"--show-flips {arguments.show_flips}: must be 0 or more")
    if arguments.json is not None and not arguments.json.absolute().parent.is_dir():
        raise UserError(f"--json {arguments.json}: there is no folder {arguments.json.absolute().parent}")
    from evaluation.compare import compare
    from evaluation.compare_table import comparison_table, flip_lines

    found = compare(arguments.run_a, arguments.run_b, arguments.common, arguments.own_code)
    if arguments.json is not None:
        _write(arguments.json, found.record)
    is_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    sys.stdout.write(comparison_table(found.record, width, is_terminal))
    sys.stdout.writelines(f"{line}\n" for line in flip_lines(found.flipped, arguments.show_flips))
    return 0


def _write(path: Path, record: dict) -> None:
    import json

    from runtime.files import replacing

    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(record, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}") from None
