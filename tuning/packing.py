"""How samples lie in the rows that the model reads, and how large that makes a batch; without torch.

The choices of a sample that have the same context share it: [context | choice | choice ...] is one row, in which a
choice sees the context and itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, TypeVar

from tuning.data.sample import Kind, Row, Sample

Value = TypeVar("Value")


@dataclass
class PackedRow:
    """A row in the making."""

    ids: list[int]
    places: list[int]
    blocks: list[int]
    segments: list[int]  # 0 for the context, 1, 2, ... for what stands behind it
    sep: int
    visible: tuple[str, ...]
    prompts: tuple[int, ...]


@dataclass
class Packing:
    """Rows, and what is asked of the model at their places."""

    rows: list[PackedRow] = field(default_factory=list)
    wanted: dict[tuple[int, int], int] = field(default_factory=dict)  # (row, place in it) -> number, in order of coming
    scored: list[tuple[int, int, int]] = field(default_factory=list)  # (wanted, target, sequence)
    pieces: list[int] = field(default_factory=list)  # of each sequence the choice, numbered through the batch
    widths: list[int] = field(default_factory=list)  # how many choices each sample has
    numbers: list[int] = field(default_factory=list)  # of the rows, within the step (glm.dropout)

    def ask(self, row: int, place: int, target: int) -> None:
        number = self.wanted.setdefault((row, place), len(self.wanted))
        self.scored.append((number, target, len(self.pieces)))


class Size(NamedTuple):
    """Of a batch."""

    rows: int
    width: int  # places of a row
    wanted: int  # places that the model is asked at

    @property
    def tokens(self) -> int:
        return self.rows * self.width


def packed(samples: Sequence[Sample], pool: str = "cls", first: int = 0) -> Packing:
    """pool: the place that a classification head reads: "cls", "start" (behind the end) or "pad" (the end).
    first: number of the first sample within its step."""
    made = Packing()
    rows, pieces = made.rows, made.pieces
    for place, sample in enumerate(samples):
        choices, before = sum(made.widths), len(rows)
        if sample.kind is Kind.VERBALIZER:
            row = sample.rows[0]
            rows.append(_begun(row, len(row.input_ids)))
            for number, token in enumerate(sample.verbalizer_ids):
                made.ask(before, row.sep, token)
                pieces.append(choices + number)
            made.widths.append(len(sample.verbalizer_ids))
        else:
            for number, row in enumerate(sample.rows):
                index, begin = (_joined(rows, before, row) if sample.kind is Kind.CHOICES
                                else (_alone(rows, row, pool if sample.kind is Kind.HEAD else None), 0))
                if sample.kind is Kind.HEAD:
                    made.ask(index, {"cls": 0, "start": row.sep, "pad": row.sep - 1}[pool], 0)
                else:
                    for at, (target, counts) in enumerate(zip(row.target, row.loss_mask, strict=True)):
                        if counts:
                            made.ask(index, at if at < row.sep or not begin else begin + at - row.sep, target)
                pieces.append(choices + (sample.segment_id[number] if sample.segment_id else number))
            made.widths.append(len(set(sample.segment_id)) or len(sample.rows))
        made.numbers += [(first + place) * 4096 + number for number in range(len(rows) - before)]
    return made


def cut(values: Sequence[Value], parts: int) -> list[tuple[int, Sequence[Value]]]:
    """The parts that a step is computed in: neighbours together, as equal as can be, each with the number of its first
    value; some are empty where there are fewer values."""
    bounds = [len(values) * part // parts for part in range(parts + 1)]
    return [(begin, values[begin:end]) for begin, end in pairwise(bounds)]


def size_of(samples: Sequence[Sample], pool: str = "cls") -> Size:
    made = packed(samples, pool)
    return Size(len(made.rows), max(len(row.ids) for row in made.rows), len(made.wanted))


def together(sizes: Iterable[Size]) -> Size:
    """Of the batch of samples of these sizes: samples share no row."""
    rows, widths, wanted = zip(*sizes, strict=True)
    return Size(sum(rows), max(widths), sum(wanted))


def _begun(row: Row, end: int) -> PackedRow:
    segments = [0] * row.sep + [1] * (end - row.sep)
    return PackedRow(list(row.input_ids[:end]), list(row.places[:end]), list(row.blocks[:end]), segments[:end],
                     row.sep, row.visible, row.prompt_positions)


def _alone(rows: list[PackedRow], row: Row, pool: str | None) -> int:
    made = _begun(row, len(row.input_ids))
    if pool == "start" and len(made.ids) == row.sep:  # a full sample has a place behind its end, too
        made.ids.append(made.ids[-1])
        made.places.append(0)
        made.blocks.append(0)
        made.segments.append(1)
    rows.append(made)
    return len(rows) - 1


def _joined(rows: list[PackedRow], begin: int, row: Row) -> tuple[int, int]:
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
