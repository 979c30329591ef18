"""What the tokenizer of every family can do, whatever its vocabulary is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from runtime.errors import UserError
from runtime.show import nearest

UNKNOWN_TEXT = "\ufffd"  # for an id that stands for no text


class Tokenizer(ABC):
    """Text to token ids and back.

    Text is text: what a person types becomes a command only where ``special_tokens`` asks for it, and nothing is added
    at either end. Which commands stand around a prompt is the model family's business.
    """

    vocabulary_files: tuple[Path, ...]  # all that ids depend on; the first one names the vocabulary in messages
    commands: Mapping[str, int]  # name -> id: "[MASK]", "sop", "eop", "eos" ..., those that the family has
    num_tokens: int  # the first id that is not used
    num_image_tokens: int = 0  # ids in front of the text's

    @property
    def vocabulary_file(self) -> Path:
        return self.vocabulary_files[0]

    def command(self, name: str) -> int:
        """Id of a command: "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "eos", "ENC" (what a context begins with) ...

        UserError, naming those that there are, where the family has no such command.
        """
        if name not in self.commands:
            close = nearest(name, self.commands)
            hint = f", did you mean {close!r}?" if close else ""
            known = [*list(self.commands)[:8], *(name for name in ("eos",) if name in list(self.commands)[8:])]
            raise UserError(f"unknown command token {name!r}{hint} (known: {', '.join(known)})")
        return self.commands[name]

    @abstractmethod
    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Ids of ``text``. special_tokens: command strings in it become the commands' ids, as in the original.

        UserError for a text with halves of surrogate pairs.
        """

    def encode_stretches(self, stretches: Sequence[str]) -> list[list[int]]:
        """Ids of the texts between the masks of a prompt, each by itself; some originals drop the blanks at a mask."""
        return [self.encode(stretch) for stretch in stretches]

    @abstractmethod
    def decode(self, ids: Iterable[int], special_tokens: bool = False) -> str:
        """Text of ``ids``; commands vanish, or are shown by name with ``special_tokens``.

        An id that stands for no text is shown as U+FFFD; UserError for a negative one.
        """

    @abstractmethod
    def decode_behind(self, ids: Iterable[int]) -> str:
        """Text of ``ids`` as it stands behind other text: with the blank before its first word. Commands are shown."""

    @abstractmethod
    def detokenize(self, ids: Iterable[int]) -> str:
        """Text of ``ids`` as the original spells it, with its names of commands and its changes of blanks."""


def valid_text(text: str) -> str:
    """The text itself; UserError where it has no UTF-8, which vocabularies complain of in ways that say nothing."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"text is not valid UTF-8 at character {error.start}: {text[error.start]!r}") from None
    return text


def valid_ids(ids: Iterable[int], num_tokens: int) -> list[int]:
    """The ids as Python's numbers; UserError for a negative one."""
    ids = [int(token) for token in ids]
    if ids and min(ids) < 0:
        raise UserError(f"{min(ids)} is no token id: ids are 0 ... {num_tokens - 1}")
    return ids
