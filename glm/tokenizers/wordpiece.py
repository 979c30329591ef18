"""Wordpiece, as BERT has it: vocab.txt, one piece a line.

Text is cleaned and cut into words, every Chinese character and every punctuation mark is a word of its own, and of each
word the longest known beginning is taken, again and again; what goes on inside a word is marked ``##``. Blanks, case
and accents are lost, and a word without pieces is [UNK].
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from glm.tokenizers.vocabulary_files import damaged, read_lines

VOCABULARY_NAME = "vocab.txt"
UNKNOWN = "[UNK]"
LONGEST_WORD = 100  # characters; a longer word is unknown
_INSIDE = "##"
_WHAT = f"the vocabulary {VOCABULARY_NAME} of a wordpiece tokenizer (BERT)"
_CHINESE = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F), (0x2B740, 0x2B81F),
            (0x2B820, 0x2CEAF), (0xF900, 0xFAFF), (0x2F800, 0x2FA1F))


class Wordpiece:
    """A vocabulary of words and parts of words.

    folder: holds vocab.txt. is_lower_case: it has small letters without accents only. by_character: small letters are
    found for each character by itself first, as the Hugging Face port does: the Greek sigma at a word's end differs.
    """

    def __init__(self, folder: str | os.PathLike, is_lower_case: bool = True, by_character: bool = True):
        path = Path(folder) / VOCABULARY_NAME
        self.files = (path,)
        self._pieces = read_lines(path, _WHAT)
        self._ids = {piece: token for token, piece in enumerate(self._pieces)}
        self.size = len(self._pieces)
        if len(self._ids) < self.size:
            twice = next(piece for token, piece in enumerate(self._pieces) if self._ids[piece] != token)
            raise damaged(path, _WHAT, f"the piece {twice!r} stands twice in it")
        if UNKNOWN not in self._ids:
            raise damaged(path, _WHAT, f"it has no {UNKNOWN}")
        self._is_lower_case, self._by_character = is_lower_case, by_character
        self._cleaned, self._bare = _Cleaned(), _Bare()
        self._known: dict[str, list[int]] = {}

    def id_of(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def piece(self, token: int) -> str:
        return self._pieces[token]

    def encode(self, text: str) -> list[int]:
        return [token for word in self._words(text) for token in self._word(word)]

    def decode(self, ids: Sequence[int]) -> str:
        return self.decode_behind(ids).removeprefix(" ")

    def decode_behind(self, ids: Sequence[int]) -> str:
        """A blank before every word: where there were none, the vocabulary does not say."""
        return _joined(["", *(self._pieces[token] for token in ids)])

    def detokenize(self, ids: Sequence[int]) -> str:
        """The first piece is shown with its mark."""
        return _joined([self._pieces[token] for token in ids]).strip()

    def _words(self, text: str) -> list[str]:
        if self._is_lower_case and self._by_character:
            text = "".join(map(str.lower, text))
        text = unicodedata.normalize("NFC", text.translate(self._cleaned))
        if self._is_lower_case:
            text = "".join(character for character in unicodedata.normalize("NFD", text.lower())
                           if unicodedata.category(character) != "Mn")
        return text.translate(self._bare).split()

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            if len(self._known) > 100_000:  # languages have no end of words, memory has
                self._known.clear()
            self._known[word] = self._parts(word)
        return self._known[word]

    def _parts(self, word: str) -> list[int]:
        ids, begin, mark = [], 0, ""
        while begin < len(word) <= LONGEST_WORD:
            for end in range(len(word), begin, -1):
                if (token := self._ids.get(mark + word[begin:end])) is not None:
                    break
            else:
                return [self._ids[UNKNOWN]]
            ids.append(token)
            begin, mark = end, _INSIDE
        return ids or [self._ids[UNKNOWN]]


def _joined(pieces: Sequence[str]) -> str:
    return " ".join(pieces).replace(f" {_INSIDE}", "")


class _Cleaned(dict):
    """For str.translate: blanks of any kind become one, controls vanish, blanks stand around Chinese characters."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if character in "\t\n\r" or category == "Zs":
            self[code] = " "
        elif code in (0, 0xFFFD) or category[0] == "C":
            self[code] = ""
        elif any(first <= code <= last for first, last in _CHINESE):
            self[code] = f" {character} "
        else:
            self[code] = character
        return self[code]


class _Bare(dict):
    """For str.translate: blanks stand around punctuation; of ASCII that is all but letters, digits and controls."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        is_sign = "!" <= character <= "~" and not character.isalnum()
        self[code] = f" {character} " if is_sign or unicodedata.category(character)[0] == "P" else character
        return self[code]
