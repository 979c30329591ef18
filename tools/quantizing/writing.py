"""The report's files, the lines that are printed of it."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from shutil import get_terminal_size

from rich.console import Console

from runtime.errors import UserError, printable
from runtime.files import replacing
from tools.quantizing.plot import draw
from tools.quantizing.table import tables

JSON, PLOT = "report.json", "report.png"
PLAIN_WIDTH = 140  # where there is no terminal, nothing is to be cut off


def write(report: dict, folder: Path) -> list[str]:
    """Writes both files; returns the tables as lines for standard output, and what there is to know about them."""
    try:
        with replacing(folder / JSON) as temporary:
            temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        draw(report, folder / PLOT)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror}") from None
    is_terminal = sys.stdout.isatty()
    stream = io.StringIO()
    width = get_terminal_size().columns if is_terminal else PLAIN_WIDTH
    console = Console(file=stream, width=width, highlight=False,
                      force_terminal=is_terminal and not os.environ.get("NO_COLOR"))
    for title, table in tables(report, width):
        console.print(title, style="bold")
        console.print(table)
        console.print()
    console.print(*map(printable, notes(report, folder)), sep="\n", soft_wrap=True, markup=False)
    return stream.getvalue().rstrip("\n").split("\n")


def notes(report: dict, folder: Path) -> list[str]:
    loss = report["loss"][-1]
    return [
        f"Text: {', '.join(report['settings']['texts'])}; {loss['tokens']} tokens scored. Tasks: "
        f"{', '.join(report['settings']['tasks'])}.",
        "g32: groups of 32 columns share a scale. flips: items whose predicted choice is not fp32's. Losses of single "
        "texts, flips of single tasks and all other figures are in the JSON file.",
        f"Report: {folder / JSON}; plot: {folder / PLOT}",
    ]
