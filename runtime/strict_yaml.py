"""Reading a YAML file that a person wrote: one mapping, no key twice, every fault with its line and column.

Values are made here from the events of yaml's parser. YAML 1.1, which its own constructors read, takes 0512 for 330,
1:30 for 90 and `no` for false, where YAML 1.2 does not; what the two read differently is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import Faults, UserError, shown
from runtime.reading import SMALL, read_text

MOST_VALUES, DEEPEST = 10_000, 50  # of what is kept as it is
MOST_MERGED = 10_000  # keys that all `<<` of a file bring: a few lines of it can stand for billions
MOST_FAULTS = 20  # that are told of one file
MOST_DIGITS = 400
_NULL, _TRUE, _FALSE = ("", "~", "null", "Null", "NULL"), ("true", "True", "TRUE"), ("false", "False", "FALSE")
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NO_NUMBER = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_TWO_READINGS = (
    (re.compile(r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF"), "write true or false, or put quotes around it"),
    (re.compile(r"[-+]?0[0-9_]+|[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[oO][0-7_]+|[-+]?0[bB][01_]+"),
     "write the number in decimal digits without a 0 before them, or put quotes around it"),
    (re.compile(r"(?=[^_]*_)[-+]?\.?[0-9][0-9_.]*([eE][-+]?[0-9]+)?"), "write the number without _, or put quotes "
                                                                    "around it"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"), "put quotes around it"),
    (re.compile(r"[0-9]{4}-[0-9][0-9]?-[0-9][0-9]?([Tt \t].*)?"), "put quotes around it"),
)
_STANDARD = "tag:yaml.org,2002:"
# words of yaml's message for a mistake, and the most likely remedy
_REMEDIES = (
    ("while scanning an alias", "text that begins with * needs quotes"),
    ("while scanning an anchor", "text that begins with & needs quotes"),
    ("mapping values are not allowed", "text with a colon in it needs quotes"),
    ("found character '\\t'", "lines are indented by blanks, not by tabs"),
    ("that cannot start any token", "text that begins with it needs quotes"),
    ("could not find expected ':'", "a line is `key: value`, with a blank behind the colon"),
)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; only plain values are read, never code.

    Raises UserError for a file that cannot be read, is empty, is too large, is no YAML, holds something else than a
    mapping, has a key twice or one that is no text in any of its mappings, or a value that can be read in two ways.
    """
    return parse_mapping(read_text(path, SMALL), str(path))


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """As read_mapping, from a text; where: the file's name for messages."""
    import yaml

    builder = _Builder(where)
    try:
        value = builder.document(yaml.parse(text, yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = f"{error.context or ''} {error.problem or ''}"
        remedy = next((f" ({remedy})" for words, remedy in _REMEDIES if words in said), "")
        builder.faults.append(f"{_place(where, mark)}: not valid YAML: {error.problem or error.context}{remedy}")
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        builder.faults.append(f"{where}:{line}:{column}: not valid YAML: character {error.character!r} is not allowed")
    except _End:
        pass
    except (ArithmeticError, ValueError) as error:  # an escape that stands for no character
        builder.faults.append(f"{where}: not valid YAML: {type(error).__name__}: {error}")
    builder.faults.tell()
    if value is None:
        raise UserError(f"{where}: the file is empty; it must hold `key: value` lines")
    if not isinstance(value, dict):
        raise UserError(f"{where}: must hold `key: value` lines, holds {shown(value)}")
    return value


class _End(Exception):
    """A fault behind which nothing can be read."""


class _Builder:
    """Makes values of a parser's events, and gathers the faults on the way."""

    def __init__(self, where: str):
        self.where, self.faults = where, Faults()
        self._named: dict[str, Any] = {}  # what an alias may name
        self._merged = 0

    def document(self, events: Iterator) -> Any:
        """The value of the only document; None where there is none."""
        import yaml

        value, documents = None, 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._end(event, "a second document begins here; a file holds one, so make two files of it")
            elif isinstance(event, yaml.NodeEvent):
                value = self._value(event, events, 0)
        return value

    def _value(self, event, events: Iterator, depth: int) -> Any:
        import yaml

        if depth > DEEPEST:
            raise self._end(event, f"not valid YAML: more than {DEEPEST} values within one another")
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._named:
                raise self._end(event, f"not valid YAML: *{event.anchor} names nothing that stands before it "
                                       "(text that begins with * needs quotes)")
            return self._named[event.anchor]
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._check_tag(event, "seq")
            value = self._list(events, depth)
        else:
            self._check_tag(event, "map")
            value = self._mapping(events, depth)
        if event.anchor is not None:
            self._named[event.anchor] = value
        return value

    def _list(self, events: Iterator, depth: int) -> list:
        import yaml

        values = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            values.append(self._value(event, events, depth + 1))
        return values

    def _mapping(self, events: Iterator, depth: int) -> dict[str, Any]:
        """A key of its own wins over one that `<<` brings, and the first of several that bring it over the others."""
        import yaml

        own, merged, line_of = {}, {}, {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            is_merge = isinstance(event, yaml.ScalarEvent) and event.implicit[0] and event.value == "<<"
            key = self._value(event, events, depth + 1)
            value = self._value(next(events), events, depth + 1)
            if not isinstance(key, str):
                if key is not _FAULTY:
                    self._fault(event, f"key {shown(key)}: must be text; quotes make it text")
            elif key in line_of:
                self._fault(event, f"not valid YAML: the key {key[:60]!r} stands in line {line_of[key]} too")
            else:
                line_of[key] = event.start_mark.line + 1
                if is_merge:
                    merged = self._merge(event, value)
                else:
                    own[key] = value
        return merged | own

    def _merge(self, event, value: Any) -> dict[str, Any]:
        merged = {}
        for each in reversed(value if isinstance(value, list) else [value]):
            if not isinstance(each, dict):
                self._fault(event, f"not valid YAML: `<<` takes mappings, not {shown(each)}")
                return {}
            self._merged += len(each)
            if self._merged > MOST_MERGED:
                raise self._end(event, f"`<<` brings more than {MOST_MERGED} keys")
            merged |= each
        return merged

    def _scalar(self, event) -> Any:
        """Text where it is quoted or has the tag !!str; else what both versions of YAML take it for."""
        text, is_plain = event.value, event.implicit[0]
        if not is_plain:
            self._check_tag(event, "str")
            return text
        if text in _NULL:
            return None
        if text in _TRUE + _FALSE:
            return text in _TRUE
        for pattern, remedy in _TWO_READINGS:
            if pattern.fullmatch(text):
                self._fault(event, f"{shown(text)} means one thing in YAML 1.1 and another in 1.2; {remedy}")
                return _FAULTY
        if _WHOLE.fullmatch(text) or _NUMBER.fullmatch(text):
            if len(text) > MOST_DIGITS:
                self._fault(event, f"a number of more than {MOST_DIGITS} digits; quotes make it text")
                return _FAULTY
            return int(text) if _WHOLE.fullmatch(text) else float(text)
        if _NO_NUMBER.fullmatch(text):
            return float(text.lower().replace(".", ""))
        return text

    def _check_tag(self, event, name: str) -> None:
        if event.tag not in (None, "!", _STANDARD + name):
            self._fault(event, f"not valid YAML: the tag {event.tag[:60]!r} is not read; write the value itself, in "
                               "quotes where it is text")

    def _fault(self, event, text: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(f"{_place(self.where, event.start_mark)}: {text}")

    def _end(self, event, text: str) -> _End:
        self._fault(event, text)
        return _End()


_FAULTY = object()  # in the place of a value that is refused


def _place(where: str, mark) -> str:
    return f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where


def check_plain(value: Any, where: str) -> None:
    """Raises UserError unless a value is text, number, true, false or null, or lists and mappings of these, and of a
    size and depth that can be written down as JSON. An alias counts each time that it is used."""
    left, waiting = MOST_VALUES, [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise UserError(f"{where}: holds more than {MOST_VALUES} values, or more than {DEEPEST} within one another")
        if isinstance(each, (dict, list)):
            waiting += [(inner, depth + 1) for inner in (each.values() if isinstance(each, dict) else each)]
        elif isinstance(each, (int, float)) and not abs(each) < 2**63:
            raise UserError(f"{where}: {shown(each)} is no number below 2^63; quotes make it text")
