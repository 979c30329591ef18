"""Pages that need nothing but themselves, from jinja2's templates: how values are shown in them.

A template extends page.html, whose head and looks all pages share, and may use the parts of parts.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evaluation.table import figure, limits
from runtime.show import counted

FOLDER = Path(__file__).parent


def rendered(template: Path, **values: object) -> str:
    """The page. values: title, facts (pairs of name and value), command and limited (or None), and the template's own.

    No text can become markup: all that is put in is escaped, but for what templates themselves or plots have made.
    """
    return _environment(template.parent).get_template(template.name).render(values)


@cache
def _environment(folder: Path) -> Environment:
    """The templates of a folder and those of this one: each is compiled once."""
    environment = Environment(loader=FileSystemLoader([folder, FOLDER]), autoescape=True, trim_blocks=True,
                              undefined=StrictUndefined, finalize=_printable)
    environment.filters |= {"figure": figure, "limits": limits, "anchor": _anchor, "plain": _plain, "counted": counted}
    return environment


def _anchor(name: str) -> str:
    """A fragment identifier without blanks; distinct names that differ in blanks only are not worth more."""
    return "task-" + "-".join(name.split())


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {each}" for key, each in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else "–" if value is None else str(value)


def _printable(value: object) -> str:
    """Without what HTML may not hold: control characters and halves of surrogate pairs are shown as U+FFFD."""
    if isinstance(value, Markup):
        return value
    return "".join(
        "\ufffd" if (ord(c) < 32 and c not in "\n\t") or 0x7f <= ord(c) < 0xa0 or 0xd800 <= ord(c) <= 0xdfff else c
        for c in str(value))
