"""What a model is given for one row of a file, as values, and how it is shown to people and other programs.

A sequence is laid out as in GLM: a context of `sep` tokens that all see each other, behind it the answer, which sees
the context and its own left. Nothing here knows torch, tokenizers or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Ids = tuple[int, ...]


class Kind(Enum):
    """What is asked of the model, and hence how a sample is scored."""

    VERBALIZER = "verbalizer"  # the logits of one token a label, at sop
    CHOICES = "choices"  # the summed log-probability of each choice's answer
    GENERATIVE = "generative"  # is each token of the only answer the likeliest?
    HEAD = "head"  # a classification head behind one hidden state a sequence
    SEQ2SEQ = "seq2seq"  # the answer is generated, and compared with a text
    LANGUAGE = "language"  # the losses of the tokens themselves


@dataclass(frozen=True)
class Row:
    """One sequence of s tokens. All fields of numbers have its length, where they are not empty."""

    input_ids: Ids
    places: Ids  # the first channel of position_ids
    blocks: Ids  # the second: 0 in the context, 1, 2, ... in an answer
    sep: int  # keys before it are seen by all queries
    target: Ids = ()  # what follows each place; free where the loss mask is 0
    loss_mask: Ids = ()  # 0 or 1
    visible: tuple[str, ...] = ()  # in the place of sep: for each query, a string of 0 and 1 over the keys
    prompt_positions: Ids = ()  # of the continuous prompt's tokens, whose id is 0


@dataclass(frozen=True)
class Sample:
    guid: str
    kind: Kind
    rows: tuple[Row, ...]  # one; with choices one each; with segments one a piece
    label: int | None = None  # the index of the right choice or label
    verbalizer_ids: Ids = ()  # Kind.VERBALIZER: an id for each label, in the order of the labels
    segment_id: Ids = ()  # whose piece each row is, where answers are cut into pieces
    has_choices: bool = False  # shown as a list of rows, even of one
    text: str = ""  # a reading of the first row, for people, where its ids' is none
    reference: str | None = None  # Kind.SEQ2SEQ: what metrics compare with
    meta: Mapping[str, Any] = field(default_factory=dict)  # what metrics and files of predictions need


@dataclass(frozen=True)
class Unbuildable:
    """A row that no sample can be made of: it is listed, counted, and left out of scores and losses."""

    guid: str
    error: str


@dataclass(frozen=True)
class Example:
    """What a task's reader makes of a row, before any pattern or tokenizer."""

    guid: str
    text_a: str
    text_b: str | None = None
    label: str | int | None = None  # as the file writes it, or as the tables of the task say
    idx: Any = None
    num_choices: int = 1
    meta: Mapping[str, Any] = field(default_factory=dict)


def shown_example(example: Example) -> dict[str, Any]:
    """What was read of a row, as a line of `python -m tuning inspect --examples`."""
    about = {"guid": example.guid, "text_a": example.text_a, "text_b": example.text_b}
    return about | ({"ref": example.meta["ref"]} if "ref" in example.meta else {"label": example.label})


def shown(sample: Sample | Unbuildable, decode: Callable[[Ids], str]) -> dict[str, Any]:
    """The sample as a line of `python -m tuning inspect`.

    decode: reads ids for people, where the sample has no text.
    """
    if isinstance(sample, Unbuildable):
        return {"guid": sample.guid, "error": sample.error}
    about: dict[str, Any] = {"guid": sample.guid, "text": sample.text or decode(sample.rows[0].input_ids)}
    if sample.kind is not Kind.SEQ2SEQ:
        about["label"] = sample.label
    if not sample.has_choices and not sample.segment_id:
        about |= shown_row(sample.rows[0])
    else:
        about["choices"] = [shown_row(row) for row in sample.rows]
    if sample.segment_id:
        about["segment_id"] = list(sample.segment_id)
    if sample.verbalizer_ids:
        about["verbalizer_ids"] = list(sample.verbalizer_ids)
    return about


def shown_row(row: Row) -> dict[str, Any]:
    about: dict[str, Any] = {"input_ids": list(row.input_ids), "position_ids": [list(row.places), list(row.blocks)]}
    about |= {"visible": list(row.visible)} if row.visible else {"sep": row.sep}
    if row.target:
        about["target"] = list(row.target)
    if row.loss_mask:
        about["loss_mask"] = list(row.loss_mask)
    if row.prompt_positions:
        about["prompt_positions"] = list(row.prompt_positions)
    return about


def facts_of_cuts(samples: Sequence[Sample | Unbuildable], first: str, second: str) -> dict[str, int]:
    """What reports say of samples whose meta has `cut`: the tokens that each of two parts of the row lost.

    rows; not_built; shortened: rows that lost tokens, shortened_<first>, shortened_<second>: those of them that lost
    some of this part, tokens_cut: of all rows, most_tokens_cut: of one.
    """
    cuts = [sample.meta["cut"] for sample in built(samples)]
    return {"rows": len(samples), "not_built": len(samples) - len(cuts), "shortened": sum(map(any, cuts)),
            f"shortened_{first}": sum(cut > 0 for cut, _ in cuts),
            f"shortened_{second}": sum(cut > 0 for _, cut in cuts),
            "tokens_cut": sum(map(sum, cuts)), "most_tokens_cut": max(map(sum, cuts), default=0)}


def built(samples: Sequence[Sample | Unbuildable]) -> list[Sample]:
    return [sample for sample in samples if isinstance(sample, Sample)]
