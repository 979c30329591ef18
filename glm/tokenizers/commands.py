"""Command strings in a text, such as "[MASK]": cut out before the rest is encoded, put back when ids are spelled."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from glm.tokenizers.interface import UNKNOWN_TEXT

_CLEANED = ((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
            (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"))


@dataclass(frozen=True)
class Command:
    """What a string in a text becomes where commands are asked for."""

    token: int  # its id
    strips_before: bool = True  # white space before it goes
    strips_after: bool = True  # white space behind it goes


def stripped(stretches: Sequence[str], between: Sequence[Command]) -> list[str]:
    """The stretches of a text without the white space that the commands between them take: one less than these."""
    texts = list(stretches)
    for place, command in enumerate(between):
        texts[place] = texts[place].rstrip() if command.strips_before else texts[place]
        texts[place + 1] = texts[place + 1].lstrip() if command.strips_after else texts[place + 1]
    return texts


class CommandStrings:
    """The command strings of a tokenizer; of several that match at a place the longest is meant."""

    def __init__(self, commands: Mapping[str, Command]):
        self.commands = commands
        self._pattern = re.compile(f"({'|'.join(map(re.escape, sorted(commands, key=len, reverse=True)))})")

    def encode(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Ids of a text. encode: what turns a stretch between commands, not an empty one, into ids."""
        parts = self._pattern.split(text)  # stretch, command, stretch ... stretch
        between = [self.commands[string] for string in parts[1::2]]
        ids = []
        for stretch, command in zip(stripped(parts[::2], between), [*between, None], strict=True):
            ids += encode(stretch) if stretch else []
            ids += [command.token] if command else []
        return ids


def cut(ids: Iterable[int], strings: Mapping[int, str], size: int) -> Iterator[str | list[int]]:
    """Ids as they lie: stretches of text, below size, as lists, and between them the strings of commands.

    strings: of all ids that are shown as such. U+FFFD stands for an id that is neither.
    """
    stretch = []
    for token in ids:
        if token < size and token not in strings:
            stretch.append(token)
            continue
        if stretch:
            yield stretch
        yield strings.get(token, UNKNOWN_TEXT)
        stretch = []
    if stretch:
        yield stretch


def cleaned_up(text: str) -> str:
    """A decoded text as the transformers library cleans it up: "it 's here ." becomes "it's here."."""
    for found, replaced in _CLEANED:
        text = text.replace(found, replaced)
    return text
