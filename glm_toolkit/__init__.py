"""The toolkit under one name: load, fill_blanks and evaluate for programs and notebooks, and the command `glm`.

A wheel holds the whole tree inside this package and nothing beside it; a clone has the tree around it. The packages of
the tree are put on the path when they are first needed.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
TREE = _HERE / "tree" if (_HERE / "tree").is_dir() else _HERE.parent


def load(path: str | os.PathLike = TREE / "checkpoints" / "glm-small", *arguments, **options):
    """(model, tokenizer) of a checkpoint; the arguments are those of glm.load."""
    _open()
    import glm

    return glm.load(path, *arguments, **options)


def fill_blanks(model, tokenizer, texts: list[str], params=None, **options) -> list:
    """Results of texts whose blanks are filled; the arguments are those of generation.fill_blanks."""
    _open()
    import generation

    return generation.fill_blanks(model, tokenizer, texts, params, **options)


def evaluate(*tasks: str | os.PathLike, output: str | os.PathLike, **flags) -> dict:
    """Score a checkpoint on task files or folders -> results.json of the output folder, which also holds the report.

    flags: those of `glm evaluate`, with underscores: load, data_path, limit ...; True for one without a value. Raises
    SystemExit where the command ends with an error, which it has printed.
    """
    words = [str(task) for task in tasks] + ["--output", str(output)]
    for name, value in flags.items():
        words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    _open()
    from commands.evaluate import main as command

    if code := command(words):
        raise SystemExit(code)
    return json.loads((Path(output) / "results.json").read_text(encoding="utf-8"))


def main() -> None:
    """The command `glm`."""
    _open()
    from commands.main import main as command
    from runtime.program import run

    run(lambda: command(program="glm"))


def _open() -> None:
    """Put the tree on the path of this process and of those that it starts."""
    tree = str(TREE)
    if tree not in sys.path:
        sys.path.insert(0, tree)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if tree not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([tree, *filter(None, paths)])
