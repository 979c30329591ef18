"""Batches of pretraining: which kind of blanks one has, as a function of its number.

    bert      short blanks of random length     [MASK]
    sentence  whole sentences                    [sMASK]
    gpt       one long blank, mostly the end     [gMASK]

All rows of a batch have blanks of one kind, or it is one of classification tasks (mixing.py). Du et al. 2022; draws as
in the GLM repository.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError, shown
from runtime.reading import read_text
from tuning.data.blanks import padded
from tuning.data.documents import Documents, Packed, divided, packed, read_documents
from tuning.data.mixing import Supervised, open_supervised
from tuning.data.rows import json_lines
from tuning.data.sample import Kind, Row, Sample
from tuning.data.spans import (
    Commands,
    Layout,
    blanked,
    block_lengths,
    chosen_sentences,
    commands_of,
    continued,
    placed,
)
from tuning.options import ObjectiveOptions, Settings, shares_of

if TYPE_CHECKING:
    import numpy as np

    from glm.tokenizers.interface import Tokenizer

TASKS = ("pretrain",)
SHORTEST_PIECE = 32  # tokens of a sample that is cut into short ones


@dataclass(frozen=True)
class Order:
    """One batch: a line of --batches."""

    count: int  # its number; what its blanks are drawn with
    indices: tuple[int, ...]  # of samples
    random_seed: int | None = None  # what draws dBLOCK is seeded with; None: the count


@dataclass(frozen=True)
class Batch:
    mode: str  # bert, sentence, gpt or supervised
    rows: tuple[Row, ...]  # of unequal lengths
    left_out: int = 0  # samples whose blanks found no place

    def samples(self, order: Order) -> list[Sample]:
        return [Sample(f"{order.count}-{number}", Kind.LANGUAGE, (row,), meta={"mode": self.mode})
                for number, row in enumerate(self.rows)]


@dataclass(frozen=True)
class Pretraining:
    """Documents and what is done with them."""

    documents: Documents
    commands: Commands
    objective: ObjectiveOptions
    layout: Layout
    one_document: bool
    non_sentence_start: float
    supervised: Supervised | None = None

    def sample(self, index: int) -> Packed:
        return packed(self.documents, index, self.layout.length, self.one_document, self.non_sentence_start)

    def batch(self, order: Order) -> Batch:
        """UserError where none can be made."""
        if self.supervised is not None and self.supervised.is_due(order.count):
            return Batch("supervised", tuple(sample.rows[0] for sample in self.supervised.batch(order.count)))
        blocks = random.Random(order.count if order.random_seed is None else order.random_seed)
        samples = [self.sample(index) for index in order.indices]
        return blanks(samples, random.Random(order.count), blocks, self.objective, self.layout, self.commands)

    def samples(self, order: Order) -> list[Sample]:
        """The rows of a batch as samples. UserError, naming the batch, where none can be made."""
        try:
            return self.batch(order).samples(order)
        except UserError as error:
            raise UserError(f"batch {order.count}, of the samples {', '.join(map(str, order.indices[:8]))}"
                            f"{', ...' * (len(order.indices) > 8)}: {error}") from None


def open_pretraining(settings: Settings, tokenizer: Tokenizer) -> Pretraining:
    """Of the documents that are trained on."""
    return open_parts(settings, tokenizer)[0]


def open_parts(settings: Settings, tokenizer: Tokenizer) -> tuple[Pretraining, Pretraining | None, Pretraining | None]:
    """Of the documents that are trained on, those of validation, and those of the test, as --split and files say."""
    documents, objective = settings.documents, settings.objective
    check_vocabulary(tokenizer, "--task pretrain")
    text, shares, held_out = read_documents(documents.train_data, tokenizer), shares_of(settings.data.split), [None] * 2
    if shares is not None and max(shares) < 1:
        text, *held_out = divided(text, shares)
    if text is None:
        raise UserError(f"--split {settings.data.split} leaves no text of {documents.train_data} to train on")
    for place, path in enumerate((settings.streams.valid_data, settings.streams.test_data)):
        if path is not None:
            held_out[place] = read_documents(path, tokenizer)
    layout, commands = blanking_of(settings, tokenizer, text.ends)
    source = Pretraining(text, commands, objective, layout, documents.sample_one_document,
                         documents.non_sentence_start, open_supervised(settings, tokenizer))
    validation, test = (each if each is None else replace(source, documents=each, supervised=None)
                        for each in held_out)
    return source, validation, test


def check_vocabulary(tokenizer: Tokenizer, what: str) -> None:
    """UserError, naming what was asked for, where the vocabulary has no [CLS]."""
    if not hasattr(tokenizer, "vocabulary") or "ENC" not in tokenizer.commands:
        raise UserError(f"{what} is for the vocabularies of the GLM repository, which have [CLS]; "
                        f"{tokenizer.vocabulary_file} is another one: tools/pretrain.py trains such models")


def blanking_of(settings: Settings, tokenizer: Tokenizer, ends: np.ndarray) -> tuple[Layout, Commands]:
    """How texts get their blanks. ends: tokens that end a sentence."""
    objective = settings.objective
    layout = Layout(settings.data.seq_length, not objective.no_shuffle_block, not settings.cloze.no_block_position,
                    objective.random_position, objective.block_mask_prob, objective.context_mask_ratio)
    commands = commands_of(tokenizer, ends, settings.tokenizer.task_mask)
    if commands.block is None and (layout.block_mask or layout.context_mask):
        raise UserError("this tokenizer has no dBLOCK; name --tokenizer-type, or leave --block-mask-prob and "
                        "--context-mask-ratio out")
    return layout, commands


def blanks(samples: Sequence[Packed], draw: random.Random, blocks: random.Random, objective: ObjectiveOptions,
           layout: Layout, commands: Commands) -> Batch:
    """A batch. draw: the batch's generator; blocks: that of dBLOCK. UserError where none can be made."""
    if draw.random() < objective.short_seq_prob:
        samples = short_pieces(samples, draw, layout.length, commands)
    is_single = draw.random() < objective.single_span_prob
    kind = 0.0 if is_single else draw.random()
    if is_single or kind < objective.bert_prob:
        mode, rows = "bert", _bert(samples, is_single, draw, blocks, objective, layout, commands)
    elif kind < objective.bert_prob + objective.gap_sentence_prob:
        mode = "sentence"
        rows = [blanked(sample.ids, chosen_sentences(sample.ids, objective.gap_sentence_ratio, commands, draw),
                        commands.sentence_mask, layout, commands, draw, blocks, is_short=False) for sample in samples]
    else:
        mode, rows = "gpt", _gpt(samples, draw, blocks, objective, layout, commands)
    if not any(any(row.loss_mask) for row in rows):
        raise UserError("no sample of the batch has a blank")
    return Batch(mode, tuple(rows), len(samples) - len(rows))


def _bert(samples: Sequence[Packed], is_single: bool, draw: random.Random, blocks: random.Random,
          objective: ObjectiveOptions, layout: Layout, commands: Commands) -> list[Row]:
    """A sample whose blanks do not all find a place is left out."""
    rows = []
    for sample in samples:
        lengths = block_lengths(len(sample.ids), objective.bert_mask_ratio, objective.avg_block_length, draw, is_single)
        spans = placed(sample.ids, lengths, objective.bert_mask_ratio, commands, draw)
        if spans is not None:
            rows.append(blanked(sample.ids, spans, commands.mask, layout, commands, draw, blocks))
    return rows


def _gpt(samples: Sequence[Packed], draw: random.Random, blocks: random.Random, objective: ObjectiveOptions,
         layout: Layout, commands: Commands) -> list[Row]:
    sizes = [len(sample.ids) for sample in samples]
    least, most = int(objective.gpt_min_ratio * min(sizes)), max(sizes) - 2
    if least > most:
        raise UserError(f"a long blank of at least {least} tokens does not fit into samples of at most {max(sizes)}")
    longest = draw.randint(least, most)
    rows = []
    for sample in samples:
        answer = min(longest, len(sample.ids) - 2)
        if answer < 1:
            raise UserError(f"a sample of {len(sample.ids)} tokens has no room for a long blank")
        has_several = commands.eos in sample.ids[:-1]
        if has_several or draw.random() < objective.gpt_infill_prob:
            rows.append(continued(sample.ids, sample.loss_mask, answer, layout, commands))
        else:
            spans = placed(sample.ids, [answer], objective.bert_mask_ratio, commands, draw)
            if spans is None:
                raise UserError(f"a long blank of {answer} tokens does not fit into a document")
            rows.append(blanked(sample.ids, spans, commands.text_mask, layout, commands, draw, blocks, is_short=False))
    return rows


def check_cut(length: int) -> None:
    """UserError where samples of so many tokens are too short for short_pieces."""
    if length - 1 <= SHORTEST_PIECE:
        raise UserError(f"samples of {length} tokens are too short to be cut; --short-seq-prob wants --seq-length "
                        f"{SHORTEST_PIECE + 2} or more")


def short_pieces(samples: Sequence[Packed], draw: random.Random, length: int, commands: Commands) -> list[Packed]:
    """The samples cut into short ones of one length for the batch, which begin and end with sentences if they can."""
    check_cut(length)
    size = draw.randrange(SHORTEST_PIECE, length - 1)
    pieces = []
    for sample in samples:
        ids, mask = sample.ids[1:], sample.loss_mask[1:]
        for _ in range((length - 1) // size):
            begin, end = 0, len(ids)
            if size < len(ids):
                begin, end = _piece(ids, draw.randrange(len(ids) - size), size, commands)
            pieces.append(Packed((commands.enc, *ids[begin:end]), (0, *mask[begin:end])))
    return pieces


def _piece(ids: Sequence[int], begin: int, size: int, commands: Commands) -> tuple[int, int]:
    def is_behind_end(place: int) -> bool:
        return bool(commands.ends[ids[place - 1]]) or ids[place - 1] == commands.eos

    while begin > 0 and (ids[begin] == commands.eos or not is_behind_end(begin)):
        begin -= 1
    end = begin + size
    while end > begin and not is_behind_end(end):
        end -= 1
    return begin, begin + size if end - begin < size // 2 else end


def read_orders(path: Path) -> list[Order]:
    """Lines of `count`, `indices` and, where dBLOCK is drawn, `random_seed`. UserError naming the line of a fault."""
    orders = []
    for number, row in json_lines(read_text(path), path):
        indices = row.get("indices") if isinstance(row, dict) else None
        numbers = [row.get("count"), row.get("random_seed", 0), *indices] if isinstance(indices, list) else [None]
        if not indices or not all(type(each) is int and each >= 0 for each in numbers):
            raise UserError(f"{path}:{number}: {shown(row)}; a batch is an object of count, a number of 0 or "
                            "more, and indices, a list of such")
        orders.append(Order(row["count"], tuple(indices), row.get("random_seed")))
    return orders


def shown_batch(order: Order, batch: Batch) -> dict[str, Any]:
    """Rows of equal length, padded with 0, as `python -m tuning inspect` shows them."""
    width = max(len(row.input_ids) for row in batch.rows)
    left_out = {"left_out": batch.left_out} if batch.left_out else {}
    return {"count": order.count, "mode": batch.mode, **left_out,
            "input_ids": [padded(row.input_ids, width, 0) for row in batch.rows],
            "position_ids": [[padded(row.places, width, 0), padded(row.blocks, width, 0)] for row in batch.rows],
            "target": [padded(row.target, width, 0) for row in batch.rows],
            "loss_mask": [padded(row.loss_mask, width, 0) for row in batch.rows],
            "sep": [row.sep for row in batch.rows]}
