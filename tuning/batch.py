"""Samples as one batch of tensors: rows that the model reads, and at which places what is asked of them.

The choices of a sample that have the same context share it: [context | choice | choice ...] is one row, in which a
choice sees the context and itself. A row's results do not depend on the others.
Shapes: b rows, s sequence, n wanted places, t scored tokens, c choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from glm.config import ModelConfig
from glm.inputs import position_ids
from runtime.errors import UserError
from tuning.data.sample import Kind, Row, Sample

PADDING = -1  # segment of what lies behind a row's end


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


@dataclass
class _Packed:
    """A row in the making."""

    ids: list[int]
    places: list[int]
    blocks: list[int]
    segments: list[int]  # 0 for the context, 1, 2, ... for what stands behind it
    sep: int
    visible: tuple[str, ...]
    prompts: tuple[int, ...]


def batch_of(samples: Sequence[Sample], config: ModelConfig, device: torch.device | str = "cpu", pool: str = "cls",
             first: int = 0, width: int = 0) -> Batch:
    """pool: the place that a classification head reads: "cls", "start" (behind the end) or "pad" (the end).
    first: number of the first sample within its step. width: least length of the rows."""
    rows: list[_Packed] = []
    numbers: list[int] = []
    wanted: dict[tuple[int, int], int] = {}  # (row, place in it) -> number, in order of coming
    scored: list[tuple[int, int, int]] = []  # (wanted, target, sequence)
    pieces: list[int] = []
    widths: list[int] = []

    def ask(row: int, place: int, target: int) -> None:
        scored.append((wanted.setdefault((row, place), len(wanted)), target, len(pieces)))

    for place, sample in enumerate(samples):
        choices, before = sum(widths), len(rows)
        if sample.kind is Kind.VERBALIZER:
            row = sample.rows[0]
            rows.append(_begun(row, len(row.input_ids)))
            for number, token in enumerate(sample.verbalizer_ids):
                ask(before, row.sep, token)
                pieces.append(choices + number)
            widths.append(len(sample.verbalizer_ids))
        else:
            for number, row in enumerate(sample.rows):
                index, begin = (_joined(rows, before, row) if sample.kind is Kind.CHOICES
                                else (_alone(rows, row, pool if sample.kind is Kind.HEAD else None), 0))
                if sample.kind is Kind.HEAD:
                    ask(index, {"cls": 0, "start": row.sep, "pad": row.sep - 1}[pool], 0)
                else:
                    for at, (target, counts) in enumerate(zip(row.target, row.loss_mask, strict=True)):
                        if counts:
                            ask(index, at if at < row.sep or not begin else begin + at - row.sep, target)
                pieces.append(choices + (sample.segment_id[number] if sample.segment_id else number))
            widths.append(len(set(sample.segment_id)) or len(sample.rows))
        numbers += [(first + place) * 4096 + number for number in range(len(rows) - before)]

    return _tensors(samples, rows, wanted, scored, pieces, widths, numbers, config, device, width)


def _begun(row: Row, end: int) -> _Packed:
    segments = [0] * row.sep + [1] * (end - row.sep)
    return _Packed(list(row.input_ids[:end]), list(row.places[:end]), list(row.blocks[:end]), segments[:end], row.sep,
                   row.visible, row.prompt_positions)


def _alone(rows: list[_Packed], row: Row, pool: str | None) -> int:
    made = _begun(row, len(row.input_ids))
    if pool == "start" and len(made.ids) == row.sep:  # a full sample has a place behind its end, too
        made.ids.append(made.ids[-1])
        made.places.append(0)
        made.blocks.append(0)
        made.segments.append(1)
    rows.append(made)
    return len(rows) - 1


def _joined(rows: list[_Packed], begin: int, row: Row) -> tuple[int, int]:
    """The row that this choice is put into, of those from `begin` on, and where it begins there: in the first one with
    the same context."""
    context = (list(row.input_ids[:row.sep]), list(row.places[:row.sep]), list(row.blocks[:row.sep]))
    for index in range(begin, len(rows)):
        made = rows[index]
        if (made.sep == row.sep and made.prompts == row.prompt_positions and not row.visible
                and (made.ids[:row.sep], made.places[:row.sep], made.blocks[:row.sep]) == context):
            start = len(made.ids)
            made.segments += [made.segments[-1] + 1] * (len(row.input_ids) - row.sep)
            made.ids += row.input_ids[row.sep:]
            made.places += row.places[row.sep:]
            made.blocks += row.blocks[row.sep:]
            return index, start
    rows.append(_begun(row, len(row.input_ids)))
    return len(rows) - 1, row.sep


def _tensors(samples, rows, wanted, scored, pieces, widths, numbers, config, device, width) -> Batch:
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
    blocked = blocked_of(padded("segments", PADDING), prefix)
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
        numbers_of(pieces), tuple(widths), tuple(numbers))


def blocked_of(segments: Tensor, prefix: Tensor) -> Tensor:
    """The mask of rows of a context and choices behind it, bool (b, s, s), True = must not attend.

    segments (b, s): 0 before `prefix` (b,), which all see; 1, 2, ... choices, each of which sees what is left of it in
    the context and in itself; PADDING, which sees itself at most, and which nothing sees.
    """
    s = segments.shape[1]
    at = torch.arange(s, device=segments.device)
    future = at[None, :] > at[:, None]
    in_context = (at[None, :] < prefix[:, None])[:, None, :]
    same = segments[:, None, :] == segments[:, :, None]
    return ~(in_context | (same & ~future))
