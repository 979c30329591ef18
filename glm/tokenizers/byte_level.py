"""Byte-level BPE, as GPT-2 and RoBERTa have it: vocab.json and merges.txt.

A text is cut into words with their leading blank, every byte is written as one printable character, and characters are
merged in the order of the rules. The Rust package ``tokenizers`` does the encoding, with GPT-2's own results. Every
text has ids, and they give that very text again.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from glm.tokenizers.vocabulary_files import damaged, read_ids, read_lines

VOCABULARY_NAME, MERGES_NAME = "vocab.json", "merges.txt"
WHAT = f"the vocabulary {VOCABULARY_NAME} of a byte-level tokenizer (GPT-2, RoBERTa)"
_RULES = f"the merge rules {MERGES_NAME} of a byte-level tokenizer (GPT-2, RoBERTa)"


class ByteLevel:
    """A vocabulary of byte strings.

    folder: holds vocab.json and merges.txt. commands: pieces of it that no text may become.
    """

    def __init__(self, folder: str | os.PathLike, commands: Collection[str] = ()):
        self.files = (Path(folder) / VOCABULARY_NAME, Path(folder) / MERGES_NAME)
        path = self.files[0]
        self._ids = read_ids(path, WHAT)
        self.size = len(self._ids)
        lacking = [byte for byte, character in enumerate(_characters()) if character not in self._ids]
        if lacking:
            raise damaged(path, WHAT, f"it has no piece for the byte 0x{lacking[0]:02X}")
        pieces = {token: piece for piece, token in self._ids.items()}
        if sorted(pieces) != list(range(self.size)):
            raise damaged(path, WHAT, f"its {self.size} pieces do not have the ids 0 ... {self.size - 1}")
        self._pieces = [pieces[token] for token in range(self.size)]
        self._bytes = list(map(_bytes_of, self._pieces))
        self._encoder = self._made(self._merges(commands))

    def id_of(self, piece: str) -> int | None:
        return self._ids.get(piece)

    def piece(self, token: int) -> str:
        return self._pieces[token]

    def encode(self, text: str) -> list[int]:
        return self._encoder.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Bytes that are no UTF-8, half a character say, are shown as U+FFFD."""
        return b"".join([self._bytes[token] for token in ids]).decode("utf-8", "replace")

    decode_behind = detokenize = decode

    def _merges(self, commands: Collection[str]) -> list[tuple[str, str]]:
        merges = []
        for number, line in enumerate(read_lines(self.files[1], _RULES), 1):
            if not line or (number == 1 and line.startswith("#version")):
                continue
            pair = tuple(line.split(" "))
            if len(pair) != 2 or not {*pair, "".join(pair)} <= self._ids.keys():
                raise damaged(self.files[1], _RULES,
                              f"line {number} is not two pieces of {VOCABULARY_NAME} that make up a third")
            if "".join(pair) not in commands:
                merges.append(pair)
        return merges

    def _made(self, merges: list[tuple[str, str]]):
        from tokenizers import Tokenizer, models, pre_tokenizers

        encoder = Tokenizer(models.BPE(vocab=self._ids, merges=merges))
        encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return encoder


@functools.cache
def _characters() -> tuple[str, ...]:
    """The character that stands for each byte: itself if Latin-1 prints it, else the next one from U+0100 on."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printed else next(others)) for byte in range(256))


def _bytes_of(piece: str) -> bytes:
    """What a piece stands for. A command that the vocabulary holds may have other characters: they are themselves."""
    places = _bytes_of_characters()
    return b"".join(places.get(character) or character.encode() for character in piece)


@functools.cache
def _bytes_of_characters() -> dict[str, bytes]:
    return {character: bytes([byte]) for byte, character in enumerate(_characters())}
