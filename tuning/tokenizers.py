"""The GLM repository's tokenizers by the names that its commands give them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from glm.tokenizers import byte_level
from glm.tokenizers.megatron import open_megatron
from glm.tokenizers.opening import is_roberta
from glm.tokenizers.opening import open_tokenizer as open_folder
from runtime.errors import UserError
from tuning.options import Settings, TokenizerOptions

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

# --tokenizer-type -> the class of Hugging Face's port with the same vocabulary
CLASSES = {"GPT2BPETokenizer": "GLMGPT2Tokenizer", "BertWordPieceTokenizer": "GLMBertTokenizer",
           "ChineseSPTokenizer": "GLMChineseTokenizer"}


def open_for(settings: Settings, load: Path | None = None) -> Tokenizer:
    """The original's tokenizer by its name, or what the folder of the checkpoint holds."""
    objective = settings.objective
    return open_tokenizer(settings.tokenizer, load, objective.block_mask_prob > 0 or objective.context_mask_ratio > 0)


def open_tokenizer(options: TokenizerOptions, load: Path | None = None, has_block_mask: bool = False) -> Tokenizer:
    """UserError where nothing says whose vocabulary it is, or its files are missing.

    has_block_mask: dBLOCK is a command, too, behind all others.
    """
    path = options.tokenizer_path or load
    if path is None:
        raise UserError("no tokenizer: name --tokenizer-type and --tokenizer-path, or --load a folder that holds one")
    path = Path(path).expanduser()
    folder = path.parent if path.is_file() else path
    if options.tokenizer_type is None:
        return _own_tokenizer(load, options.tokenizer_path) if load is not None else open_folder(folder)
    kind = CLASSES[options.tokenizer_type]
    if kind == "GLMGPT2Tokenizer" and (folder / byte_level.VOCABULARY_NAME).is_file() and is_roberta(folder):
        kind = "GLMRobertaTokenizer"
    return open_megatron(folder, kind, options.fix_command_token, options.task_mask, has_block_mask)


def _own_tokenizer(load: Path, path: Path | None) -> Tokenizer:
    """As generation and evaluation open a checkpoint's."""
    from glm.checkpoint import read_config
    from glm.families import FAMILIES

    config = read_config(load)
    return FAMILIES[config.family].open_tokenizer(Path(load).expanduser(), path, config)
