"""The objective of models in the manner of GLM-130B: a stretch of text becomes a context and the answers behind it.

Everything here is numpy over ids and mirrors how a prompt is laid out when blanks are filled (glm/inputs.py):

    [gMASK]   text[:prefix] [gMASK] | sop text[prefix:]
              positions 0, 1, 2, ... throughout
    [MASK]    text with a [MASK] for each span, eos | sop span | sop span ...
              each answer at the position of its mask

The context sees itself; an answer sees the context and its own left, so a span sees the spans shuffled before it. The
objective of the GLM repository's pretraining, with learned block positions, is in spans.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tuning.data.sample import Row

if TYPE_CHECKING:
    from glm.tokenizers.icetk import IcetkTokenizer

SPAN_LENGTH = 3  # mean of the Poisson distribution of [MASK] spans
MASKED_SHARE = 0.15  # share of the text's tokens under [MASK]
LINE_END = "<n>"
SENTENCE_ENDS = ("。", ".", "!", "?", ";")
SENTENCE_LENGTHS = (3, 64)  # tokens of a sentence that [sMASK] may stand for


@dataclass(frozen=True)
class Ids:
    """The ids that the objective puts in, and what it must know about the pieces of the vocabulary."""

    mask: int
    gmask: int
    smask: int
    sop: int
    eop: int
    eos: int
    blank: int  # the piece of a single blank, with which every encoded text begins unless its first piece includes one
    line_end: int
    bare: np.ndarray  # (vocab,) bool: a text that begins with this piece is encoded with a blank piece before it
    sentence_end: np.ndarray  # (vocab,) bool: a sentence or line ends with this piece


def ids_of(tokenizer: IcetkTokenizer) -> Ids:
    """The objective's view of a tokenizer whose num_image_tokens is 0."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.vocabulary_file))
    pieces = [model.id_to_piece(token) for token in range(model.get_piece_size())]
    added = tokenizer.num_tokens - len(pieces)  # commands, blanks and bytes: bare, and no end of a sentence
    bare = [not (piece.startswith("▁") or (piece[:1].isascii() and piece[:1].isalnum())) for piece in pieces]
    ends = [piece == LINE_END or piece.endswith(SENTENCE_ENDS) for piece in pieces]
    command = [tokenizer.command(name) for name in ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "eos")]
    return Ids(*command, blank=pieces.index("▁"), line_end=pieces.index(LINE_END),
               bare=np.array(bare + [True] * added), sentence_end=np.array(ends + [False] * added))


def as_text(tokens: np.ndarray, ids: Ids) -> np.ndarray:
    """The tokens as the tokenizer would give them for a text of their own: with a blank before a first bare piece."""
    if len(tokens) and ids.bare[tokens[0]]:
        return np.concatenate(([ids.blank], tokens))
    return tokens


def suffix_sample(text: np.ndarray, prefix: int, ends: bool, ids: Ids) -> Row:
    """[gMASK]: text[prefix:] is the answer; eop is learnt only where the document really ends (`ends`)."""
    context, answer = [*text[:prefix].tolist(), ids.gmask], [*text[prefix:].tolist(), *([ids.eop] if ends else [])]
    return _row(context, [(answer, range(len(context), len(context) + len(answer)))], ids.sop)


def span_sample(text: np.ndarray, spans: list[tuple[int, int]], order: np.ndarray, mask: int, ids: Ids) -> Row:
    """[MASK] or [sMASK] (`mask`): spans (start, length), ascending, at least a token apart; `order`: of their answers.

    The text between two masks is laid out as a text of its own, and eos closes the context unless a mask does: as for
    a prompt.
    """
    context: list[int] = []
    places, end = [], 0  # of the masks
    for start, count in spans:
        context += as_text(text[end:start], ids).tolist()
        places.append(len(context))
        context.append(mask)
        end = start + count
    if end < len(text):
        context += [*as_text(text[end:], ids).tolist(), ids.eos]
    answers = []
    for index in order:
        start, count = spans[index]
        answers.append(([*text[start:start + count].tolist(), ids.eop], [places[index]] * (count + 1)))
    return _row(context, answers, ids.sop)


def _row(context: Sequence[int], answers: Sequence[tuple[list[int], Sequence[int]]], sop: int) -> Row:
    """answers: the targets and their positions, one after another. Places inside of them count from 1."""
    sep, read, places, blocks, target = len(context), [], [], [], []
    for wanted, positions in answers:
        read += [sop, *wanted[:-1]]
        target += wanted
        places += positions
        blocks += range(1, len(wanted) + 1)
    nothing = (0,) * sep
    return Row((*context, *read), (*range(sep), *places), (*nothing, *blocks), sep, (*nothing, *target),
               (*nothing, *[1] * len(target)))


def poisson_spans(length: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """Spans of a Poisson length (1 at least) over about 15% of `length` tokens, no two of them adjacent."""
    count = max(1, round(MASKED_SHARE * length / SPAN_LENGTH))
    lengths = np.maximum(generator.poisson(SPAN_LENGTH, count), 1)
    while count > 1 and lengths.sum() + count > length:
        count -= 1
        lengths = lengths[:count]
    lengths[0] = min(lengths[0], max(length - 1, 1))
    # the kept tokens leave (kept + 1) gaps; distinct gaps keep the spans apart
    kept = length - int(lengths.sum())
    gaps = np.sort(generator.choice(kept + 1, size=count, replace=False))
    starts = gaps + np.concatenate(([0], np.cumsum(lengths)[:-1]))
    return list(zip(starts.tolist(), lengths.tolist(), strict=True))


def sentence_span(text: np.ndarray, ids: Ids, generator: np.random.Generator) -> tuple[int, int] | None:
    """One whole sentence of the text, its line end left out, or None where there is none to choose from."""
    ends = np.flatnonzero(ids.sentence_end[text]) + 1
    starts = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    shortest, longest = SENTENCE_LENGTHS
    ends = ends - (text[ends - 1] == ids.line_end)
    whole = [(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
             if shortest <= end - start <= longest]
    if len(whole) < 2:
        return None
    start, end = whole[generator.integers(len(whole))]
    return start, end - start
