"""GLM's pre-training objective: a stretch of text becomes a context (part A) and the answers behind it (part B).

Everything here is numpy over ids and mirrors how a prompt is laid out when blanks are filled (glm/inputs.py):

    [gMASK]   text[:prefix] [gMASK] | sop text[prefix:]
              positions 0, 1, 2, ... throughout
    [MASK]    text with a [MASK] for each span, eos | sop span | sop span ...
              each answer at the position of its mask

Part A sees all of part A; part B sees part A and its own left, so a span sees the spans shuffled before it.
A target of -1 means no loss at that place.
"""

from dataclasses import dataclass

import numpy as np

from glm.inputs import row_positions

SPAN_LENGTH = 3  # mean of the Poisson distribution of [MASK] spans
MASKED_SHARE = 0.15  # share of the text's tokens under [MASK]
NO_TARGET = -1
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


@dataclass(frozen=True)
class Sample:
    """One prompt with its answers. All arrays (length,) int64; `context` is the length of part A."""

    tokens: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    context: int


def ids_of(tokenizer) -> Ids:
    """The objective's view of a glm.tokenizers.icetk.IcetkTokenizer whose num_image_tokens is 0."""
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


def suffix_sample(text: np.ndarray, prefix: int, ends: bool, ids: Ids) -> Sample:
    """[gMASK]: text[prefix:] is the answer; eop is learnt only where the document really ends (`ends`)."""
    context = np.concatenate((text[:prefix], [ids.gmask]))
    answer = np.concatenate((text[prefix:], [ids.eop])) if ends else text[prefix:]
    tokens = np.concatenate((context, [ids.sop], answer[:-1]))
    targets = np.concatenate((np.full(len(context), NO_TARGET), answer))
    positions, _ = row_positions(len(context), [(len(context), 1, len(answer))])
    return Sample(tokens, np.array(positions), targets, len(context))


def span_sample(text: np.ndarray, spans: list[tuple[int, int]], order: np.ndarray, mask: int, ids: Ids) -> Sample:
    """[MASK] or [sMASK] (`mask`): spans (start, length), ascending, at least a token apart; `order`: theirs in part B.

    The text between two masks is laid out as a text of its own, and eos closes part A unless a mask does: as for a
    prompt.
    """
    context: list[np.ndarray] = []
    length, end = 0, 0
    mask_positions = []
    for start, count in spans:
        piece = as_text(text[end:start], ids)
        context += [piece, np.array([mask])]
        mask_positions.append(length + len(piece))
        length += len(piece) + 1
        end = start + count
    if end < len(text):
        context += [as_text(text[end:], ids), np.array([ids.eos])]
    part_a = np.concatenate(context)
    tokens, blanks, targets = [part_a], [], [np.full(len(part_a), NO_TARGET)]
    for index in order:
        start, count = spans[index]
        span = text[start : start + count]
        tokens += [np.array([ids.sop]), span]
        targets += [span, np.array([ids.eop])]
        blanks.append((mask_positions[index], 0, count + 1))
    positions, _ = row_positions(len(part_a), blanks)
    return Sample(np.concatenate(tokens), np.array(positions), np.concatenate(targets), len(part_a))


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
