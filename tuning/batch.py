"""Samples as one batch of tensors: rows that the model reads, and at which places what is asked of them.

A row's results do not depend on the others (tuning/packing.py says how samples share them).
Shapes: b rows, s sequence, n wanted places, t scored tokens, c choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluation.scorer import PADDING, segments_blocked
from glm.config import ModelConfig
from glm.inputs import position_ids
from runtime.errors import UserError
from tuning.data.sample import Sample
from tuning.packing import packed


@dataclass(frozen=True)
class Batch:
    samples: tuple[Sample, ...]
    tokens: Tensor  # (b, s) int64
    position_ids: Tensor  # (b, s) or (b, 2, s) int64, as the model takes them
    blocked: Tensor  # bool (b, s, s), True = must not attend
    prompts: Tensor  # (p,) int64 out of b * s: places of the continuous prompt's tokens
    prompt_numbers: Tensor  # (p,) which of the prompt's tokens stands there
    places: Tensor  # (n,) int64 out of b * s, increasing: where the model is asked
    owners: Tensor  # (t,) for each scored token the place, out of n
    targets: Tensor  # (t,) its id; with a classification head nothing that matters
    sequences: Tensor  # (t,) which sequence it is part of: of a choice, a piece of one, or the only one of a sample
    pieces: Tensor  # (q,) of each sequence the choice, numbered through the batch
    widths: tuple[int, ...]  # how many choices each sample has
    numbers: tuple[int, ...]  # of the rows, within the step (glm.dropout)


def batch_of(samples: Sequence[Sample], config: ModelConfig, device: torch.device | str = "cpu", pool: str = "cls",
             first: int = 0, width: int = 0) -> Batch:
    """width: least length of the rows. The other arguments are those of `packed`."""
    made = packed(samples, pool, first)
    rows, wanted, scored = made.rows, made.wanted, made.scored
    width = max([width, *(len(row.ids) for row in rows)])
    most = max((*(max(row.ids) for row in rows), *(target for _, target, _ in scored)))
    if most >= config.vocab_size:
        raise UserError(f"a sample has the id {most}, but the model's vocabulary has {config.vocab_size}: the "
                        "tokenizer is another model's")

    def padded(name: str, fill: int) -> Tensor:
        values = [getattr(row, name) for row in rows]
        return torch.tensor([each + [fill] * (width - len(each)) for each in values], device=device)

    def numbers_of(values) -> Tensor:
        return torch.tensor(list(values), dtype=torch.int64, device=device)

    prefix = numbers_of(row.sep for row in rows)
    blocked = segments_blocked(padded("segments", PADDING), prefix)
    for index, row in enumerate(rows):
        if row.visible:
            blocked[index] = True
            seen = [[mark == "1" for mark in line] for line in row.visible]
            blocked[index, :len(seen), :len(seen[0])] = ~torch.tensor(seen, device=device)
    order = sorted(wanted)  # by row and place
    rank = {wanted[key]: number for number, key in enumerate(order)}
    return Batch(
        tuple(samples), padded("ids", 0), position_ids(config, padded("places", 0), padded("blocks", 0)), blocked,
        numbers_of(index * width + place for index, row in enumerate(rows) for place in row.prompts),
        numbers_of(number for row in rows for number in range(len(row.prompts))),
        numbers_of(row * width + place for row, place in order), numbers_of(rank[owner] for owner, _, _ in scored),
        numbers_of(target for _, target, _ in scored), numbers_of(number for _, _, number in scored),
        numbers_of(made.pieces), tuple(made.widths), tuple(made.numbers))
