"""How every program reads its flags: one-line errors, near names for unknown flags, defaults in --help.

Imports nothing heavy: a wrong flag is refused, and --help answered, before torch is there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

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
