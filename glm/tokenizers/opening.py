"""Which tokenizer a folder holds: said by its settings and files, of which no code is ever run."""

from __future__ import annotations

import os
from pathlib import Path

from glm.tokenizers import byte_level, icetk, wordpiece
from glm.tokenizers.chatglm import CHATGLM2_NAME, ChatGLM2Tokenizer, ChatGLMTokenizer
from glm.tokenizers.glm import GLMTokenizer
from glm.tokenizers.huggingface import ADDED_NAME, CHINESE_NAME, KINDS, SETTINGS_NAME, open_huggingface
from glm.tokenizers.icetk import IcetkTokenizer
from glm.tokenizers.interface import Tokenizer
from glm.tokenizers.megatron import open_megatron
from glm.tokenizers.vocabulary_files import GET_IT, read_ids, read_settings
from runtime.errors import UserError, shown

CONFIG_NAME = "config.json"
ICETK, CHATGLM, CHATGLM2 = "icetk", "ChatGLM-6B", "ChatGLM2-6B"
_CHATGLM_CLASS = "ChatGLMTokenizer"  # both generations name it
_BY_FILE = {CHINESE_NAME: "GLMChineseTokenizer", wordpiece.VOCABULARY_NAME: "GLMBertTokenizer",
            byte_level.VOCABULARY_NAME: "GLMGPT2Tokenizer", icetk.VOCABULARY_NAME: ICETK,
            CHATGLM2_NAME: CHATGLM2}
FILES = (*_BY_FILE, byte_level.MERGES_NAME, SETTINGS_NAME, ADDED_NAME)  # of which some make up a tokenizer


def open_tokenizer(path: str | os.PathLike, num_image_tokens: int = 20000) -> Tokenizer:
    """The tokenizer of a checkpoint's folder, of any other that holds its vocabulary, or of such a file's folder.

    num_image_tokens: with icetk's vocabulary where no tokenizer_config.json says it, as for GLM-130B.
    UserError for a vocabulary that is missing, unknown or damaged.
    """
    folder = _folder(path)
    kind = kind_of(folder)
    if kind in KINDS:
        return open_huggingface(folder, kind)
    if kind == CHATGLM2:
        return ChatGLM2Tokenizer(folder)
    if kind == CHATGLM:
        return _open_chatglm(folder)
    return IcetkTokenizer(folder / icetk.VOCABULARY_NAME, num_image_tokens)


def open_megatron_tokenizer(path: str | os.PathLike, fix_command_token: bool = True) -> GLMTokenizer:
    """The tokenizer of a GLM checkpoint in Megatron's style. path: a folder that holds the vocabulary, or a file of it.

    fix_command_token: the option that a Chinese model was trained with: true for glm-large-chinese, false for
    glm-10b-chinese. Raises UserError as open_tokenizer.
    """
    folder = _folder(path)
    kind = kind_of(folder)
    if kind not in KINDS:
        raise UserError(f"{folder}: holds the tokenizer of {kind}; of a GLM in Megatron's style it is {CHINESE_NAME}, "
                        f"{wordpiece.VOCABULARY_NAME} or {byte_level.VOCABULARY_NAME} with {byte_level.MERGES_NAME}")
    return open_megatron(folder, kind, fix_command_token)


def kind_of(folder: Path) -> str:
    """A key of KINDS, ICETK, CHATGLM or CHATGLM2; UserError where the folder holds none of them."""
    settings, config = read_settings(folder, SETTINGS_NAME), read_settings(folder, CONFIG_NAME)
    named = settings.get("tokenizer_class") or (_CHATGLM_CLASS if config.get("model_type") == "chatglm" else None)
    if named == _CHATGLM_CLASS:
        is_second = (folder / CHATGLM2_NAME).exists() and not (folder / icetk.VOCABULARY_NAME).exists()
        return CHATGLM2 if is_second or "padded_vocab_size" in config else CHATGLM
    if isinstance(named, str) and named in KINDS:
        return named
    if named is not None:
        raise UserError(f"{folder / SETTINGS_NAME}: tokenizer_class is {shown(named)}; known are {', '.join(KINDS)} "
                        f"and {_CHATGLM_CLASS}")
    found = next((kind for name, kind in _BY_FILE.items() if (folder / name).exists()), None)
    if found is None:
        raise UserError(f"no vocabulary in {folder}: there should be one of {', '.join(_BY_FILE)}; {GET_IT}")
    if found == "GLMGPT2Tokenizer" and is_roberta(folder):
        return "GLMRobertaTokenizer"
    return found


def _folder(path: str | os.PathLike) -> Path:
    path = Path(path).expanduser()
    return path.parent if path.is_file() else path


def is_roberta(folder: Path) -> bool:
    """Of the two byte-level vocabularies only RoBERTa's holds its commands."""
    return {"<s>", "</s>", "<pad>"} <= read_ids(folder / byte_level.VOCABULARY_NAME, byte_level.WHAT).keys()


def _open_chatglm(folder: Path) -> ChatGLMTokenizer:
    settings, config = read_settings(folder, SETTINGS_NAME), read_settings(folder, CONFIG_NAME)
    images = settings.get("num_image_tokens", 20000)
    if type(images) is not int or images < 0:
        raise UserError(f"{folder / SETTINGS_NAME}: num_image_tokens is {shown(images)}; it should be 0 or 20000")
    tokenizer = ChatGLMTokenizer(folder, images, is_first_revision=settings.get("eos_token") == "</s>")
    sop, begin = tokenizer.command("sop"), config.get("bos_token_id")
    if begin is not None and begin != sop:
        raise UserError(f"{folder / SETTINGS_NAME}: with num_image_tokens {images} {tokenizer.vocabulary_file} "
                        f"gives <sop> the id {sop}, {CONFIG_NAME} says {shown(begin)}: they belong to different "
                        "revisions of the model; copy both from the same one")
    return tokenizer
