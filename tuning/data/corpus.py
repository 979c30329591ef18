"""A prepared corpus, and rows of samples as a pure function of (seed, number of the row): there is no state to save.

The files of tools/prepare_corpus.py are laid behind each other on the interval [0, 1), each as wide as its share of the
training. Sample number k is cut at the place frac(k * golden ratio): such places cover the interval far more evenly
than random ones, so nothing is seen twice much before everything has been seen once. All further choices of a row come
from a counter-based generator keyed by (seed, row).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import UserError
from runtime.reading import read_json
from tuning.data.sample import Kind, Row, Sample
from tuning.data.stretches import Ids, as_text, poisson_spans, sentence_span, span_sample, suffix_sample

GOLDEN_RATIO = 0.6180339887498949
SAMPLES_PER_ROW = 64  # more than a row ever holds
SHORTEST_TEXT = 12  # tokens; a rest of a row shorter than this is left empty
SNAP = 64  # tokens: how far back the beginning of a sentence is looked for


@dataclass(frozen=True)
class Mixture:
    """Shares of the rows' samples; the rest is [gMASK]."""

    mask: float = 0.25  # [MASK]
    smask: float = 0.05  # [sMASK]


@dataclass(frozen=True)
class Corpus:
    streams: tuple[np.ndarray, ...]  # uint16 ids, every document followed by eos
    ends: tuple[np.ndarray, ...]  # int64 places of eos in each stream
    bounds: np.ndarray  # (files + 1,) ascending from 0 to 1: file i is [bounds[i], bounds[i + 1])


def read_index(folder: Path) -> dict[str, dict]:
    """corpus.json: what tools/prepare_corpus.py wrote about each file."""
    try:
        return read_json(folder / "corpus.json")
    except UserError as error:
        raise UserError(f"{error}; tools/prepare_corpus.py makes this file") from None


def open_corpus(folder: Path, eos: int, weights: dict[str, float], suffix: str = "",
                language: str | None = None) -> Corpus:
    """The files of a prepared corpus, of one language or of all; `suffix` ".heldout" opens the held-out part."""
    files = read_index(folder)
    unknown = set(weights) - set(files)
    if unknown:
        raise UserError(f"--weights names {sorted(unknown)[0]!r}; the corpus has {', '.join(files)}")
    names = [name for name, facts in files.items() if language in (None, facts["language"])]
    streams = [np.load(folder / f"{name}{suffix}.npy", mmap_mode="r") for name in names]
    sizes = np.array([len(stream) * weights.get(name, 1.0) for name, stream in zip(names, streams, strict=True)])
    if not sizes.sum():
        files = f"the files that begin with {language!r}" if language else "any file"
        raise UserError(f"{folder} has no {'held-out' if suffix else 'training'} text of {files}; "
                        "tools/prepare_corpus.py makes both")
    bounds = np.concatenate(([0.0], np.cumsum(sizes / sizes.sum())))
    return Corpus(tuple(streams), tuple(np.flatnonzero(stream == eos) for stream in streams), bounds)


def cut(corpus: Corpus, place: float, length: int, ids: Ids) -> tuple[np.ndarray, bool]:
    """Up to `length` tokens of the document at `place` of [0, 1), and whether they reach its end.

    A document that fits is taken whole; else the cut begins with the sentence that holds the place, if that is near.
    """
    file = int(np.searchsorted(corpus.bounds, place, side="right")) - 1
    file = min(file, len(corpus.streams) - 1)
    stream, ends = corpus.streams[file], corpus.ends[file]
    share = (place - corpus.bounds[file]) / (corpus.bounds[file + 1] - corpus.bounds[file])
    index = min(int(share * len(stream)), len(stream) - 1)
    document = int(np.searchsorted(ends, index))
    first, end = (int(ends[document - 1]) + 1 if document else 0), int(ends[document])
    length -= 1  # room for the blank before a first bare piece
    if end - first <= length:
        start = first
    else:
        near = np.flatnonzero(ids.sentence_end[stream[max(first, index - SNAP) : index]])
        start = max(first, index - SNAP) + int(near[-1]) + 1 if len(near) else max(first, index - SNAP)
        if end - start < SHORTEST_TEXT:  # only the last words are left: take the end of the document instead
            start = max(first, end - length)
    text = as_text(np.asarray(stream[start : min(start + length, end)], dtype=np.int64), ids)
    return text, start + length >= end


def draw_sample(corpus: Corpus, place: float, room: int, mixture: Mixture, ids: Ids,
                generator: np.random.Generator) -> Row | None:
    """One sample of at most `room` tokens, or None where the cut has too little text."""
    kind = generator.random()
    if kind < mixture.mask + mixture.smask:
        length = int(generator.integers(SHORTEST_TEXT, max(int(room / 1.3) - 3, SHORTEST_TEXT + 1)))
        text, _ = cut(corpus, place, length, ids)
        if len(text) < 4:
            return None
        span = sentence_span(text, ids, generator) if kind >= mixture.mask else None
        if span is not None:
            return span_sample(text, [span], np.zeros(1, dtype=np.int64), ids.smask, ids)
        spans = poisson_spans(len(text), generator)
        return span_sample(text, spans, generator.permutation(len(spans)), ids.mask, ids)
    length = room - 2
    if generator.random() < 0.5:
        length = int(generator.integers(SHORTEST_TEXT, max(length, SHORTEST_TEXT) + 1))
    text, ends = cut(corpus, place, length, ids)
    if len(text) < 2:
        return None
    # the answer is 50-100% of the text; half of the contexts are as short as what people type
    prefix = int(generator.integers(len(text) // 2 + 1))
    if generator.random() < 0.5:
        prefix = min(prefix, int(generator.integers(17)))
    return suffix_sample(text, prefix, ends, ids)


def draw_row(corpus: Corpus, seed: int, row: int, width: int, mixture: Mixture, ids: Ids) -> list[Row]:
    """The samples that together fill row number `row` of the whole training."""
    generator = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, row]))
    samples, room, misses = [], width, 0
    while room > SHORTEST_TEXT + 8 and misses < 4:
        number = row * SAMPLES_PER_ROW + len(samples) + misses
        sample = draw_sample(corpus, (number * GOLDEN_RATIO) % 1.0, room, mixture, ids, generator)
        if sample is None or len(sample.input_ids) > room:
            misses += 1
            continue
        samples.append(sample)
        room -= len(sample.input_ids)
    return samples


def draw_samples(corpus: Corpus, seed: int, row: int, width: int, mixture: Mixture, ids: Ids) -> list[Sample]:
    """The same as samples that know their row."""
    return [Sample(f"{row}-{number}", Kind.LANGUAGE, (each,), meta={"row": row})
            for number, each in enumerate(draw_row(corpus, seed, row, width, mixture, ids))]
