"""python -m tuning score-text: ROUGE and BLEU of given texts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from commands.tuning.common import write_object
from runtime.arguments import CommandParser
from runtime.errors import UserError
from runtime.reading import parse_json, read_text
from runtime.show import counted

ABOUT = """\
ROUGE-1, -2 and -L of predictions and their references, and with the rules of ChatGLM BLEU-4, row by row and their mean.

    python -m tuning score-text --pairs FILE --rules cnn_dm
    python -m tuning score-text --predictions test.jsonl.hyps --references test.jsonl.refs

Figures of ChatGLM lie between 0 and 100, others between 0 and 1.
"""
RULES = ("none", "gigaword", "cnn_dm", "chatglm")


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(description=ABOUT, prog="python -m tuning score-text")
    parser.add_argument("--pairs", type=Path, metavar="FILE", help="JSON lines of prediction and reference")
    parser.add_argument("--predictions", type=Path, metavar="FILE", help="a text a line, in the place of --pairs")
    parser.add_argument("--references", type=Path, metavar="FILE", help="the line of each prediction")
    parser.add_argument("--rules", choices=RULES, default="none",
                        help="what is done to both texts before: of a task's, for texts that WordPiece took apart "
                             "(cnn_dm), or ChatGLM's figures")
    parser.add_argument("--output", type=Path, metavar="FILE", help="for the result (default: standard output)")
    arguments = parser.parse_args(argv)
    predictions, references = _pairs(arguments.pairs, arguments.predictions, arguments.references)

    from tuning.text_metrics import is_chinese, score_pairs

    rows, mean = score_pairs(predictions, references, arguments.rules)
    faults = sum(isinstance(row, str) for row in rows)
    if faults:
        print(f"{faults} of {counted(len(rows), 'row')} cannot be scored and are not in the mean: see their errors",
              file=sys.stderr)
    if arguments.rules != "chatglm":
        warn_of_chinese(sum(map(is_chinese, references)), len(references))
    write_object({"rows": [{"error": row} if isinstance(row, str) else row for row in rows], "mean": mean},
                 arguments.output)
    return 0


def warn_of_chinese(count: int, total: int) -> None:
    """A line on standard error where references are Chinese, of which this ROUGE sees no words."""
    if count:
        print(f"{count} of {counted(total, 'reference')} have Chinese characters, which an English ROUGE does not see "
              "as words: their figures mean nothing; score them with score-text --rules chatglm", file=sys.stderr)


def _pairs(pairs: Path | None, predictions: Path | None, references: Path | None) -> tuple[list[str], list[str]]:
    """UserError for flags that name no texts, or both kinds, and for files that do not belong together."""
    if pairs is not None and (predictions or references):
        raise UserError("--pairs names both texts of a row; leave --predictions and --references away")
    if pairs is None:
        if predictions is None or references is None:
            raise UserError("no texts: name --pairs FILE, or --predictions FILE and --references FILE")
        found, wanted = _lines(predictions), _lines(references)
        if len(found) != len(wanted):
            raise UserError(f"{predictions} has {counted(len(found), 'line')}, {references} {len(wanted)}; each line "
                            "of one belongs to that of the other")
        return found, wanted
    texts: tuple[list[str], list[str]] = [], []
    for number, line in enumerate(_lines(pairs), 1):
        row = parse_json(line, str(pairs), number)
        for name, column in zip(("prediction", "reference"), texts, strict=True):
            text = row.get(name) if isinstance(row, dict) else None
            if not isinstance(text, str):
                raise UserError(f"{pairs}:{number}: must be an object with the texts prediction and reference; {name} "
                                f"is {'no text' if isinstance(row, dict) and name in row else 'missing'}")
            column.append(text)
    return texts


def _lines(path: Path) -> list[str]:
    """UserError for a file without lines."""
    text = read_text(path, is_prose=True).replace("\r\n", "\n")
    if not text.strip():
        raise UserError(f"{path}: holds no texts")
    return text.removesuffix("\n").split("\n")
