"""An answer's text: the prompt as it was typed, with what was filled in between.

The model reads and writes pieces of words, normalised and each stretch by itself; a person gets back his own letters,
blanks and line ends. What is filled in is decoded, and joined to what stands before it by the blank that its first
piece begins with, where one belongs. Nothing is put behind it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

# Scripts without blanks between words: Chinese and Japanese, with their punctuation and the wide forms of others.
_UNSPACED = re.compile("[\u2e80-\u312f\u3190-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]")
_CLOSING, _OPENING = ("Pe", "Pf"), ("Ps", "Pi")  # brackets and quotes, as Unicode divides them


@dataclass(frozen=True)
class Filled:
    """What stands in one blank. text: without the blank before its first word; is_new_word: whether it has one."""

    text: str
    is_new_word: bool


def filled(ids: Sequence[int], tokenizer) -> Filled:
    """ids: of one blank, without their end token. Commands that the model generated are shown by name; a blank at the
    end, before a word that did not come, is left out."""
    while ids and tokenizer.decode_behind(ids[-1:]) == " ":
        ids = ids[:-1]
    text, behind = tokenizer.decode(ids, special_tokens=True), tokenizer.decode_behind(ids)
    if text == behind and behind[:1] == " " != behind[1:2]:  # byte-level vocabularies keep a blank at the beginning
        text = behind[1:]
    return Filled(text, behind != text)


def joint(before: str, blank: Filled) -> str:
    """The blank between what stands before and what was filled in, or nothing."""
    if not (blank.is_new_word and blank.text and before) or before[-1].isspace() or blank.text[0].isspace():
        return ""
    last, first = before[-1], blank.text[0]
    if _UNSPACED.match(last) or _UNSPACED.match(first) or first in ".,;:!?…%":
        return ""
    return "" if unicodedata.category(last) in _OPENING or unicodedata.category(first) in _CLOSING else " "


def joined(typed: Sequence[str], blanks: Sequence[Filled], begin: str = "", end: str = "") -> str:
    """typed: the prompt's own text before, between and behind the blanks. begin, end: written around each blank."""
    plain = shown = typed[0]
    for blank, behind in zip(blanks, typed[1:], strict=True):
        space = joint(plain, blank)
        plain += space + blank.text + behind
        shown += space + begin + blank.text + end + behind
    return shown
