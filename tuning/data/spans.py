"""Blanks of pretraining: where they lie in a sample, and how a sample with its blanks is laid out.

    context   the tokens outside of the blanks, a mask for each blank; places 0, 1, 2, ..., block 0
    answers   sop and the tokens of a blank, blank after blank; all have the place of its mask; block 1, 2, 3, ...
    targets   the tokens of the blank and eop

All draws are made in the order of the GLM repository (Du et al. 2022), so that the same generator gives the same ids.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp, factorial
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import UserError
from tuning.data.sample import Row

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

LONGEST_BLOCK = 39  # tokens of a short blank
CONTEXT_RANGE = 3  # tokens on each side of a mask that may be read as dBLOCK

Span = tuple[int, int]  # where a blank begins, and where it has ended


@dataclass(frozen=True)
class Commands:
    """The ids that a strategy puts in, and where sentences end."""

    enc: int
    eos: int
    sop: int
    eop: int
    mask: int  # of a short blank
    sentence_mask: int
    text_mask: int  # of a long blank
    block: int | None  # dBLOCK: an answer's token that is not to be seen; None: the tokenizer has none
    ends: np.ndarray  # (v,) bool


def commands_of(tokenizer: Tokenizer, ends: np.ndarray, task_mask: bool) -> Commands:
    masks = ("[MASK]", "[sMASK]", "[gMASK]") if task_mask else ("[MASK]",) * 3
    ids = map(tokenizer.command, ("ENC", "eos", "sop", "eop", *masks))
    return Commands(*ids, block=tokenizer.commands.get("dBLOCK"), ends=ends)


@dataclass(frozen=True)
class Layout:
    """How samples are laid out, whichever blanks they have."""

    length: int  # tokens of a sample at most
    shuffles: bool = True  # the order of the answers
    counts_blocks: bool = True  # block positions 1, 2, 3, ...; without, 1 in the whole answer
    random_position: bool = False  # all places are moved by a random number
    block_mask: float = 0.0  # share of an answer's tokens that are read as dBLOCK
    context_mask: float = 0.0  # share of the sample's tokens, near its masks, that are read as dBLOCK


@cache
def block_weights(mean: int) -> tuple[float, ...]:
    """Of the lengths 1, 2, ..., LONGEST_BLOCK of a short blank: Poisson's distribution without its 0."""
    return tuple(mean**size * exp(-mean) / factorial(size) for size in range(1, LONGEST_BLOCK + 1))


def block_lengths(tokens: int, share: float, mean: int, draw: random.Random, one: bool = False) -> list[int]:
    """Lengths of short blanks over at least a share of the tokens, or of a single one."""
    lengths: list[int] = []
    while sum(lengths) < (1 if one else int(share * tokens)):
        lengths += draw.choices(range(1, LONGEST_BLOCK + 1), weights=block_weights(mean))
    return lengths


def placed(ids: Sequence[int], lengths: Sequence[int], share: float, commands: Commands,
           draw: random.Random) -> list[Span] | None:
    """Blanks of these lengths in the documents of a sample, none beside another; None where not all find a place.

    The shorter documents take lengths up to a share of theirs, the longest what is left.
    """
    lengths = list(lengths)
    draw.shuffle(lengths)
    draw.shuffle(lengths)  # twice, as the original
    spans: list[Span] = []
    documents = _documents(ids, commands)
    for number, (begin, size) in enumerate(documents):
        is_longest = number == len(documents) - 1
        room, gap = (size, 1) if is_longest else (int(size * share), 0)
        taken: list[int] = []
        while len(taken) < len(lengths) and sum(taken) + gap * len(taken) + lengths[len(taken)] <= room:
            taken.append(lengths[len(taken)])
        lengths = lengths[len(taken):]
        spans += _spread(taken, begin, size, draw) if taken else []
    return None if lengths else spans


def _documents(ids: Sequence[int], commands: Commands) -> list[Span]:
    """(begin, size) of the documents of a sample from the shortest to the longest; of equal ones the last is first."""
    found, end = [], len(ids)
    for before in (*(place for place in range(len(ids) - 1, -1, -1) if ids[place] == commands.eos), -1):
        begin = before + 1
        if begin < len(ids) and ids[begin] == commands.enc:
            begin += 1
        size = end - begin
        found.append((begin, size - 1 if end == len(ids) and size > 0 else size))  # a sample's last token stays
        end = before
    return sorted(found, key=lambda document: document[1])


def _spread(lengths: Sequence[int], begin: int, size: int, draw: random.Random) -> list[Span]:
    """The blanks in the order of their lengths, at least a token apart."""
    free = size - sum(lengths) - len(lengths) + 1
    places = sorted(draw.randrange(free + 1) for _ in lengths)
    spans = []
    for place, length in zip(places, lengths, strict=True):
        spans.append((begin + place, begin + place + length))
        begin += length + 1
    return spans


def sentences(ids: Sequence[int], commands: Commands) -> list[Span]:
    """The sentences of a sample: up to the end of one, or the end of the sample; what eos cuts off is none."""
    spans, begin = [], int(ids[0] == commands.enc)
    for place, token in enumerate(ids):
        if commands.ends[token]:
            if begin < place + 1:
                spans.append((begin, place + 1))
            begin = place + 1
        elif token == commands.eos:
            begin = place + 1
    return [*spans, (begin, len(ids))] if begin < len(ids) else spans


def chosen_sentences(ids: Sequence[int], share: float, commands: Commands, draw: random.Random) -> list[Span]:
    """Random sentences until they are a share of the tokens."""
    spans = sentences(ids, commands)
    draw.shuffle(spans)
    covered, count = 0, 0
    for begin, end in spans:
        covered, count = covered + end - begin, count + 1
        if covered >= int(share * len(ids)):
            break
    return spans[:count]


def blanked(ids: Sequence[int], spans: Sequence[Span], mask: int, layout: Layout, commands: Commands,
            draw: random.Random, blocks: random.Random, is_short: bool = True) -> Row:
    """A sample with blanks. blocks: draws which tokens of answers are dBLOCK. is_short: of short blanks, whose answers
    and surroundings may have dBLOCK. UserError for an answer that goes over the end of a document."""
    ids, hidden = list(ids), {place for begin, end in spans for place in range(begin + 1, end)}
    places, place = [], -1
    for number in range(len(ids)):
        place += number not in hidden
        places.append(place)
    if layout.random_position and place < layout.length - 1:
        offset = draw.randrange(layout.length - place)
        places = [each + offset for each in places]
    order = sorted(spans)
    if layout.shuffles:
        order = list(spans)
        draw.shuffle(order)
    read, wanted, at, inner = [], [], [], []  # of the answers
    for begin, end in order:
        span = ids[begin:end]
        seen = span
        if is_short and layout.block_mask > 0:
            seen = [commands.block if blocks.random() < layout.block_mask else token for token in span]
        read += [commands.sop, *seen]
        wanted += [*span, commands.eop]
        at += [places[begin]] * (len(span) + 1)
        inner += range(1, len(span) + 2) if layout.counts_blocks else [1] * (len(span) + 1)
    if commands.eos in wanted:
        raise UserError("an answer goes over the end of a document")
    context, context_places, last = [], [], 0
    for begin, end in sorted(spans):
        context += [*ids[last:begin], mask]
        context_places += places[last:begin + 1]
        last = end
    context, context_places = context + ids[last:], context_places + places[last:]
    sep, target = len(context), (*context, *wanted)
    if is_short and layout.context_mask > 0:
        near = _near_masks(sorted(spans), len(ids))
        for number in draw.sample(near, min(int(layout.context_mask * len(ids)), len(near))):
            context[number] = commands.block
    return Row((*context, *read), (*context_places, *at), (*[0] * sep, *inner), sep, target,
               (*[0] * sep, *[1] * len(read)))


def _near_masks(spans: Sequence[Span], size: int) -> list[int]:
    """Places of the context, masks and its two ends left out, that are near a mask."""
    found: set[int] = set()
    begin, last = 0, 0  # of a stretch of the context, and where it begins in the sample
    for start, end in (*spans, (size, size)):
        stop = begin + start - last
        if begin:
            found |= set(range(begin, min(stop, begin + CONTEXT_RANGE)))
        if start < size:
            found |= set(range(max(begin, stop - CONTEXT_RANGE), stop))
        begin, last = stop + 1, end
    return sorted(found)


def continued(ids: Sequence[int], loss_mask: Sequence[int], answer: int, layout: Layout, commands: Commands) -> Row:
    """A sample whose last `answer` tokens are the answer, with the documents' own loss mask and no eop."""
    cut = len(ids) - answer
    context = (*ids[:cut], commands.text_mask)
    blocks = range(1, answer + 1) if layout.counts_blocks else [1] * answer
    return Row((*context, commands.sop, *ids[cut:-1]), (*range(cut + 1), *[cut] * answer), (*[0] * (cut + 1), *blocks),
               cut + 1, (*context, *ids[cut:]), (*[0] * (cut + 1), *loss_mask[cut:]))
