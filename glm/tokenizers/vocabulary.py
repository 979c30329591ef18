"""A vocabulary of text, and a tokenizer made of one and of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from glm.tokenizers.commands import cut
from glm.tokenizers.interface import Tokenizer, valid_ids, valid_text


class Vocabulary(Protocol):
    """Pieces of text, each with an id. No command is known to it: every text is only text."""

    size: int
    files: tuple[Path, ...]  # that it was read from, the main one first

    def id_of(self, piece: str) -> int | None:
        """Id of a piece as the file spells it."""

    def piece(self, token: int) -> str:
        """The piece of an id as the file spells it."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, all below size, as it stands at the beginning of a text."""

    def decode_behind(self, ids: Sequence[int]) -> str:
        """The same as it stands behind other text."""

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text as the original spells it, at the beginning of a text."""


class VocabularyTokenizer(Tokenizer):
    """A text vocabulary, and commands of which no text knows; most have the ids behind it."""

    def __init__(self, vocabulary: Vocabulary, commands: Mapping[str, int], shown: Mapping[int, str], num_tokens: int,
                 files: Sequence[Path]):
        """commands: name -> id. shown: id -> the string that stands for it; hidden from a reader, as commands are."""
        self.vocabulary, self.commands, self.num_tokens = vocabulary, commands, num_tokens
        self.vocabulary_files = tuple(files)
        self._shown, self._hidden = shown, frozenset(commands.values()) | shown.keys()
        # one object for each id: a list of them takes 8 bytes a token, not 36, and evaluations hold millions
        self._ids = list(range(num_tokens))

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        return [self._ids[token] for token in self.vocabulary.encode(valid_text(text))]

    def decode(self, ids: Iterable[int], special_tokens: bool = False) -> str:
        ids = valid_ids(ids, self.num_tokens)
        if not special_tokens:
            ids = [token for token in ids if token not in self._hidden]
        return self._text(ids, self.vocabulary.decode)

    def decode_behind(self, ids: Iterable[int]) -> str:
        return self._text(valid_ids(ids, self.num_tokens), self.vocabulary.decode_behind)

    def _text(self, ids: list[int], first: Callable[[list[int]], str]) -> str:
        """first: decodes what stands at the beginning; behind it a word keeps its blank."""
        parts = []
        for part in cut(ids, self._shown, self.vocabulary.size):
            decode = self.vocabulary.decode_behind if parts else first
            parts.append(part if isinstance(part, str) else decode(part))
        return "".join(parts)
