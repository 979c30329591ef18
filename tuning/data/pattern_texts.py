"""Cloze samples as texts with their answers in the blank, on which a part of the steps learns pretraining's objective.

The GLM repository's --block-lm-ratio: beside the task, the model goes on to fill blanks that are drawn in the task's
own texts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from runtime.errors import UserError
from tuning.data.documents import Packed, sentence_ends
from tuning.data.pretrain import Order, blanking_of, blanks, check_cut, check_vocabulary
from tuning.data.sample import Kind, Sample, Unbuildable, built
from tuning.data.spans import Commands, Layout
from tuning.options import ObjectiveOptions, Settings

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer


@dataclass(frozen=True)
class PatternTexts:
    """Texts by the numbers of their rows, and which steps read them."""

    texts: Mapping[int, Packed]
    share: float  # of the steps
    seed: int
    objective: ObjectiveOptions
    layout: Layout
    commands: Commands

    @cached_property
    def rows(self) -> tuple[int, ...]:
        return tuple(self.texts)

    def order(self, step: int, size: int) -> Order | None:
        """What a step reads, rows drawn with replacement; None: its rows of the task."""
        draw = random.Random(f"{self.seed} {step} pattern texts")
        if draw.random() >= self.share:
            return None
        return Order(step, tuple(draw.choices(self.rows, k=size)))

    def samples(self, order: Order) -> list[Sample]:
        """With blanks; none where no blank finds a place."""
        try:
            return blanks([self.texts[row] for row in order.indices], random.Random(order.count),
                          random.Random(order.count), self.objective, self.layout, self.commands).samples(order)
        except UserError:
            return []


def open_pattern_texts(settings: Settings, tokenizer: Tokenizer,
                       rows: Sequence[Sample | Unbuildable]) -> PatternTexts:
    """As --block-lm-ratio, which is not 0, says. UserError where there can be no such texts."""
    if settings.prompt.continuous_prompt or not settings.cloze.cloze_eval:
        raise UserError("--block-lm-ratio wants texts of patterns, with --cloze-eval and without --continuous-prompt")
    check_vocabulary(tokenizer, "--block-lm-ratio")
    if settings.objective.short_seq_prob:
        check_cut(settings.data.seq_length)
    layout, commands = blanking_of(settings, tokenizer, sentence_ends(tokenizer))
    texts = {number: text for number, row in enumerate(rows)
             if isinstance(row, Sample) and (text := filled(row, commands)) is not None}
    if not texts:
        raise UserError(f"--block-lm-ratio: none of the {len(built(rows))} rows has a label and a blank for it")
    return PatternTexts(texts, 1 - 1 / (1 + settings.cloze.block_lm_ratio), settings.data.seed, settings.objective,
                        layout, commands)


def filled(sample: Sample, commands: Commands) -> Packed | None:
    """[ENC] text eos, the right answer in the place of the first mask, all of it learned; None: there is no answer."""
    if sample.kind is Kind.VERBALIZER and sample.label is not None:
        row, answer = sample.rows[0], (sample.verbalizer_ids[sample.label],)
    elif sample.kind in (Kind.CHOICES, Kind.GENERATIVE):
        owners = sample.segment_id or range(len(sample.rows))
        label = 0 if sample.kind is Kind.GENERATIVE else sample.label
        pieces = [piece for owner, piece in zip(owners, sample.rows, strict=True) if owner == label]
        if not pieces:
            return None
        row = pieces[0]
        answer = tuple(token for piece in pieces for token, counts in zip(piece.target, piece.loss_mask, strict=True)
                       if counts and token != commands.eop)
    else:
        return None
    context = row.input_ids[:row.sep]
    if commands.mask not in context:
        return None
    place = context.index(commands.mask)
    ids = (*context[:place], *answer, *context[place + 1:])
    return Packed(ids, (1,) * len(ids))
