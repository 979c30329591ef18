"""icetk's way of encoding text, on top of sentencepiece and icetk's vocabulary file ``ice_text.model``.

A token id is the sentencepiece id plus ``num_image_tokens``. Behind the pieces of the file come, in this order, the
commands ([MASK] ... <dBLOCK>), <|tab|>, <|blank_2|> ... <|blank_80|> and the 256 byte pieces.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from glm.tokenizers.interface import UNKNOWN_TEXT, Tokenizer, valid_text
from glm.tokenizers.sentence_pieces import processor_of
from glm.tokenizers.vocabulary_files import read_vocabulary
from runtime.errors import UserError

VOCABULARY_NAME = "ice_text.model"
COMMAND_PIECES = ("[MASK]", "[gMASK]", "[sMASK]", "<eod>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
LONGEST_BLANK = 80
BLANK_PIECES = tuple(f"<|blank_{length}|>" for length in range(2, LONGEST_BLANK + 1))
BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
NUM_APPENDED = len(COMMAND_PIECES) + 1 + len(BLANK_PIECES) + len(BYTE_PIECES)

_WHAT = f"icetk's vocabulary {VOCABULARY_NAME}"
_RUN_OF_BLANKS = re.compile(f" {{2,{LONGEST_BLANK}}}")
_WHITESPACE_PIECE = re.compile(r"<n>|<\|tab\|>|<\|blank_([2-9]|[1-7][0-9]|80)\|>")


class IcetkTokenizer(Tokenizer):
    """GLM-130B's tokenizer, and that of our own models.

    vocabulary_file: icetk's ``ice_text.model`` or one trained by its conventions, with or without the pieces
    that are appended here (ChatGLM-6B's file has them); UserError for any other file.
    num_image_tokens: the number of ids in front of the text pieces (20000 for GLM-130B).
    """

    def __init__(self, vocabulary_file: str | os.PathLike, num_image_tokens: int = 20000):
        self.vocabulary_files = (Path(vocabulary_file),)
        self.num_image_tokens = num_image_tokens
        self._data = _without_appended(read_vocabulary(self.vocabulary_file, _WHAT))
        self._plain = self._processor(commands_in_text=False)
        self._with_commands = None  # rarely asked for, and a large vocabulary takes a while to load
        self.num_pieces = self._plain.get_piece_size() - NUM_APPENDED
        # one object for each id: a list of them takes 8 bytes a token, not 36, and evaluations hold millions
        self._ids = list(range(num_image_tokens, self.num_tokens))
        self.commands = self._command_ids()
        self._shown = {token: name for name, token in self.commands.items()}
        self._shown[self.commands["eos"]] = "</s>"
        self._linebreak = num_image_tokens + self._plain.piece_to_id("<n>")
        self._replacement_ids = [self._plain.piece_to_id(f"<0x{byte:02X}>") for byte in UNKNOWN_TEXT.encode()]

    @property
    def num_tokens(self) -> int:
        """The first id that is not used."""
        return self.num_image_tokens + self.num_pieces + NUM_APPENDED

    def encode(
        self,
        text: str,
        linebreak: bool = True,
        whitespaces: bool = True,
        special_tokens: bool = False,
        add_dummy_prefix: bool = True,
    ) -> list[int]:
        """Ids of ``text``.

        linebreak, whitespaces: keep newlines, and tabs and runs of blanks (otherwise they shrink to one blank).
        special_tokens: "[MASK]", "<sop>" ... in the text become the command ids; otherwise they stay ordinary text.
        add_dummy_prefix: encode as if a blank stood in front of the text.
        """
        text = valid_text(text)
        if linebreak:
            text = text.replace("\n", "<n>")
        if whitespaces:
            text = text.replace("\t", "<|tab|>")
            text = _RUN_OF_BLANKS.sub(lambda run: f"<|blank_{len(run[0])}|>", text)
        if not add_dummy_prefix:
            # sentencepiece always adds the blank: let it stand in front of a piece that is cut off again.
            text = "<n>" + text
        ids = self._encoder(special_tokens).encode(text)
        if not add_dummy_prefix:
            ids = ids[2:]
        return [self._ids[piece] for piece in ids]

    def decode(self, ids: Iterable[int], special_tokens: bool = False) -> str:
        """Text of ``ids``; commands vanish unless ``special_tokens``.

        An id that stands for no text (an image's, or behind the last piece) is shown as U+FFFD.
        """
        last = self.num_pieces + NUM_APPENDED
        pieces = []
        for token in ids:
            piece = int(token) - self.num_image_tokens
            if 0 <= piece < last:
                pieces.append(piece)
            elif token < 0:
                raise UserError(f"{token} is no token id: ids are 0 ... {self.num_tokens - 1}")
            else:
                pieces.extend(self._replacement_ids)
        return whitespace_restored(self._encoder(special_tokens).decode(pieces))

    def decode_behind(self, ids: Iterable[int]) -> str:
        """Text of ``ids`` as it stands behind other text: with the leading blank that ``decode`` drops.

        Commands are shown by name, "[MASK]" or "<eod>".
        """
        return self.decode([self._linebreak, *ids], special_tokens=True)[1:]

    def detokenize(self, ids: Iterable[int]) -> str:
        """Text of ``ids`` as the original spells it: command, tab and blank-run ids as [name], eos as [</s>].

        Every stretch between them is decoded by itself, so it loses its leading blank. For texts to be read see
        ``decode`` and ``decode_behind``.
        """
        parts, stretch = [], []
        for token in ids:
            name = self._shown.get(int(token))
            if name is None:
                stretch.append(token)
                continue
            parts += [self.decode(stretch), f"[{name}]"]
            stretch = []
        return "".join(parts) + self.decode(stretch)

    def _encoder(self, special_tokens: bool):
        if not special_tokens:
            return self._plain
        if self._with_commands is None:
            self._with_commands = self._processor(commands_in_text=True)
        return self._with_commands

    def _processor(self, commands_in_text: bool):
        # Two serialised messages one after the other are their merged message: repeated fields are concatenated and
        # single fields overwritten, so the large vocabulary need not be parsed in Python.
        return processor_of(self._data + _appended_pieces(commands_in_text), self.vocabulary_file, _WHAT)

    def _command_ids(self) -> dict[str, int]:
        """Name -> id, in the order of the ids but for eos; checks that the file follows icetk's conventions."""
        pieces_of_file = {self._plain.id_to_piece(place) for place in range(min(self.num_pieces, 100))}
        missing = [piece for piece in ("<n>", "</s>") if piece not in pieces_of_file]
        if missing:
            raise UserError(f"{self.vocabulary_file} is not {_WHAT}: it has no {' and '.join(missing)}")
        names = [piece.strip("<>") for piece in COMMAND_PIECES]
        names += ["<t>", *(f"<blank_{length}>" for length in range(2, LONGEST_BLANK + 1))]
        first = self.num_image_tokens + self.num_pieces
        commands = {name: first + place for place, name in enumerate(names)}
        commands["eos"] = self.num_image_tokens + self._plain.piece_to_id("</s>")
        return commands


def find_vocabulary(checkpoint: str | os.PathLike, tokenizer_path: str | os.PathLike | None = None) -> Path:
    """The vocabulary file: ``tokenizer_path`` (file or folder) if given, else beside the checkpoint, else at home.

    Raises UserError where there is none, saying how to get it.
    """
    if tokenizer_path is not None:
        path = Path(tokenizer_path).expanduser()
        candidates = [path / VOCABULARY_NAME if path.is_dir() else path]
    else:
        candidates = [Path(checkpoint) / VOCABULARY_NAME, Path.home() / ".icetk_models" / VOCABULARY_NAME]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    looked = " and ".join(str(candidate) for candidate in candidates)
    raise UserError(
        f"no vocabulary file at {looked}: GLM-130B's is {VOCABULARY_NAME} of the icetk package, which puts it into "
        "~/.icetk_models at first use (in an environment of its own: pip install icetk; "
        "python -c \"from icetk import icetk; icetk.encode('a')\"); "
        "copy it beside the checkpoint or name it with --tokenizer-path (in Python: tokenizer_path)"
    )


def _without_appended(data: bytes) -> bytes:
    """The vocabulary without the pieces that are appended here, where it ends with them."""
    if BYTE_PIECES[-1].encode() not in data:
        return data
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    vocabulary = sentencepiece_model_pb2.ModelProto()
    try:
        vocabulary.ParseFromString(data)
    except DecodeError:  # told of by sentencepiece, too
        return data
    tail = [piece.piece for piece in vocabulary.pieces[-NUM_APPENDED:]]
    if (tail[:1], tail[-1:]) != ([COMMAND_PIECES[0]], [BYTE_PIECES[-1]]):
        return data
    del vocabulary.pieces[-NUM_APPENDED:]
    return vocabulary.SerializeToString()


def _appended_pieces(commands_in_text: bool) -> bytes:
    """The serialised pieces behind those of the file, and byte fallback switched on."""
    from sentencepiece import sentencepiece_model_pb2

    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    command_kind = kinds.USER_DEFINED if commands_in_text else kinds.CONTROL
    appended = sentencepiece_model_pb2.ModelProto()
    for pieces, kind in (
        (COMMAND_PIECES, command_kind),
        (("<|tab|>", *BLANK_PIECES), kinds.USER_DEFINED),
        (BYTE_PIECES, kinds.BYTE),
    ):
        for piece in pieces:
            appended.pieces.add(piece=piece, score=0.0, type=kind)
    appended.trainer_spec.byte_fallback = True
    return appended.SerializeToString()


def whitespace_restored(text: str) -> str:
    """A decoded text with line ends, tabs and runs of blanks in place of the pieces that stand for them."""
    return _WHITESPACE_PIECE.sub(_whitespace, text)


def _whitespace(piece: re.Match) -> str:
    if piece[0] == "<n>":
        return "\n"
    return " " * int(piece[1]) if piece[1] else "\t"
