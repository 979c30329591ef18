"""Supervised rows among the batches of pretraining: which steps read them, and which rows.

A cloze question is learnt as a language model learns: the right answer behind sop, of a label its verbalizer. Every
pattern of a task makes a sample of each row. Data sets are drawn by min(rows, 200,000) ^ 0.8.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runtime.errors import UserError
from tuning.data import cloze
from tuning.data.cloze_samples import Builder
from tuning.data.documents import generator_of
from tuning.data.nlu_tasks import load_task
from tuning.data.sample import Kind, Sample, Unbuildable
from tuning.options import Settings

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

MOST_ROWS = 200_000  # of a data set, for its weight
FLATTENED = 0.8  # exponent of that weight


@dataclass(frozen=True)
class Supervised:
    """The data sets, and the share of the steps that read them."""

    sets: tuple[tuple[Sample, ...], ...]  # of Kind.LANGUAGE
    ratio: float
    size: int  # rows of a batch

    def is_due(self, step: int) -> bool:
        """Whether a step reads supervised rows."""
        return random.Random(step).random() < self.ratio

    def batch(self, step: int) -> list[Sample]:
        """Of a step: row number i of all such batches is a function of i."""
        return [self._row(step * self.size + place) for place in range(self.size)]

    def _row(self, number: int) -> Sample:
        draw = generator_of(number)
        weights = np.array([min(len(each), MOST_ROWS) ** FLATTENED for each in self.sets])
        chosen = self.sets[draw.choice(len(self.sets), p=weights / weights.sum())]
        return chosen[draw.choice(len(chosen))]


def open_supervised(settings: Settings, tokenizer: Tokenizer) -> Supervised | None:
    """None without --multi-task-data. UserError for a task or folder that is not there, or has no usable row."""
    mixed = settings.mixing
    if (mixed.multi_task_data is None) != (mixed.multi_task_ratio == 0):
        raise UserError("--multi-task-ratio says in how many steps --multi-task-data is read: both or neither are "
                        "given")
    if mixed.multi_task_data is None:
        return None
    sets = []
    for word in mixed.multi_task_data.split(","):
        task, _, folder = word.partition("=")
        if not task or not folder:
            raise UserError(f"--multi-task-data {mixed.multi_task_data}: must be like rte=FOLDER,cola=FOLDER")
        sets.append(tuple(_of_task(task, Path(folder), settings, tokenizer)))
        if not sets[-1]:
            raise UserError(f"--multi-task-data {word}: no row of {folder} makes a sample with a label")
    return Supervised(tuple(sets), mixed.multi_task_ratio, mixed.multi_batch_size)


def _of_task(task: str, folder: Path, settings: Settings, tokenizer: Tokenizer) -> Sequence[Sample]:
    if task not in cloze.TASKS:
        raise UserError(f"--multi-task-data {task}={folder}: there is no such task; there are {', '.join(cloze.TASKS)}")
    data = replace(settings.data, task=task, data_dir=folder, split="train",
                   seq_length=settings.mixing.multi_seq_length or settings.data.seq_length)
    asked = replace(settings, data=data, cloze=replace(settings.cloze, cloze_eval=True))
    nlu_task, examples, found = load_task(task), cloze.examples(asked), []
    for pattern in range(len(nlu_task.patterns)):
        of_pattern = replace(asked, cloze=replace(asked.cloze, pattern_id=pattern))
        builder = Builder.of(nlu_task, of_pattern, tokenizer)
        found += [answered for example in examples for answered in answers(builder.sample(example))]
    return found


def answers(sample: Sample | Unbuildable) -> list[Sample]:
    """The right answer of a cloze sample as a language model reads it, a sample for each piece; none without a label.
    """
    if isinstance(sample, Unbuildable) or (sample.label is None and sample.kind is not Kind.GENERATIVE):
        return []
    rows = sample.rows
    if sample.kind is Kind.VERBALIZER:
        row, token = rows[0], sample.verbalizer_ids[sample.label]
        rows = (replace(row, target=tuple(token if place == row.sep else 0 for place in range(len(row.input_ids)))),)
    elif sample.kind is Kind.CHOICES:
        owners = sample.segment_id or range(len(rows))
        rows = tuple(row for owner, row in zip(owners, rows, strict=True) if owner == sample.label)
    return [Sample(sample.guid, Kind.LANGUAGE, (row,), text=sample.text) for row in rows]
