"""Filling the blanks of many texts with a model: every text's blanks one after another, many texts at once."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from generation.batch import Batch, Row
from generation.batching import batches
from generation.blanks import Filling, Result, split
from generation.params import BeamParams, SamplingParams
from generation.rules import rules
from runtime import parallel
from runtime.errors import NonFinite, UserError

OnStep = Callable[[int, int, "int | None"], None]


def fill_blanks(
    model,
    tokenizer,
    texts: Sequence[str],
    params: SamplingParams | BeamParams | None = None,
    *,
    batch_size: int | None = None,
    on_result: Callable[[int, Result], None] | None = None,
    on_step: OnStep | None = None,
) -> list[Result]:
    """Fill the blanks of every text; one result per text, in order. A result does not depend on the other texts.

    With a seed, equal texts get equal answers and unlike ones independent draws; without one all are independent.
    params: SamplingParams() by default. batch_size: most prompts at a time; by memory when None. on_result(index,
    result) is called as answers come, on_step(index, blank, token) for every token (None under beam search).
    A text that cannot be answered gets a result with `error`; it raises nothing and the others are answered.
    """
    if isinstance(texts, str):
        raise UserError("texts must be a list of prompts, not one string")
    params = SamplingParams() if params is None else params
    if not isinstance(params, (SamplingParams, BeamParams)):
        raise UserError(f"params must be SamplingParams or BeamParams, not {type(params).__name__}")
    results: list[Result | None] = [None] * len(texts)

    def report(index: int, result: Result):
        results[index] = result
        if on_result is not None:
            on_result(index, result)

    fillings, sizes = {}, []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"prompt {index} is of type {type(text).__name__}; prompts are strings")
        try:
            filling = begin(text, model, tokenizer, params)
            wanted = filling.wanted()
        except UserError as error:
            report(index, Result(text, finish_reason="error", error=str(error)))
        else:
            fillings[index] = filling
            sizes.append(len(wanted.context) + wanted.limit)
    for indices in batches(list(fillings), sizes, model, params, batch_size):
        _fill_together(model, tokenizer, {index: fillings[index] for index in indices}, report, on_step)
    return results


def begin(text: str, model, tokenizer, params: SamplingParams | BeamParams) -> Filling:
    """A text of which nothing is filled yet. Without a seed it gets a fresh one, the same on all tensor-parallel ranks.

    Raises UserError for a text with unclear masks.
    """
    seed = secrets.randbits(53) if params.seed is None else params.seed
    if params.seed is None and parallel.is_started():
        seed = parallel.broadcast_object(seed)
    return Filling(split(text, tokenizer), params, seed, model.config.max_sequence_length,
                   (tokenizer.command("eop"), tokenizer.command("eos")))


def row_of(filling: Filling) -> Row:
    """What a batch is asked for the next blank."""
    context, limit, shared_position, seed = filling.wanted()
    return Row(context, filling.params, limit, rules(filling.ends), shared_position, seed=seed)


def _fill_together(model, tokenizer, fillings: dict[int, Filling], report, on_step: OnStep | None) -> None:
    """One batch, which a prompt's next blank joins as soon as the one before is filled."""
    rows = {index: row_of(filling) for index, filling in fillings.items()}
    batch = Batch(model, sum(row.width for row in rows.values()), max(row.places for row in rows.values()))
    owners: dict[int, int] = {}  # of the batch's rows: whose prompt each fills
    while rows or owners:
        owners |= dict(zip(batch.add(list(rows.values())), rows, strict=True))
        rows = {}
        for event in batch.step():
            index = owners[event.number]
            filling = fillings[index]
            if on_step is not None and not event.is_broken:
                on_step(index, len(filling.done), event.token)
            if event.answers is None:
                continue
            del owners[event.number]
            after = filling.failed(str(NonFinite([index]))) if event.is_broken else filling.take(event.answers,
                                                                                                 tokenizer)
            if isinstance(after, Result):
                report(index, after)
            else:
                fillings[index], rows[index] = after, row_of(after)
