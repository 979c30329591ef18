"""What the tasks do to texts: to those of files before a model reads them, to decoded ones before they are scored.

Each rule by itself. `fix` undoes what a tokenizer did, so that a decoded text is spelt as its reference is.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from runtime.errors import UserError
from runtime.show import nearest

_STANDARD = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-"})
_GIGAWORD = (("UNK", "[UNK]"), ("<unk>", "[UNK]"), ("-lrb-", "("), ("-rrb-", ")"), ("-lsb-", "["), ("-rsb-", "]"),
             ("-lcb-", "{"), ("-rcb-", "}"), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))  # [UNK] becomes [[UNK]]
_CNN_DM = (("-LRB-", "("), ("-RRB-", ")"), ("-LSB-", "["), ("-RSB-", "]"), ("-LCB-", "{"), ("-RCB-", "}"),
           ("''", '"'), ("``", '"'), ("`", "'"), (" n't", "n't"), (" 's", "'s"), (" 'd", "'d"), (" 'll", "'ll"))
_BLANK = (("_UNK", "[UNK]"), ("<blank>", "[MASK]"))
_FIX_BLANK = (("` `", "``"), ("' '", "''"), ("n ' t", "n't"), ("' s", "'s"), ("' m", "'m"), ("' re", "'re"),
              (". . .", "..."), (" . .", " .."), ("- -", "--"), ("u . s .", "u.s."), ("u . k .", "u.k."),
              ("e . g .", "e.g."))
_FIX_SQUAD = tuple((re.compile(pattern), put) for pattern, put in (
    (r" - ", "-"), (r" – ", "–"), (r"\ba \. m\b", "a.m"), (r"\bp \. m\b", "p.m"), (r"\b' s\b", "'s"),
    (r"\bu \. s\b", "u.s")))


def standardised(text: str) -> str:
    """Typographic quotes and the en dash as ASCII; the em dash stays."""
    return text.translate(_STANDARD)


def replaced(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """One replacement after another, each of all places."""
    for found, put in pairs:
        text = text.replace(found, put)
    return text


CLEAN: Mapping[str, Callable[[str], str]] = {
    "standard": standardised,
    "gigaword": lambda text: replaced(text, _GIGAWORD),
    "cnn_dm_source": lambda text: replaced(text, (("<S_SEP>", ""), *_CNN_DM)),
    "cnn_dm_target": lambda text: replaced(text, (("<S_SEP>", "[SEP]"), *_CNN_DM)),
    "blank": lambda text: replaced(text, _BLANK),
}


def clean_text(text: str, rules: str) -> str:
    """A text of a file as a task reads it. rules: of CLEAN; UserError for others."""
    return _rule(CLEAN, rules)(text)


def fix_text(text: str, rules: str) -> str:
    """A decoded text as it is compared or handed in. rules: of FIX; UserError for others."""
    return _rule(FIX, rules)(text)


def _rule(known: Mapping[str, Callable[[str], str]], name: str) -> Callable[[str], str]:
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close}?" if close else f"there are {', '.join(known)}"
        raise UserError(f"there are no rules {name!r} for a text; {hint}")
    return known[name]


@dataclass
class _Words:
    """A text's words while they are put together: those still to come, and those that are ready."""

    given: list[str]
    ready: list[str] = field(default_factory=list)
    place: int = 0  # in `given`

    def ahead(self, distance: int) -> str:
        """The word so many places on; "" behind the end."""
        return self.given[self.place + distance] if self.place + distance < len(self.given) else ""

    @property
    def last(self) -> str:
        return self.ready[-1] if self.ready else ""

    def append(self, word: str, taken: int = 1) -> None:
        """A new word, made of so many given ones."""
        self.ready.append(word)
        self.place += taken

    def join(self, text: str, taken: int = 1) -> None:
        """More of the last word."""
        self.ready[-1] += text
        self.place += taken


def _is_number(word: str) -> bool:
    return bool(word) and word.replace(",", "0").isdigit()


def _is_letter(word: str) -> bool:
    return len(word) == 1 and word.isalpha()


def _initials_end(words: _Words) -> int:
    """How many words from the full stop on belong to initials as U . S . do.

    A word behind the second stop is taken along where a letter and a stop follow it, as in the original.
    """
    end = 3
    while _is_letter(words.ahead(end + 1)) and words.ahead(end + 2) == ".":
        end += 2
    return end


def _as_newspapers(text: str) -> str:
    """Words that WordPiece took apart as CNN and the Daily Mail write them: paired quotes, n't, numbers, dashes."""
    words = _Words(text.split())
    opened = {'"': False, "'": False}
    behind_dash = False
    while words.place < len(words.given):
        word, after, begins_dash = words.ahead(0), words.ahead(1), False
        if word == "'" and words.last.endswith("n") and after == "t":
            words.ready[-1] = words.last[:-1]
            words.append("n't", 2)
        elif word == "'" and after in ("s", "d", "ll"):
            words.append(f"'{after}", 2)
        elif word in opened:
            opening, closing = ("``", "''") if word == '"' else ("`", "'")
            words.append(closing if opened[word] else opening)
            opened[word] = not opened[word]
        elif (word, after, words.ahead(2)) == (".", ".", "."):
            words.append("...", 3)
        elif word == "," and _is_number(words.last) and _is_number(after):
            words.join(f",{after}", 2)
        elif word == "." and words.last.isdigit() and after.isdigit():
            words.join(f".{after}", 2)
        elif word == "." and _is_letter(words.last) and _is_letter(after) and words.ahead(2) == ".":
            count = _initials_end(words)
            words.join("".join(words.given[words.place:words.place + count]), count)
        elif (word, after) == ("-", "-"):
            words.append("--", 2)
        elif (word == "-" and after and words.place and words.last not in string.punctuation
              and after[0] not in string.punctuation):
            words.join("-")
            begins_dash = True
        elif behind_dash and word[0] not in string.punctuation:
            words.join(word)
        else:
            words.append(word)
        behind_dash = begins_dash
    return " ".join(words.ready)


def _as_squad(text: str) -> str:
    """A WordPiece answer as it stands in an article: dashes and numbers joined, but for four digits behind a comma."""
    for pattern, put in _FIX_SQUAD:
        text = pattern.sub(put, text)
    words = _Words(text.split())
    while words.place < len(words.given):
        word, after = words.ahead(0), words.ahead(1)
        if (word in (",", ".", ":") and words.last[-1:].isdigit() and after[:1].isdigit()
                and not (word == "," and len(after) > 3)):
            words.join(word + after, 2)
        else:
            words.append(word)
    return " ".join(words.ready)


FIX: Mapping[str, Callable[[str], str]] = {
    "cnn_dm": _as_newspapers,
    "gigaword": lambda text: text.replace("[UNK]", "UNK"),
    "blank": lambda text: replaced(text, _FIX_BLANK),
    "squad": _as_squad,
}
