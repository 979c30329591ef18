"""Documents of pretraining, packed into samples: sample number i is a function of i alone.

A document is a prompt, which is not learnt, a text and the end of a text. A sample is [ENC] and a stretch of a long
document that begins and ends with a sentence where it can, or [ENC] document [ENC] document ... up to the length.
All draws are made with the generators, and in the order, of the GLM repository, so that the same numbers give the same
ids.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import UserError, shown
from runtime.reading import read_text
from tuning.data.rows import json_lines

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

SENTENCE_ENDS = ".?!;:。？！；…\n"  # a piece that contains one ends a sentence
SEED_WORDS = 16
SPLIT_SEED = 1234  # of which documents are for training


@dataclass(frozen=True)
class Packed:
    """One sample of s tokens."""

    ids: tuple[int, ...]
    loss_mask: tuple[int, ...]  # 0 on [ENC] and prompts


@dataclass(frozen=True)
class Documents:
    """Tokenised documents of a file, in its order."""

    ids: tuple[np.ndarray, ...]  # int32; prompt and text, without eos
    prompts: tuple[int, ...]  # how many tokens of each are the prompt's
    bounds: tuple[int, ...]  # lengths, added up
    ends: np.ndarray  # (v,) bool: a sentence ends with this token
    enc: int
    eos: int

    def __len__(self) -> int:
        return len(self.ids)


def read_documents(path: Path | None, tokenizer: Tokenizer) -> Documents:
    """JSON lines of `text` and, where there is one, `prompt`. UserError naming the line of a fault."""
    if path is None:
        raise UserError("pretraining needs --train-data FILE: JSON lines of prompt and text")
    ids, prompts = [], []
    for number, row in json_lines(read_text(path), path):
        prompt, text = _texts(row, f"{path}:{number}")
        before = tokenizer.encode(prompt, special_tokens=True)
        ids.append(np.array(before + tokenizer.encode(text, special_tokens=True), dtype=np.int32))
        prompts.append(len(before))
    bounds = tuple(accumulate(map(len, ids)))
    if not bounds or not bounds[-1]:
        raise UserError(f"{path}: holds no text; a document is a JSON object of prompt and text on a line of its own")
    return Documents(tuple(ids), tuple(prompts), bounds, sentence_ends(tokenizer), tokenizer.command("ENC"),
                     tokenizer.command("eos"))


def divided(documents: Documents, shares: Sequence[float]) -> list[Documents | None]:
    """Parts of these shares (of 1) in a fixed random order, as the GLM repository draws it; None for one of 0.

    A part whose share is less than a document gets one, as there; but none that another part has, so that in a very
    small corpus the later ones may be None, too.
    """
    order, start, rest = np.arange(len(documents)), 0, 0.0
    np.random.RandomState(SPLIT_SEED).shuffle(order)
    parts: list[Documents | None] = []
    for share in shares:
        rest += len(documents) * share % 1
        size = int(int(len(documents) * share) + rest) if share else 0
        numbers = order[start:start + max(size, 1)] if share else ()
        start, rest = start + len(numbers), rest % 1
        ids, prompts = (tuple(values[number] for number in numbers) for values in (documents.ids, documents.prompts))
        bounds = tuple(accumulate(map(len, ids)))
        parts.append(replace(documents, ids=ids, prompts=prompts, bounds=bounds) if bounds and bounds[-1] else None)
    return parts


def _texts(row: Any, where: str) -> tuple[str, str]:
    """Prompt and text of a line."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: a document is {shown(row)}; it must be an object of prompt and text")
    found = row.get("prompt", ""), row.get("text")
    for name, text in zip(("prompt", "text"), found, strict=True):
        if not isinstance(text, str):
            raise UserError(f"{where}: {name} is {shown(text)}; it must be a string")
    return found


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """(v,) bool: of each token, whether its piece, as the vocabulary spells it, contains the end of a sentence."""
    vocabulary = tokenizer.vocabulary
    ends = np.zeros(tokenizer.num_tokens, dtype=bool)
    commands = set(tokenizer.commands.values())
    ends[:vocabulary.size] = [token not in commands and any(sign in vocabulary.piece(token) for sign in SENTENCE_ENDS)
                              for token in range(vocabulary.size)]
    return ends


def packed(documents: Documents, index: int, length: int, one_document: bool = False,
           non_sentence_start: float = 0.0) -> Packed:
    """Sample number `index` of at most `length` tokens.

    one_document: it holds one document, however short. non_sentence_start: share of the samples of long documents that
    begin anywhere.
    """
    draw = generator_of(index)
    ids, mask = _drawn(documents, draw)
    if len(ids) >= length:
        start = _start(documents, ids, length, non_sentence_start, draw)
        return Packed(*_cut(documents, [documents.enc, *ids[start:]], [0, *mask[start:]], length))
    ids, mask = [documents.enc, *ids], [0, *mask]
    while not one_document and (room := length - len(ids)) > 0:
        more, more_mask = _drawn(documents, draw)
        more, more_mask = [documents.enc, *more], [0, *more_mask]
        is_last = len(more) >= room
        more, more_mask = _cut(documents, more, more_mask, room)
        ids, mask = [*ids, *more], [*mask, *more_mask]
        if is_last:
            break
    return Packed(tuple(ids), tuple(mask))


def generator_of(number: int) -> np.random.RandomState:
    """What the GLM repository draws sample number `number` with."""
    words = random.Random(number)
    return np.random.RandomState([words.randint(0, 2**32 - 1) for _ in range(SEED_WORDS)])


def _drawn(documents: Documents, draw: np.random.RandomState) -> tuple[list[int], list[int]]:
    """A document with its end, likelier the longer it is, and where it is learnt."""
    number = bisect_right(documents.bounds, draw.randint(documents.bounds[-1]))
    ids, prompt = documents.ids[number].tolist(), documents.prompts[number]
    return [*ids, documents.eos], [0] * prompt + [1] * (len(ids) - prompt + 1)


def _start(documents: Documents, ids: Sequence[int], length: int, anywhere: float, draw: np.random.RandomState) -> int:
    """Where a stretch of a long document begins: behind the end of a sentence, if one is near."""
    start = int(draw.randint(len(ids) - length + 1))
    if draw.random_sample() <= anywhere:
        return start
    step = -1 if draw.random_sample() < 0.5 else 1
    for _ in range(length // 2):
        if not (start > 0 if step < 0 else start < len(ids)) or documents.ends[ids[start - 1]]:
            break
        start += step
    return start


def _cut(documents: Documents, ids: list[int], mask: list[int], length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The beginning, of at most `length` tokens; of a longer text it ends with a sentence, if that leaves enough."""
    kept = min(len(ids), length)
    if kept < len(ids):
        while kept > 1 and not documents.ends[ids[kept - 1]]:
            kept -= 1
        if kept < length // 2:
            kept = length
    return tuple(ids[:kept]), tuple(mask[:kept])
