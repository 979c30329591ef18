"""Texts with places for the fields of a row, as the files of tuning/patterns write them: "{word}: {bare(text_a)}".

A place holds a field's name, or functions of FUNCTIONS around one. Braces stand in no text.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.errors import UserError, shown
from tuning.data.texts import standardised

_PLACE = re.compile(r"\{([^{}]*)\}")
_CALL = re.compile(r"(\w+)\((.*)\)")


def bare(text: str) -> str:
    """Without the punctuation at its end."""
    return text.rstrip(string.punctuation)


def uncapital(text: str) -> str:
    """The first character in lower case."""
    return text[:1].lower() + text[1:]


def unescaped(text: str) -> str:
    r"""A blank for each \n that is written so, and for other backslashes."""
    return text.replace("\\n", " ").replace("\\", " ")


FUNCTIONS: dict[str, Callable[[str], str]] = {
    "bare": bare, "uncapital": uncapital, "standard": standardised, "unescaped": unescaped,
    "trimmed": str.rstrip,  # without the blanks at its end
}


@dataclass(frozen=True)
class Template:
    """A text with places."""

    literals: tuple[str, ...]  # one more than places
    names: tuple[str, ...]  # the field of each place
    functions: tuple[tuple[Callable[[str], str], ...], ...]  # of each place, the innermost first

    def fill(self, fields: Mapping[str, Any]) -> str:
        """The text with the fields' values. KeyError for a field that there is not; TypeError for one that is no text
        and no number."""
        if not self.names:
            return self.literals[0]
        filled = [self.literals[0]]
        for name, functions, literal in zip(self.names, self.functions, self.literals[1:], strict=True):
            value = fields[name]
            if not isinstance(value, (str, int, float)) or isinstance(value, bool):
                raise TypeError(f"{name!r} is {shown(value)}; it must be text")
            text = str(value)
            for function in functions:
                text = function(text)
            filled += (text, literal)
        return "".join(filled)

    def value(self, fields: Mapping[str, Any]) -> Any:
        """As fill, but a template that is one field is that field's value, of any type."""
        return fields[self.names[0]] if self.literals == ("", "") and not self.functions[0] else self.fill(fields)


def parse_template(text: Any, where: str) -> Template:
    """where: begins the messages. UserError for what is no text, stray braces and unknown functions."""
    if not isinstance(text, str):
        raise UserError(f"{where}: must be text such as \"{{text_a}}\", is {shown(text)}; quotes make text of a number")
    parts = _PLACE.split(text)
    literals, places = parts[::2], parts[1::2]
    if stray := next((literal for literal in literals if "{" in literal or "}" in literal), None):
        raise UserError(f"{where}: {shown(stray)} has a brace without its partner")
    names, functions = [], []
    for place in places:
        around = []
        while call := _CALL.fullmatch(place):
            if call[1] not in FUNCTIONS:
                raise UserError(f"{where}: there is no function {shown(call[1])}; there are {', '.join(FUNCTIONS)}")
            around.append(FUNCTIONS[call[1]])
            place = call[2]
        if not place:
            raise UserError(f"{where}: a place is empty; it takes the name of a field, as {{text_a}}")
        names.append(place)
        functions.append(tuple(reversed(around)))
    return Template(tuple(literals), tuple(names), tuple(functions))


def names_in(templates: Iterable[Template]) -> set[str]:
    return {name for template in templates for name in template.names}
