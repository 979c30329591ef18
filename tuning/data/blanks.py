"""Blanks in a text, as in filling Yahoo's answers and in extraction: all of a row's answers stand in one sequence.

The source has a [MASK] for each blank; behind it comes, blank by blank, sop and the answer, each at the position of its
mask. There is no ENC and no eos.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from glm.tokenizers.interface import Tokenizer
from tuning.data.sample import Row

MASK = "[MASK]"


def with_blanks(text: str, ratio: float, chance: random.Random) -> tuple[str, list[str]]:
    """A text whose drawn words are blanks, neighbouring ones a single blank, and what stands in them.

    Of n words int(n * ratio) are drawn without replacement.
    """
    words = text.split()
    drawn = set(chance.sample(range(len(words)), int(len(words) * ratio)))
    left, answers = [], []
    for place, word in enumerate(words):
        if place not in drawn:
            left.append(word)
        elif place - 1 in drawn:
            answers[-1] += f" {word}"
        else:
            left.append(MASK)
            answers.append(f" {word}")
    return "".join(f" {word}" for word in left), answers


def padded(ids: Sequence[int], length: int, fill: int) -> list[int]:
    """Cut at the right end, or filled up, to this length."""
    return [*ids[:length], *[fill] * (length - len(ids))]


def blanks_row(source: Sequence[int], answers: Sequence[Sequence[int]], length: int, tokenizer: Tokenizer,
               has_places: bool) -> Row:
    """A row of so many tokens. source: padded ids. answers: the ids of each blank, in order; one that was cut off with
    its mask is left out. has_places: the tokens of a blank count 1, 2, ...; without it all have 1.

    Raises ValueError where there are more masks than answers.
    """
    mask, sop, eop, pad = map(tokenizer.command, (MASK, "sop", "eop", "eos"))
    ids, places, blocks = list(source), list(range(len(source))), [0] * len(source)
    target, loss_mask = [0] * len(source), [0] * len(source)
    masks = [place for place, token in enumerate(source) if token == mask]
    if len(masks) > len(answers):
        raise ValueError(f"the source has {len(masks)} blanks, the target {len(answers)} answers")
    for place, answer in zip(masks, answers, strict=False):
        count = len(answer) + 1
        ids += [sop, *answer]
        target += [*answer, eop]
        loss_mask += [1] * count
        places += [place] * count
        blocks += range(1, count + 1) if has_places else [1] * count
    return Row(tuple(padded(ids, length, pad)), tuple(padded(places, length, 0)), tuple(padded(blocks, length, 0)),
               len(source), tuple(padded(target, length, pad)), tuple(padded(loss_mask, length, 0)))
