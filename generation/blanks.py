"""A prompt's blanks: its masks, filling them as a state machine, and the answer's text. No model here.

[MASK] stands for a few words, [sMASK] for a sentence, [gMASK] for a text up to its end. A prompt is cut once into the
stretches between the blanks to fill. From then on blanks are known by their place, never searched for, so a mask token
that the model generates is not taken for another blank. Blanks are filled from left to right, each with the ones before
filled and the ones behind still open.

The model reads and writes pieces of words, normalised, each stretch by itself. The answer keeps the prompt's letters,
spaces and line ends: the ids of a blank are decoded, and joined to the text before them by the space that their first
piece begins with, where one belongs. Nothing is put behind them.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from generation.params import BeamParams, SamplingParams
from generation.texts import cut
from glm.prompt_form import DEFAULT, MASKS, PromptForm
from runtime.errors import UserError

MASK_PATTERN = re.compile(r"\[[sg]?MASK\]")

# A word between brackets, with a number perhaps; not the text of a link, [word](address).
_BRACKETED = re.compile(r"(?:[\[【] ?|<\|?)([A-Za-z_-]{1,16})[ _-]?[0-9]*(?: ?[\]】]|\|?>)(?!\()")
# as input methods for Chinese and Japanese type ASCII in full width
_NARROW = {ord(character) + 0xFEE0: character for character in f"{string.ascii_letters}{string.digits}[]<>|_-"}
_MEANT = re.compile("(?i:[sg]?[_-]?mask|blank|extra_id)|[A-Za-z]{0,2}[_-]?(?:MASK|MAKS|MSAK|AMSK|BLANK)(?:S|ED)?")
_NAME = re.compile(r"[A-Za-z0-9_)\]]")  # before a bracket it says that this is a program: mask of a[mask] is an index

# Scripts without blanks between words: Chinese and Japanese, with their punctuation and the wide forms of others.
_UNSPACED = re.compile("[\u2e80-\u312f\u3190-\u9fff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]")
_CLOSING, _OPENING = ("Pe", "Pf"), ("Ps", "Pi")  # brackets and quotes, as Unicode divides them


def left_over(text: str, form: PromptForm = DEFAULT) -> list[str]:
    """The masks of other kinds than the one that is filled: they stay in the answer as they are. None of a text that
    the family refuses."""
    if form.refused(text):
        return []
    return [mask for mask in MASK_PATTERN.findall(text) if mask != form.kind_of(text)]


def note_on_left_over(text: str, form: PromptForm = DEFAULT) -> str | None:
    """What a user is told once of a text with masks of several kinds."""
    masks = left_over(text, form)
    return (f"where a prompt has masks of several kinds, one kind is filled: here {form.kind_of(text)}; {masks[0]} "
            "stays as it is") if masks else None


def meant_for_a_mask(text: str) -> tuple[str, str] | None:
    """The first thing that is no mask but was probably meant for one, and for which: ("<mask>", "[MASK]")."""
    for found in _BRACKETED.finditer(text.translate(_NARROW)):
        word, written = found[1].rstrip("_-"), text[found.start():found.end()]
        if written in MASKS or not _MEANT.fullmatch(word) or f"</{word}" in text:
            continue
        if found.start() and _NAME.match(text[found.start() - 1]) and not word.isupper():
            continue
        letters = word.replace("_", "").replace("-", "").lower()
        return written, {"smask": "[sMASK]", "gmask": "[gMASK]"}.get(letters, "[MASK]")
    return None


def fault(text: str) -> str | None:
    """Why a text cannot be a prompt of a user: it is empty, or has a mask that is none. None: nothing is wrong."""
    if not text.strip():
        return "the prompt is empty"
    if (found := meant_for_a_mask(text)) is not None:
        return f"unknown mask {found[0]}, did you mean {found[1]}?; allowed: {', '.join(MASKS)}"
    return None


@dataclass(frozen=True)
class Prompt:
    """A text cut at the blanks to fill: stretches[0], blank, stretches[1], blank ... stretches[-1], as ids."""

    text: str
    kind: str  # the mask that is filled; masks of another kind are part of the stretches
    mask: int
    sop: int
    stretches: tuple[tuple[int, ...], ...]  # with the family's own commands around the text
    typed: tuple[str, ...]  # the same stretches as texts
    advances: bool = False  # positions of the answer count on; else all are the mask's
    is_causal: bool = False  # there is no mask: the first stretch is read from left to right and goes on

    @property
    def num_blanks(self) -> int:
        return len(self.stretches) - 1

    def input_ids(self, filled: Sequence[Sequence[int]] = ()) -> list[int]:
        """The sequence with the first blanks filled, the others still masks, and sop."""
        if self.is_causal:
            return list(self.stretches[0])
        blanks = [*filled, *[[self.mask]] * (self.num_blanks - len(filled)), [self.sop]]
        return [token for pair in zip(self.stretches, blanks, strict=True) for part in pair for token in part]

    def mask_position(self, filled: Sequence[Sequence[int]]) -> int:
        """Place of the first blank that is still a mask."""
        return sum(map(len, self.stretches[:len(filled) + 1])) + sum(map(len, filled))


@dataclass(frozen=True)
class Beam:
    """One answer."""

    text: str  # the prompt as it was typed with its blanks filled
    blanks: list[str]  # what stands in them, see `filled`
    ids: list[int]  # the last blank's whole sequence with context, sop and end token
    score: float | None  # see generation.beam; None when sampled
    blank_ids: list[list[int]] = field(repr=False, default_factory=list)  # without what stop texts cut off
    filled: list[Filled] = field(repr=False, default_factory=list)  # the blanks, as `joined` puts them into the text


@dataclass(frozen=True)
class Result:
    """What became of one prompt."""

    prompt: str
    text: str = ""  # of the best beam, as blanks is
    blanks: list[str] = field(default_factory=list)
    input_ids: list[int] = field(default_factory=list, repr=False)  # as the model first saw it, sop included
    finish_reason: str = "stop"  # every blank ended by itself; "length": one was cut off; "error": there is no answer
    beams: list[Beam] = field(default_factory=list)  # best first; with several blanks alternatives of the last one
    error: str | None = None  # one clear line


def split(text: str, tokenizer, form: PromptForm = DEFAULT) -> Prompt:
    """Cut a text at the masks of the kind to fill; every stretch between any masks is tokenised by itself.

    Raises UserError for a mask that the family does not fill, or that its vocabulary lacks.
    """
    form = form.within(tokenizer.commands)
    if refused := form.refused(text):
        known = "it writes on behind a text" if form.is_causal else f"it fills {', '.join(form.masks)}"
        raise UserError(f"this model fills no {refused}; {known}")
    begin = [tokenizer.command(name) for name in form.begin]
    if form.is_causal:
        return Prompt(text, "", 0, 0, ((*begin, *tokenizer.encode(text)), ()), (text, ""), True, True)
    kind, masks = form.kind_of(text), MASK_PATTERN.findall(text)
    pieces = MASK_PATTERN.split(text)
    if not masks:
        pieces, masks = [text, ""], [kind]
    stretches, typed = [begin], [""]
    for piece, ids, mask in zip(pieces, tokenizer.encode_stretches(pieces), [*masks, None], strict=True):
        stretches[-1] += ids
        typed[-1] += piece
        if mask == kind:
            stretches.append([])
            typed.append("")
        elif mask is not None:
            stretches[-1].append(tokenizer.command(mask))
            typed[-1] += mask
    if form.end and not (pieces[-1] == "" and masks[-1] in form.no_end_after):
        stretches[-1].append(tokenizer.command(form.end))
    return Prompt(text, kind, tokenizer.command(kind), tokenizer.command("sop"), tuple(map(tuple, stretches)),
                  tuple(typed), kind in form.advancing)


class Wanted(NamedTuple):
    """What is to be generated next for a prompt."""

    context: list[int]  # ends with sop
    limit: int  # tokens, end token included
    shared_position: int | None  # of all of them; None: positions count up
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Filling:
    """A prompt while it is being filled: ask ``wanted``, generate, ``take`` the answers, until there is a Result."""

    prompt: Prompt
    params: SamplingParams | BeamParams
    seed: int
    most: int  # places that the model has (max_sequence_length)
    ends: tuple[int, ...]  # tokens that end a blank
    never: tuple[int, ...] = ()  # tokens that are not generated
    stops: tuple[str, ...] = ()  # texts of which the first to come ends a blank; of beams it cuts off the rest
    done: tuple[tuple[int, ...], ...] = ()  # blanks that are filled, as later ones see them
    filled: tuple[Filled, ...] = ()  # the same as texts
    was_cut_off: bool = False

    def wanted(self) -> Wanted:
        """Raises UserError where there is no room, which can only be at the first blank: a filled one leaves at least
        the place of its mask."""
        context = self.prompt.input_ids(self.done)
        shared = None if self.prompt.advances else self.prompt.mask_position(self.done)
        return Wanted(context, self._limit(len(context)), shared,
                      (self.seed, len(self.done), *self.prompt.input_ids()))

    def take(self, answers: Sequence[tuple[Sequence[int], float | None]], tokenizer) -> Filling | Result:
        """What was generated for the blank that was wanted, best first, with scores."""
        best = answers[0][0]
        is_cut_off = best[-1] not in self.ends and not self.is_stopped(best, tokenizer)
        ids, blank = self._blank(best, tokenizer)
        after = replace(self, done=(*self.done, ids), filled=(*self.filled, blank),
                        was_cut_off=self.was_cut_off or is_cut_off)
        return after if len(after.done) < self.prompt.num_blanks else after._result(answers, tokenizer)

    def is_stopped(self, ids: Sequence[int], tokenizer) -> bool:
        """Whether a stop text stands in what was generated for a blank."""
        if not self.stops:
            return False
        text = filled(self._without_end(ids), tokenizer).text
        return cut(text, self.stops) != text

    def failed(self, error: str) -> Result:
        return Result(self.prompt.text, finish_reason="error", error=error)

    def _limit(self, length: int) -> int:
        if length - 1 > self.most:
            raise UserError(f"text too long: the prompt has {length - 1} tokens, the model takes {self.most} at most "
                            f"(max_sequence_length)")
        total = min(self.params.out_seq_length or self.most, self.most)
        if length >= total:
            what = "max_sequence_length" if total == self.most else "out_seq_length"
            mend = "shorten the prompt" if total == self.most else (f"raise it (to {self.most} at most) or shorten the "
                                                                    "prompt")
            raise UserError(f"no room for an answer: prompt and sop have {length} tokens, {what} is {total}; {mend}")
        return min(total - length, self.params.max_gen_length or total)

    def _result(self, answers: Sequence[tuple[Sequence[int], float | None]], tokenizer) -> Result:
        before, beams = self.done[:-1], []
        context = self.prompt.input_ids(before)
        for ids, score in answers:
            last_ids, last = self._blank(ids, tokenizer)
            blanks = [*self.filled[:-1], last]
            beams.append(Beam(joined(self.prompt.typed, blanks), [blank.text for blank in blanks], [*context, *ids],
                              score, [*map(list, before), list(last_ids)], blanks))
        return Result(self.prompt.text, beams[0].text, beams[0].blanks, self.prompt.input_ids(),
                      "length" if self.was_cut_off else "stop", beams)

    def _blank(self, ids: Sequence[int], tokenizer) -> tuple[tuple[int, ...], Filled]:
        """A blank's ids without the end token and without those that reach beyond the first stop text; its text up to
        there."""
        ids = self._without_end(ids)
        blank = filled(ids, tokenizer)
        if (text := cut(blank.text, self.stops)) != blank.text:
            while ids and len(filled(ids, tokenizer).text) > len(text):
                ids = ids[:-1]
        return ids, replace(blank, text=text)

    def _without_end(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(ids[:-1] if ids and ids[-1] in self.ends else ids)


@dataclass(frozen=True)
class Filled:
    """What stands in one blank."""

    text: str  # without the blank before its first word
    is_new_word: bool  # whether it has one


def filled(ids: Sequence[int], tokenizer) -> Filled:
    """The text of one blank. ids: without their end token.

    Commands that the model generated are shown by name. A trailing blank, whose word did not come, is left out.
    """
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
