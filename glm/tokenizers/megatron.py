"""GLM's tokenizers as the original in Megatron's style has them.

Its checkpoints bring no files for them: the vocabulary is that of the Hugging Face port's folder, and the commands
stand in the tables here. Differences to the port: white space goes before masks only (with BERT's vocabulary it never
does), a text of nothing else has no ids, and a spelled text is not cleaned up.
"""

from __future__ import annotations

import os

from glm.tokenizers.commands import Command
from glm.tokenizers.glm import GLMTokenizer, Rules
from glm.tokenizers.huggingface import END, EOP, KINDS, SOP, open_vocabulary
from glm.tokenizers.vocabulary_files import damaged

MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
# name, string in a text, id: a number counts from the end of the vocabulary, a string is a piece of it. Of several
# commands with one id the last names it.
_COMMANDS = {
    "GLMChineseTokenizer": (
        ("pad", END, 0), ("eos", END, 0), ("sep", "[SEP]", 1), ("ENC", "[CLS]", 2), ("[MASK]", "[MASK]", 3),
        ("unk", "[UNK]", 4), ("sop", SOP, 6), ("eop", EOP, 7)),
    "GLMGPT2Tokenizer": (
        ("pad", END, END), ("eos", END, END), ("sop", SOP, 0), ("eop", EOP, 1), ("ENC", "[CLS]", 2),
        ("[MASK]", "[MASK]", 3), ("sep", "[SEP]", 4), ("unk", "[UNK]", 5)),
    "GLMBertTokenizer": (
        ("pad", "[PAD]", "[PAD]"), ("ENC", "[CLS]", "[CLS]"), ("[MASK]", "[MASK]", "[MASK]"),
        ("unk", "[UNK]", "[UNK]"), ("sep", "[SEP]", "[SEP]"), ("eos", "[PAD]", "[PAD]"), ("sop", SOP, 0),
        ("eop", EOP, 1)),
    "GLMRobertaTokenizer": (
        ("pad", END, "</s>"), ("eos", END, "</s>"), ("sep", "[SEP]", "</s>"), ("ENC", "[CLS]", "<s>"),
        ("[MASK]", "[MASK]", "<mask>"), ("unk", "[UNK]", "<unk>"), ("sop", SOP, 0), ("eop", EOP, 1)),
}

_TASK_MASKS = {"GLMChineseTokenizer": {"[sMASK]": 8, "[gMASK]": 9}, "GLMGPT2Tokenizer": {"[gMASK]": 6, "[sMASK]": 7},
               "GLMBertTokenizer": {"[gMASK]": 2, "[sMASK]": 3}, "GLMRobertaTokenizer": {"[gMASK]": 2, "[sMASK]": 3}}
_UNFIXED = {"[gMASK]": 7, "[sMASK]": 8}  # of the Chinese kind: gMASK is eop, too
BLOCK_MASK = "[dBLOCK]"


def open_megatron(folder: str | os.PathLike, tokenizer_class: str, fix_command_token: bool = True,
                  task_mask: bool | None = None, has_block_mask: bool = False) -> GLMTokenizer:
    """The tokenizer of a checkpoint in Megatron's style.

    folder: holds the vocabulary. tokenizer_class: of huggingface.KINDS. fix_command_token: of the Chinese kind, the
    option that the model was trained with: glm-large-chinese with, glm-10b-chinese without. task_mask: whether there
    are [gMASK] and [sMASK] (None: as in the published models of the kind). has_block_mask: whether dBLOCK, behind all
    others, is a command. UserError for files that are missing or damaged.
    """
    is_bert = tokenizer_class == "GLMBertTokenizer"
    vocabulary = open_vocabulary(folder, KINDS[tokenizer_class], _pieces(tokenizer_class), by_character=False)
    commands, strings = {}, {}
    for name, string, place in _table(tokenizer_class, fix_command_token, task_mask, has_block_mask):
        token = vocabulary.id_of(place) if isinstance(place, str) else vocabulary.size + place
        if token is None:
            raise damaged(vocabulary.files[0], f"the vocabulary of a {tokenizer_class}", f"it has no {place}")
        strings[string] = Command(token, strips_before=name in MASKS and not is_bert, strips_after=False)
        if name != "unk":  # stands for text
            commands[name] = token
    return GLMTokenizer(vocabulary, commands, strings, Rules(" " if is_bert else "", False, True), vocabulary.files)


def _pieces(tokenizer_class: str) -> set[str]:
    return {piece for _, _, piece in _COMMANDS[tokenizer_class] if isinstance(piece, str)}


def _table(tokenizer_class: str, fix_command_token: bool, task_mask: bool | None,
           has_block_mask: bool) -> list[tuple[str, str, str | int]]:
    """Name, string and place of all commands."""
    table = list(_COMMANDS[tokenizer_class])
    is_chinese = tokenizer_class == "GLMChineseTokenizer"
    if task_mask is None:
        task_mask = tokenizer_class in ("GLMChineseTokenizer", "GLMGPT2Tokenizer")
    if task_mask:
        masks = _UNFIXED if is_chinese and not fix_command_token else _TASK_MASKS[tokenizer_class]
        table += [(name, name, place) for name, place in masks.items()]
    if has_block_mask:
        behind = max(place for _, _, place in table if isinstance(place, int)) + 1
        table.append(("dBLOCK", BLOCK_MASK, behind))
    return table
