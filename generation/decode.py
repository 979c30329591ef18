"""Many contexts at once: a batch that is filled, and run until nobody is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from generation.batch import Answer, Batch, Row
from generation.params import BeamParams, SamplingParams
from generation.rules import rules
from runtime.errors import NonFinite

OnStep = Callable[[list[tuple[int, int | None]]], None]


@torch.inference_mode()
def generate(
    model,
    contexts: Sequence[Sequence[int]],
    params: SamplingParams | BeamParams,
    *,
    end_tokens: Sequence[int],
    limits: Sequence[int],
    shared_positions: Sequence[int | None] | None = None,
    unidirectional: bool = False,
    counted_lengths: Sequence[int] | None = None,
    invalid_ids: Sequence[int] = (),
    forbidden_starts: Sequence[Sequence[int]] = (),
    seeds: Sequence[Sequence[int]] | None = None,
    on_step: OnStep | None = None,
) -> list[list[Answer]]:
    """Generate behind every context until an end token or the row's limit: per row its answers, best first.

    The arguments are the fields of generation.batch.Row and generation.rules.Rules, one for each row or one for all.
    on_step: called after every step with (row, token) for the rows still going; token is None under beam search.
    Raises NonFinite where logits are NaN or infinite.
    """
    nothing = [None] * len(contexts)
    common = rules(end_tokens, invalid_ids, forbidden_starts)
    rows = [Row(context, params, limit, common, shared, unidirectional, counted, seed or ())
            for context, limit, shared, counted, seed in zip(
                contexts, limits, shared_positions or nothing, counted_lengths or nothing, seeds or nothing,
                strict=True)]
    batch = Batch(model, sum(row.width for row in rows), max(row.places for row in rows))
    place = {number: index for index, number in enumerate(batch.add(rows))}
    answers: list[list[Answer]] = [[] for _ in rows]
    while events := batch.step():
        if broken := [event for event in events if event.is_broken]:
            raise NonFinite([place[event.number] for event in broken], [event.answers[0][0] for event in broken])
        for event in events:
            if event.answers is not None:
                answers[place[event.number]] = event.answers
        if on_step is not None:
            on_step([(place[event.number], event.token) for event in events])
    return answers
