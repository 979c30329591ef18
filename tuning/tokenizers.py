"""The GLM repository's tokenizers by the names that its commands give them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from glm.tokenizers.megatron import open_megatron
from runtime.errors import UserError
from tuning.options import TokenizerOptions

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

# --tokenizer-type -> the class of Hugging Face's port with the same vocabulary
CLASSES = {"GPT2BPETokenizer": "GLMGPT2Tokenizer", "BertWordPieceTokenizer": "GLMBertTokenizer",
           "ChineseSPTokenizer": "GLMChineseTokenizer"}


def open_tokenizer(options: TokenizerOptions, load: Path | None = None, has_blocks_masked: bool = False) -> Tokenizer:
    """UserError where nothing says whose vocabulary it is, or its files are missing.

    has_blocks_masked: dBLOCK is a command, too, behind all others.
    """
    path = options.tokenizer_path or load
    if path is None:
        raise UserError("no tokenizer: name --tokenizer-type and --tokenizer-path, or --load a folder that holds one")
    if options.tokenizer_type is None:
        from glm.tokenizers.opening import open_tokenizer as open_folder

        return open_folder(path)
    return open_megatron(path, CLASSES[options.tokenizer_type], options.fix_command_token)
