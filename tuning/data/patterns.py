"""Patterns as data: the parts of which a cloze question is put together, and what fills its blank.

A part is encoded by itself. "_" is the blank, "P" a place of prompt tokens, "~" before a text says that the text may be
shortened. The two segments a and b differ in nothing but which of them is shortened first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.errors import UserError, shown
from tuning.data.templates import Template, parse_template

BLANK, PROMPT = "_", "P"
PROMPTS = "prompts"  # the field that a row has where there are prompt tokens
_KEYS = ("a", "b", "verbalizers", "answer", "instead")


@dataclass(frozen=True)
class Part:
    template: Template | None  # None: BLANK or PROMPT
    is_prompt: bool = False
    is_shortened: bool = False  # where the sequence is too long


@dataclass(frozen=True)
class Piece:
    """A part of one row."""

    ids: tuple[int, ...]
    is_shortened: bool = False


@dataclass(frozen=True)
class Pattern:
    a: tuple[Part, ...]
    b: tuple[Part, ...]
    verbalizers: Mapping[str, str] | None  # label -> text
    answer: Template | None  # of tasks with choices, for the field "choice"
    instead: Mapping[str, Pattern]  # a field: what stands for this pattern in rows that have the field

    def of(self, fields: Mapping[str, Any]) -> Pattern:
        return next((pattern for name, pattern in self.instead.items() if fields.get(name) is not None), self)

    @property
    def prompts(self) -> int:
        """Places of prompt tokens."""
        return sum(part.is_prompt for part in (*self.a, *self.b))


def parse_pattern(value: Any, where: str, verbalizers: Mapping[str, str] | None = None,
                  answer: Template | None = None) -> Pattern:
    """verbalizers, answer: of the task, where the pattern has none of its own. UserError for any mistake."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: a pattern has the keys {', '.join(_KEYS)}; this is {shown(value)}")
    for key in value:
        if key not in _KEYS:
            raise UserError(f"{where}: unknown key {shown(key)}; a pattern has {', '.join(_KEYS)}")
    parts = {name: parse_parts(value.get(name, []), f"{where}: {name}") for name in ("a", "b")}
    blanks = sum(part.template is None and not part.is_prompt for part in (*parts["a"], *parts["b"]))
    if blanks != 1:
        raise UserError(f"{where}: has {blanks} blanks; a pattern has one part that is \"{BLANK}\"")
    instead = value.get("instead", {})
    if not isinstance(instead, dict):
        raise UserError(f"{where}: instead: names fields, and for each of them a pattern; this is {shown(instead)}")
    instead = {name: parse_pattern(each, f"{where}: instead: {name}", verbalizers, answer)
               for name, each in instead.items()}
    if "verbalizers" in value:
        verbalizers = parse_verbalizers(value["verbalizers"], f"{where}: verbalizers")
    if "answer" in value:
        answer = parse_template(value["answer"], f"{where}: answer")
    if verbalizers is None and answer is None:
        raise UserError(f"{where}: neither the pattern nor the task says verbalizers (a text for each label) or an "
                        "answer (of a task with choices)")
    return Pattern(parts["a"], parts["b"], verbalizers, answer, instead)


def parse_parts(value: Any, where: str) -> tuple[Part, ...]:
    """A list of parts, or a single text."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise UserError(f"{where}: is a list of parts, not {shown(value)}")
    return tuple(_part(each, f"{where}: part {number}") for number, each in enumerate(value, 1))


def _part(value: Any, where: str) -> Part:
    if value in (BLANK, PROMPT):
        return Part(None, is_prompt=value == PROMPT)
    text = value if not isinstance(value, str) else value.removeprefix("~")
    return Part(parse_template(text, where), is_shortened=text is not value and text != value)


def parse_verbalizers(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise UserError(f"{where}: names each label and the text that stands for it; this is {shown(value)}")
    for label, text in value.items():
        if not isinstance(text, str) or not text:
            raise UserError(f"{where}: {label}: must be text, is {shown(text)}")
    return value


def pieces(parts: Sequence[Part], fields: Mapping[str, Any], encode: Callable[[str], tuple[int, ...]], mask: int,
           prompt: Sequence[int]) -> list[Piece]:
    """The parts of one row as ids. prompt: numbers of the tokens that each place of the prompt gets, in order."""
    prompts = iter(prompt)
    return [Piece((PROMPT_ID,) * next(prompts, 0)) if part.is_prompt else
            Piece((mask,)) if part.template is None else
            Piece(encode(part.template.fill(fields)), part.is_shortened) for part in parts]


PROMPT_ID = -1  # in the place of prompt tokens, until they are counted


def spread(tokens: int, places: int) -> list[int]:
    """How many of the tokens each place gets: as many as all would if they had equally many, rounded up, until there
    are none left."""
    each = -(-tokens // places) if places else 0
    return [max(0, min(each, tokens - place * each)) for place in range(places)]
