"""Sentencepiece vocabularies: GLM's Chinese one, ChatGLM2's, and what icetk's is read with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from glm.tokenizers.vocabulary_files import damaged, read_vocabulary
from runtime.errors import UserError


class SentencePieces:
    """A vocabulary in sentencepiece's format, as the file has it.

    path: the file. what: it should be, for messages: "GLM's vocabulary cog-pretrain.model".
    """

    def __init__(self, path: str | os.PathLike, what: str):
        self.files = (Path(path),)
        self.processor = processor_of(read_vocabulary(path, what), path, what)
        self.size = self.processor.get_piece_size()
        # any piece that begins inside a word: what stands behind it keeps its leading blank
        pieces = enumerate(self.processor.id_to_piece(list(range(self.size))))
        inside = next((found for found in pieces if "▁" not in found[1] and not self._is_bare(found[0])), None)
        if inside is None:
            raise damaged(path, what, "no piece of it begins inside a word")
        self._before, self._length = inside[0], len(inside[1])

    def _is_bare(self, token: int) -> bool:
        """Whether a piece has no text of its own."""
        of = self.processor
        return of.is_control(token) or of.is_unknown(token) or of.is_unused(token) or of.is_byte(token)

    def id_of(self, piece: str) -> int | None:
        """The id of <unk> for a piece that there is not, as the originals find it."""
        return self.processor.piece_to_id(piece)

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.processor.decode(list(ids))

    def decode_behind(self, ids: Sequence[int]) -> str:
        return self.processor.decode([self._before, *ids])[self._length:]

    detokenize = decode

    def piece(self, token: int) -> str:
        return self.processor.id_to_piece(token)

    def text_of(self, pieces: Sequence[str]) -> str:
        """The text of pieces by their spelling; one that the vocabulary has not stands for itself."""
        return self.processor.decode_pieces(list(pieces))


def processor_of(data: bytes, path: str | os.PathLike, what: str):
    """sentencepiece's processor of a serialised vocabulary; UserError where it cannot read that."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
        for piece in processor.id_to_piece(list(range(processor.get_piece_size()))):
            piece.encode("utf-8")
    except (RuntimeError, UnicodeError):
        raise UserError(f"{path} is not {what}: sentencepiece cannot read it; it is another file, or damaged") from None
    return processor
