"""GLM's tokenizers as the Hugging Face port reads them: tokenizer_config.json, added_tokens.json and the vocabulary.

No code of the folder is run; the class that tokenizer_config.json names says which of the four kinds it is.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from glm.tokenizers import byte_level, wordpiece
from glm.tokenizers.byte_level import ByteLevel
from glm.tokenizers.commands import Command
from glm.tokenizers.glm import GLMTokenizer, Rules
from glm.tokenizers.sentence_pieces import SentencePieces
from glm.tokenizers.vocabulary import Vocabulary
from glm.tokenizers.vocabulary_files import damaged, read_ids, read_settings
from glm.tokenizers.wordpiece import Wordpiece
from runtime.errors import UserError, shown

SETTINGS_NAME, ADDED_NAME = "tokenizer_config.json", "added_tokens.json"
MOST_ADDED = 1000  # ids behind the vocabulary: there are ten
CHINESE_NAME, CHINESE_ALSO = "cog-pretrain.model", "sp.model"
SOP, EOP, END = "<|startofpiece|>", "<|endofpiece|>", "<|endoftext|>"
NEVER, BEFORE, BOTH = (False, False), (True, False), (True, True)  # on which sides a command takes white space


@dataclass(frozen=True)
class Kind:
    """One of GLM's four tokenizers. Roles are the keys of tokenizer_config.json, which may give other strings."""

    vocabulary: str  # its main file
    tokens: Mapping[str, str]  # role -> string
    added: tuple[str, ...]  # the strings behind the vocabulary, in the order of their ids
    roles: Mapping[str, str]  # name of a command -> role
    strips: Mapping[str, tuple[bool, bool]]  # role -> sides; both where it is not said


_NAMES = {"pad": "pad_token", "eos": "eos_token", "sep": "sep_token", "ENC": "cls_token", "[MASK]": "mask_token"}

KINDS = {
    "GLMChineseTokenizer": Kind(
        CHINESE_NAME,
        {"eos_token": END, "pad_token": END, "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
         "unk_token": "[UNK]"},
        (END, "[SEP]", "[CLS]", "[MASK]", "[UNUSED1]", "[UNUSED2]", SOP, EOP, "[sMASK]", "[gMASK]"),
        _NAMES, {}),
    "GLMGPT2Tokenizer": Kind(
        byte_level.VOCABULARY_NAME,
        {"bos_token": END, "eos_token": END, "unk_token": END, "pad_token": END, "cls_token": "[CLS]",
         "mask_token": "[MASK]"},
        (SOP, EOP, "[CLS]", "[MASK]", "[SEP]", "[UNUSED1]", "[gMASK]", "[sMASK]"),
        _NAMES, dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), NEVER)),
    "GLMBertTokenizer": Kind(
        wordpiece.VOCABULARY_NAME,
        {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
         "mask_token": "[MASK]"},
        (SOP, EOP), _NAMES | {"eos": "sep_token"}, {}),
    "GLMRobertaTokenizer": Kind(
        byte_level.VOCABULARY_NAME,
        {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
         "pad_token": "<pad>", "mask_token": "<mask>"},
        (SOP, EOP), _NAMES,
        dict.fromkeys(("bos_token", "eos_token", "sep_token", "cls_token", "unk_token", "pad_token"), NEVER)
        | {"mask_token": BEFORE}),
}
_UNNAMED = {"sop": SOP, "eop": EOP, "[sMASK]": "[sMASK]", "[gMASK]": "[gMASK]"}  # commands that have no role


def open_huggingface(folder: str | os.PathLike, tokenizer_class: str) -> GLMTokenizer:
    """The tokenizer of a folder. tokenizer_class: of KINDS. UserError for files that are missing or damaged."""
    kind, settings = KINDS[tokenizer_class], read_settings(folder, SETTINGS_NAME)
    tokens, sides = _tokens(kind, settings, Path(folder) / SETTINGS_NAME)
    vocabulary = open_vocabulary(folder, kind, set(tokens.values()), settings.get("do_lower_case") is not False)
    added, files = _added(folder, kind, vocabulary)
    ids = {string: added.get(string, vocabulary.id_of(string)) for string in (*added, *tokens.values())}
    strings = {string: Command(token) for string, token in ids.items() if token is not None}
    strings |= {string: Command(ids[string], *sides[role]) for role, string in tokens.items()
                if role in sides and string in strings}
    named = {name: tokens[role] for name, role in kind.roles.items() if role in tokens} | _UNNAMED
    commands = {name: ids[string] for name, string in named.items() if string in strings}
    for name in ("ENC", "eos", "pad", "[MASK]", "sop", "eop"):
        if name not in commands:
            raise damaged(vocabulary.files[0], f"the vocabulary of a {tokenizer_class}",
                          f"neither it nor {ADDED_NAME} has {named[name]}")
    special = frozenset(strings[string].token for string in tokens.values() if string in strings)
    return GLMTokenizer(vocabulary, commands, strings, Rules(" ", True, False, special), files)


def open_vocabulary(folder: str | os.PathLike, kind: Kind, commands: Collection[str], is_lower_case: bool = True,
                    by_character: bool = True) -> Vocabulary:
    """The text vocabulary of a kind. commands: strings that no text may become; the others are Wordpiece's."""
    if kind.vocabulary == CHINESE_NAME:
        path = Path(folder) / CHINESE_NAME
        if not path.exists() and (also := Path(folder) / CHINESE_ALSO).exists():
            path = also
        return SentencePieces(path, f"GLM's Chinese vocabulary {CHINESE_NAME} (or {CHINESE_ALSO})")
    if kind.vocabulary == wordpiece.VOCABULARY_NAME:
        return Wordpiece(folder, is_lower_case, by_character)
    return ByteLevel(folder, commands)


def _tokens(kind: Kind, settings: Mapping, where: Path) -> tuple[dict[str, str], dict[str, tuple[bool, bool]]]:
    """Role -> string and role -> sides, as the class has them where tokenizer_config.json says nothing else."""
    given = {role: settings[role] for role in (*_NAMES.values(), "bos_token", "unk_token")
             if settings.get(role) is not None}
    more = settings.get("additional_special_tokens") or []
    if not isinstance(more, list):
        raise UserError(f"{where}: additional_special_tokens is {shown(more)}; it should be a list of strings")
    given |= {f"additional_special_tokens[{place}]": token for place, token in enumerate(more)}
    tokens, sides = dict(kind.tokens), dict(kind.strips)
    for role, token in given.items():
        if isinstance(token, dict):  # with the sides on which it takes white space
            sides[role] = token.get("lstrip") is True, token.get("rstrip") is True
            token = token.get("content")
        if not isinstance(token, str) or not token:
            raise UserError(f"{where}: {role} is {shown(token)}; it should be a string that stands for a command")
        tokens[role] = token
    return tokens, sides


def _added(folder: str | os.PathLike, kind: Kind, vocabulary: Vocabulary) -> tuple[dict[str, int], tuple[Path, ...]]:
    """String -> id of the commands that the vocabulary lacks, and the files that say so."""
    path = Path(folder) / ADDED_NAME
    if not path.is_file():
        return {string: vocabulary.size + place for place, string in enumerate(kind.added)}, vocabulary.files
    what, most = "the commands that were added to a vocabulary", vocabulary.size + MOST_ADDED
    added = read_ids(path, what)
    for string, token in added.items():
        if token >= most:
            raise damaged(path, what, f"the id of {shown(string)} is {token}, {vocabulary.files[0].name} ends at "
                                      f"{vocabulary.size - 1}")
    return added, (*vocabulary.files, path)
