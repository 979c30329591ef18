"""How every program reads its flags: made from dataclasses, one-line errors, near names, defaults in --help.

Imports nothing heavy: a wrong flag is refused, and --help answered, before torch is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.program import is_first_rank
from runtime.show import nearest

LEAST_LIKENESS = 0.75  # of two spellings, from 0 to 1 (difflib)


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The description as it is written, and the default of every argument that has one and does not say it itself."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        if default in (None, "", argparse.SUPPRESS) or default is False or default == [] or "default" in action.help:
            return action.help
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{action.help} (default: {shown.replace('%', '%%')})"


class CommandParser(argparse.ArgumentParser):
    """argparse with one-line errors (exit code 2), underscores accepted in flags, and a hint for unknown ones."""

    def __init__(self, about: str | None = None, **options):
        """about: the program's docstring, whose first line --help leaves out; None where Python keeps none (-OO)."""
        options = {"description": (about or "").partition("\n")[2],
                   "formatter_class": HelpFormatter} | options
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args=None, namespace=None):
        args = [_hyphened(word) for word in (sys.argv[1:] if args is None else args)]
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [flag for action in self._actions if action.help != argparse.SUPPRESS
                     for flag in action.option_strings]
            flag = nearest_flag(unknown[0].partition("=")[0], known)
            hint = f"did you mean {flag}?" if flag else "--help lists what there is"
            if "--input-source" in known and os.path.isfile(unknown[0]):
                hint = f"did you mean --input-source {unknown[0]}?"
            self.error(f"unknown argument {unknown[0]!r}; {hint}")
        return found

    def said(self, args=None) -> list[str]:
        """Names of the arguments that were said, not left at their default."""
        known = {flag: action.dest for action in self._actions for flag in action.option_strings}
        flags = [_hyphened(word).partition("=")[0] for word in (sys.argv[1:] if args is None else args)]
        return [known[flag] for flag in flags if flag in known]

    def error(self, message: str):
        if is_first_rank():
            print(f"error: {UserError(message)}", file=sys.stderr)
        raise SystemExit(2)


def option(default: Any, what: str, **how: Any) -> Any:
    """A field of a dataclass that is a flag, too. what: for --help; "" hides the flag.

    how: `flag`, its name where that is not the field's; `aliases`, more names; `metavar`; `choices`; `none`, what no
    value means; `read`, from a word to the value, where the type does not say it; `is_switches`: each choice is a flag
    that takes no value; `is_repeated`: the flag may come several times, and the field is a tuple of words; `overrides`:
    the field is a dictionary with those fields of this dataclass that were said.
    """
    return dataclasses.field(default=default, metadata={"what": what, **how})


def flags(group, *options: Any, is_override: bool = False) -> None:
    """A flag for each field of these dataclasses that is an `option`; one that several have in common is added once.

    options: classes, or values whose fields are then the defaults. is_override: what is not said is None.
    """
    names = set()
    for each in options:
        for field in _options(each):
            if "overrides" in field.metadata:
                flags(group, field.metadata["overrides"], is_override=True)
            elif (name := flag_name(field)) not in names:
                names.add(name)
                default = None if is_override else getattr(each, field.name, None)
                _add_flag(group, name, field, default)


def chosen(kind: type, arguments: argparse.Namespace, **more: Any) -> Any:
    """The dataclass with the values that its flags were given. more: those of fields that are no flags."""
    values = {}
    for field in _options(kind):
        if "overrides" in field.metadata:
            said = {inner.name: getattr(arguments, flag_name(inner)) for inner in _options(field.metadata["overrides"])}
            values[field.name] = {name: value for name, value in said.items() if value is not None}
        else:
            value = getattr(arguments, flag_name(field))
            values[field.name] = tuple(value or ()) if field.metadata.get("is_repeated") else value
    return kind(**values, **more)


def flag_name(field: dataclasses.Field) -> str:
    """With underscores, as the parsed arguments have it."""
    return field.metadata.get("flag", field.name)


def _options(kind: Any) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(kind) if "what" in field.metadata]


def _add_flag(group, name: str, field: dataclasses.Field, default: Any) -> None:
    about = field.metadata
    if about.get("is_repeated"):
        group.add_argument(f"--{name.replace('_', '-')}", action="append", metavar=about.get("metavar"),
                           help=about["what"])
        return
    spelt = getattr(field.type, "__name__", str(field.type))  # a type, or its annotation: "int | None"
    kind = next(kind for kind in (bool, int, float, Path, str) if spelt.startswith(kind.__name__))
    what = about["what"] + (f" (default: {about['none']})" if default is None and "none" in about else "")
    what = what or argparse.SUPPRESS
    if about.get("is_switches"):
        group = group.add_mutually_exclusive_group()
        for choice in about["choices"]:
            group.add_argument(f"--{choice}", dest=name, action="store_const", const=choice, default=default,
                               help=what.replace("CHOICE", choice))
        return
    spellings = [f"--{each.replace('_', '-')}" for each in (name, *about.get("aliases", ()))]
    if kind is bool:
        group.add_argument(*spellings, action="store_true", default=default, help=what)
        return
    metavar = about.get("metavar", {int: "N", float: "X"}.get(kind) if "choices" not in about else None)
    group.add_argument(*spellings, type=about.get("read", kind), default=default, help=what,
                       choices=about.get("choices"), metavar=metavar)


def positive(what: str, most: float = math.inf) -> Callable[[str], float]:
    """Reads a number above 0. what: is wanted, for the message, such as "a number of seconds above 0"."""
    def read(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not 0 < value <= most or value == math.inf:
            raise argparse.ArgumentTypeError(f"{word!r} is not {what}")
        return value

    return read


def count(word: str) -> int:
    """A whole number above 0."""
    if (value := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a number of 1 or more")
    return value


def count_or_zero(word: str) -> int:
    """A whole number of 0 or more."""
    if (value := int(word)) < 0:
        raise argparse.ArgumentTypeError(f"{word} is not a number of 0 or more")
    return value


def amount(word: str) -> float:
    """A finite number of 0 or more."""
    value = float(word)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{word} is not a number of 0 or more")
    return value


def share(word: str) -> float:
    """From 0 to 1."""
    value = float(word)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{word} is not a share, from 0 to 1")
    return value


def part(word: str) -> float:
    """A share that is neither nothing nor all."""
    value = float(word)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a share, above 0 and below 1")
    return value


def nearest_flag(word: str, known: Sequence[str]) -> str | None:
    """The flag that is spelt almost like the word, or the only one with a single part more; None: nothing is near.
    What all flags begin with makes none alike."""
    names = {flag.lstrip("-"): flag for flag in known}
    name = word.lstrip("-")
    close = nearest(name, names, LEAST_LIKENESS)
    parts = set(name.split("-"))
    longer = [each for each in names if parts < (theirs := set(each.split("-"))) and len(theirs - parts) == 1]
    found = close or (longer[0] if len(longer) == 1 else None)
    return names.get(found)


def _hyphened(word: str) -> str:
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value
