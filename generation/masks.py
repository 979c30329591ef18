"""The masks of a prompt: which of them are filled, and what was probably meant for one.

[MASK] stands for a few words, [sMASK] for a sentence, [gMASK] for a text up to its end.
"""

from __future__ import annotations

import re
import string

MASKS = ("[MASK]", "[sMASK]", "[gMASK]")  # the kind to fill is the first of these that a prompt has
MASK_PATTERN = re.compile(r"\[[sg]?MASK\]")

# A word between brackets, with a number perhaps; not the text of a link, [word](address).
_BRACKETED = re.compile(r"(?:[\[【] ?|<\|?)([A-Za-z_-]{1,16})[ _-]?[0-9]*(?: ?[\]】]|\|?>)(?!\()")
# as input methods for Chinese and Japanese type ASCII in full width
_NARROW = {ord(character) + 0xFEE0: character for character in f"{string.ascii_letters}{string.digits}[]<>|_-"}
_MEANT = re.compile("(?i:[sg]?[_-]?mask|blank|extra_id)|[A-Za-z]{0,2}[_-]?(?:MASK|MAKS|MSAK|AMSK|BLANK)(?:S|ED)?")
_NAME = re.compile(r"[A-Za-z0-9_)\]]")  # before a bracket it says that this is a program: mask of a[mask] is an index


def kind_of(text: str) -> str:
    """The kind of mask that is filled; [gMASK], which is put at the end, where there is none."""
    return next((mask for mask in MASKS if mask in text), MASKS[-1])


def left_over(text: str) -> list[str]:
    """The masks of other kinds than the one that is filled: they stay in the answer as they are."""
    return [mask for mask in MASK_PATTERN.findall(text) if mask != kind_of(text)]


def note_on_left_over(mask: str, kind: str) -> str:
    """What a user is told once."""
    return f"where a prompt has masks of several kinds, one kind is filled: here {kind}; {mask} stays as it is"


def meant_for_a_mask(text: str) -> tuple[str, str] | None:
    """The first thing that is no mask but was probably meant for one, and which: ("<mask>", "[MASK]"); None."""
    for found in _BRACKETED.finditer(text.translate(_NARROW)):
        word, written = found[1].rstrip("_-"), text[found.start():found.end()]
        if written in MASKS or not _MEANT.fullmatch(word) or f"</{word}" in text:
            continue
        if found.start() and _NAME.match(text[found.start() - 1]) and not word.isupper():
            continue
        letters = word.replace("_", "").replace("-", "").lower()
        return written, {"smask": "[sMASK]", "gmask": "[gMASK]"}.get(letters, "[MASK]")
    return None
