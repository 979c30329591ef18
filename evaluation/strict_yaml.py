"""Reading a YAML file that a person wrote: one mapping, no key twice, every fault with its line and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from glm.errors import UserError

LARGEST = 1_000_000  # bytes of a file; reading YAML takes a second for every 50000
MOST_VALUES, DEEPEST = 10_000, 50  # of what is kept as it is
MOST_KEYS = 10_000  # of a mapping, with those that `<<` brings: a few lines of it can stand for billions
FAULTS_OF_VALUES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; only plain values are read, never code.

    Raises UserError for a file that cannot be read, is not UTF-8, is empty, is too large, is no YAML, holds something
    else than a mapping of texts, or has a key twice in any of its mappings.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UserError(f"{path}: is larger than {LARGEST} bytes; data belong into files of their own")
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not valid UTF-8 at byte {error.start + 1}") from None
    return parse_mapping(text, str(path))


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """As read_mapping, from a text; where: the file's name for messages."""
    import yaml

    try:
        value = yaml.load(text, _strict_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise UserError(f"{place}: not valid YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        raise UserError(f"{where}:{line}:{column}: not valid YAML: character {error.character!r} is not allowed"
                        ) from None
    except FAULTS_OF_VALUES as error:  # dates that do not exist, tags that do not fit their value, endless nesting
        raise UserError(f"{where}: not valid YAML: {type(error).__name__}: {error}") from None
    if value is None:
        raise UserError(f"{where}: the file is empty; it must hold `key: value` lines")
    if not isinstance(value, dict):
        raise UserError(f"{where}: must hold `key: value` lines, holds {shown(value)}")
    for key in value:
        if not isinstance(key, str):
            raise UserError(f"{where}: key {shown(key)}: must be text")
    return value


def _strict_loader():
    """yaml's safe loader, which would keep the last of several equal keys without a word, with that refused."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node, deep=False):
            first_line = {}
            for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                if key is not None and key != "<<" and key in first_line:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key!r} stands in line {first_line[key]} too", key_node.start_mark)
                first_line[key] = key_node.start_mark.line + 1
            return super().construct_mapping(node, deep)

        def flatten_mapping(self, node):
            merged = [inner for key, value in node.value if key.tag == "tag:yaml.org,2002:merge"
                      for inner in (value.value if isinstance(value, yaml.SequenceNode) else [value])
                      if isinstance(inner, yaml.MappingNode)]
            for inner in merged:
                self.flatten_mapping(inner)
            if sum(len(inner.value) for inner in merged) > MOST_KEYS:
                raise yaml.constructor.ConstructorError(
                    None, None, f"`<<` brings more than {MOST_KEYS} keys", node.start_mark)
            super().flatten_mapping(node)

    return StrictLoader


def check_plain(value: Any, where: str) -> None:
    """Raises UserError unless a value is text, number, true, false or null, or lists and mappings of these, and of a
    size and depth that can be written down as JSON. An alias counts each time that it is used."""
    left, waiting = MOST_VALUES, [(value, 0)]
    while waiting:
        each, depth = waiting.pop()
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise UserError(f"{where}: holds more than {MOST_VALUES} values, or more than {DEEPEST} within one another")
        if isinstance(each, dict):
            for key in each:
                if not isinstance(key, str):
                    raise UserError(f"{where}: key {shown(key)}: must be text")
        if isinstance(each, (dict, list)):
            waiting += [(inner, depth + 1) for inner in (each.values() if isinstance(each, dict) else each)]
        elif isinstance(each, (int, float)):
            if not abs(each) < 2**63:
                raise UserError(f"{where}: {shown(each)} is no number below 2^63; quotes make it text")
        elif each is not None and not isinstance(each, str):
            raise UserError(f"{where}: {shown(each)} is no text, number, true, false or null; quotes make it text")


def shown(value: Any, limit: int = 60) -> str:
    """A value for a message: short whatever it holds, and never on more than one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, (list, tuple, set)):
        return "a list"
    if isinstance(value, int) and abs(value) > 10**limit:
        return "a very large number"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."
