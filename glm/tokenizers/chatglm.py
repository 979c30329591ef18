"""The tokenizers of ChatGLM-6B and ChatGLM2-6B.

ChatGLM-6B: icetk's vocabulary, commands that are cut out of a text, and a spelling of its own. Three forms are in use:
today's without ids of images, the same with 20000 of them, and that of the first revisions, which knew other commands.
ChatGLM2-6B: a sentencepiece vocabulary with byte pieces, and five commands behind it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from glm.tokenizers.commands import Command, CommandStrings, cleaned_up, stripped
from glm.tokenizers.icetk import VOCABULARY_NAME, IcetkTokenizer, whitespace_restored
from glm.tokenizers.interface import UNKNOWN_TEXT, valid_ids
from glm.tokenizers.sentence_pieces import SentencePieces
from glm.tokenizers.vocabulary import VocabularyTokenizer

CHATGLM2_NAME = "tokenizer.model"
_CHATGLM2_COMMANDS = {"[MASK]": "[MASK]", "[gMASK]": "[gMASK]", "[sMASK]": "[sMASK]", "sop": "<sop>", "eop": "<eop>"}
_OF_CHATGLM2 = {"pad": "<unk>", "bos": "<s>", "eos": "</s>"}  # pieces that no text becomes: every byte has one
_PAD, _UNKNOWN = "<pad>", "<unk>"


class ChatGLMTokenizer(IcetkTokenizer):
    """The tokenizer of a folder that holds ice_text.model; UserError where that is missing or damaged.

    num_image_tokens: ids in front of the text's, 20000 with the first revisions. is_first_revision: "</s>" is cut out
    of a text instead of "<eop>", and a spelled text is not cleaned up.
    """

    def __init__(self, folder: str | os.PathLike, num_image_tokens: int = 0, is_first_revision: bool = False):
        super().__init__(Path(folder) / VOCABULARY_NAME, num_image_tokens)
        self._is_first_revision = is_first_revision
        unknown = num_image_tokens + self._plain.piece_to_id(_UNKNOWN)
        self.commands["pad"] = num_image_tokens + self._plain.piece_to_id(_PAD)
        ids = {"<sop>": self.commands["sop"], "[MASK]": self.commands["[MASK]"], _PAD: self.commands["pad"],
               _UNKNOWN: unknown}
        ids |= {"</s>": self.commands["eos"]} if is_first_revision else {"<eop>": self.commands["eop"]}
        self._strings = CommandStrings({string: Command(token) for string, token in ids.items()})
        self._special = frozenset(ids.values())

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """special_tokens: of the masks "[MASK]" alone becomes a command; "[gMASK]" and "[sMASK]" stay text."""
        return self._strings.encode(text, super().encode) if special_tokens else super().encode(text)

    def encode_stretches(self, stretches: Sequence[str]) -> list[list[int]]:
        between = [self._strings.commands["[MASK]"]] * (len(stretches) - 1)
        return list(map(super().encode, stripped(stretches, between)))

    def detokenize(self, ids: Iterable[int], special_tokens: bool = True) -> str:
        """Commands vanish in the original's spelling. special_tokens: False leaves out <unk>, too."""
        left_out = {self.commands["pad"]} if special_tokens else self._special
        pieces = [self._piece(token) for token in valid_ids(ids, self.num_tokens) if token not in left_out]
        text = whitespace_restored(self._plain.decode_pieces(pieces))
        return text if self._is_first_revision else cleaned_up(text)

    def _piece(self, token: int) -> str:
        if token < self.num_image_tokens:
            return "" if self._is_first_revision else f"<image_{token}>"
        return self._plain.id_to_piece(token - self.num_image_tokens) if token < self.num_tokens else UNKNOWN_TEXT


class ChatGLM2Tokenizer(VocabularyTokenizer):
    """The tokenizer of a folder that holds tokenizer.model; UserError where that is missing or damaged.

    Nothing in a text is a command, not even where that is asked for: so the original.
    """

    def __init__(self, folder: str | os.PathLike):
        pieces = SentencePieces(Path(folder) / CHATGLM2_NAME, f"ChatGLM2's vocabulary {CHATGLM2_NAME}")
        commands = {name: pieces.size + place for place, name in enumerate(_CHATGLM2_COMMANDS)}
        commands |= {name: pieces.id_of(piece) for name, piece in _OF_CHATGLM2.items()}
        shown = {commands[name]: string for name, string in (_CHATGLM2_COMMANDS | _OF_CHATGLM2).items()}
        super().__init__(pieces, commands, shown, pieces.size + len(_CHATGLM2_COMMANDS), pieces.files)

    def detokenize(self, ids: Iterable[int]) -> str:
        """Commands vanish in the original's spelling."""
        return self.vocabulary.text_of([self._spelled(token) for token in valid_ids(ids, self.num_tokens)])

    def _spelled(self, token: int) -> str:
        if token in self._hidden:
            return ""
        return self.vocabulary.piece(token) if token < self.vocabulary.size else UNKNOWN_TEXT
