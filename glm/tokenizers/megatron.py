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
_BEFORE_MASKS = (("pad", END, 0), ("eos", END, 0), ("sep", "[SEP]", 1), ("ENC", "[CLS]", 2), ("[MASK]", "[MASK]", 3),
                 ("unk", "[UNK]", 4), ("sop", SOP, 6), ("eop", EOP, 7))
CHINESE = (*_BEFORE_MASKS, ("[sMASK]", "[sMASK]", 8), ("[gMASK]", "[gMASK]", 9))
CHINESE_UNFIXED = (*_BEFORE_MASKS, ("[gMASK]", "[gMASK]", 7), ("[sMASK]", "[sMASK]", 8))  # gMASK is eop, too
_COMMANDS = {
    "GLMChineseTokenizer": CHINESE,
    "GLMGPT2Tokenizer": (
        ("pad", END, END), ("eos", END, END), ("sop", SOP, 0), ("eop", EOP, 1), ("ENC", "[CLS]", 2),
        ("[MASK]", "[MASK]", 3), ("sep", "[SEP]", 4), ("unk", "[UNK]", 5), ("[gMASK]", "[gMASK]", 6),
        ("[sMASK]", "[sMASK]", 7)),
    "GLMBertTokenizer": (
        ("pad", "[PAD]", "[PAD]"), ("ENC", "[CLS]", "[CLS]"), ("[MASK]", "[MASK]", "[MASK]"),
        ("unk", "[UNK]", "[UNK]"), ("sep", "[SEP]", "[SEP]"), ("eos", "[PAD]", "[PAD]"), ("sop", SOP, 0),
        ("eop", EOP, 1)),
    "GLMRobertaTokenizer": (
        ("pad", END, "</s>"), ("eos", END, "</s>"), ("sep", "[SEP]", "</s>"), ("ENC", "[CLS]", "<s>"),
        ("[MASK]", "[MASK]", "<mask>"), ("unk", "[UNK]", "<unk>"), ("sop", SOP, 0), ("eop", EOP, 1)),
}


def open_megatron(folder: str | os.PathLike, tokenizer_class: str, fix_command_token: bool = True) -> GLMTokenizer:
    """The tokenizer of a checkpoint in Megatron's style.

    folder: holds the vocabulary. tokenizer_class: of huggingface.KINDS. fix_command_token: of the Chinese kind, the
    option that the model was trained with: glm-large-chinese with, glm-10b-chinese without. UserError for files that
    are missing or damaged.
    """
    is_bert, is_chinese = tokenizer_class == "GLMBertTokenizer", tokenizer_class == "GLMChineseTokenizer"
    table = _COMMANDS[tokenizer_class] if fix_command_token or not is_chinese else CHINESE_UNFIXED
    pieces = {piece for _, _, piece in table if isinstance(piece, str)}
    vocabulary = open_vocabulary(folder, KINDS[tokenizer_class], pieces, by_character=False)
    commands, strings = {}, {}
    for name, string, place in table:
        token = vocabulary.id_of(place) if isinstance(place, str) else vocabulary.size + place
        if token is None:
            raise damaged(vocabulary.files[0], f"the vocabulary of a {tokenizer_class}", f"it has no {place}")
        strings[string] = Command(token, strips_before=name in MASKS and not is_bert, strips_after=False)
        if name != "unk":  # stands for text
            commands[name] = token
    return GLMTokenizer(vocabulary, commands, strings, Rules(" " if is_bert else "", False, True), vocabulary.files)
