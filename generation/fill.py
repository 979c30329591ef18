"""Filling the blanks of many texts with a model: a text's blanks one after another, many texts at once.

A text's next blank joins the running batch as soon as the one before is filled.
"""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from generation.batch import Batch
from generation.batching import batches
from generation.blanks import Filling, Result, split
from generation.groups import Row
from generation.params import BeamParams, SamplingParams, checked_stops
from generation.sampling import rules
from runtime import parallel
from runtime.errors import NonFinite, UserError

OnStep = Callable[[int, int, "int | None"], None]


def fill_blanks(
    model,
    tokenizer,
    texts: Sequence[str],
    params: SamplingParams | BeamParams | None = None,
    *,
    stops: Sequence[str] = (),
    batch_size: int | None = None,
    on_result: Callable[[int, Result], None] | None = None,
    on_step: OnStep | None = None,
) -> list[Result]:
    """Fill the blanks of every text; one result per text, in order. A result does not depend on the other texts.

    With a seed, equal texts get equal answers and unlike ones independent draws; without one all are independent.
    params: SamplingParams() by default. stops: texts; a blank ends before the first that comes. batch_size: most
    prompts at a time; by memory when None. on_result(index, result) is called as answers come, on_step(index, blank,
    token) for every token (None under beam search).
    A text that cannot be answered gets a result with `error`; it raises nothing and the others are answered.
    """
    if isinstance(texts, str):
        raise UserError("texts must be a list of prompts, not one string")
    params = SamplingParams() if params is None else params
    if not isinstance(params, (SamplingParams, BeamParams)):
        raise UserError(f"params must be SamplingParams or BeamParams, not {type(params).__name__}")
    stops = checked_stops(stops)
    return fill_all(model, tokenizer, [Asked(text, params, stops) for text in texts], batch_size, on_result, on_step)


class Asked(NamedTuple):
    """A text, and how its blanks are filled."""

    text: str
    params: SamplingParams | BeamParams
    stops: tuple[str, ...] = ()


def fill_all(model, tokenizer, asked: Sequence[Asked], batch_size: int | None = None,
             on_result: Callable[[int, Result], None] | None = None, on_step: OnStep | None = None) -> list[Result]:
    """As fill_blanks, each text with options of its own."""
    results: list[Result | None] = [None] * len(asked)

    def report(index: int, result: Result) -> None:
        results[index] = result
        if on_result is not None:
            on_result(index, result)

    fillings, sizes = {}, []
    for index, (text, params, stops) in enumerate(asked):
        if not isinstance(text, str):
            raise UserError(f"prompt {index} is of type {type(text).__name__}; prompts are strings")
        try:
            filling = begin(text, model, tokenizer, params, stops)
        except UserError as error:
            report(index, Result(text, finish_reason="error", error=str(error)))
        else:
            fillings[index] = filling
            sizes.append(row_of(filling).places + 1)
    num_beams = max((each.params.num_beams for each in asked), default=1)
    for indices in batches(list(fillings), sizes, model, num_beams, batch_size):
        for index, result in fill(model, tokenizer, {index: fillings[index] for index in indices}, on_step):
            report(index, result)
    return results


def begin(text: str, model, tokenizer, params: SamplingParams | BeamParams, stops: tuple[str, ...] = ()) -> Filling:
    """A text of which nothing is filled yet. Without a seed it gets a fresh one, the same on all tensor-parallel ranks.

    Raises UserError for a text without room for an answer.
    """
    seed = secrets.randbits(53) if params.seed is None else params.seed
    if params.seed is None and parallel.is_started():
        seed = parallel.broadcast_object(seed)
    form = model.config.prompt_form
    if isinstance(params, BeamParams) and params.ranking is None:
        params = replace(params, ranking=form.beam_ranking)
    filling = Filling(split(text, tokenizer, form), params, seed, model.config.max_sequence_length,
                      *(tuple(map(tokenizer.command, names)) for names in (form.ends, form.never)), stops)
    filling.wanted()  # raises where there is no room
    return filling


def row_of(filling: Filling) -> Row:
    """What a batch is asked for the next blank."""
    context, limit, shared_position, seed = filling.wanted()
    return Row(context, filling.params, limit, rules(filling.ends, filling.never), shared_position,
               filling.prompt.is_causal, seed=seed)


def fill(model, tokenizer, fillings: Mapping[int, Filling],
         on_step: OnStep | None = None) -> Iterator[tuple[int, Result]]:
    """The results of numbered texts, as they come; all are filled in one batch. on_step: as fill_blanks has it."""
    fillings = dict(fillings)
    rows = {index: row_of(filling) for index, filling in fillings.items()}
    batch = Batch(model, sum(row.width for row in rows.values()), max(row.places for row in rows.values()))
    owners: dict[int, int] = {}  # of the batch's rows: whose prompt each fills
    so_far: dict[int, list[int]] = defaultdict(list)  # of rows whose text is looked at
    while rows or owners:
        owners |= dict(zip(batch.add(list(rows.values())), rows, strict=True))
        rows = {}
        for event in batch.step():
            index = owners[event.number]
            filling = fillings[index]
            if on_step is not None and not event.is_broken:
                on_step(index, len(filling.done), event.token)
            answers = event.answers
            if answers is None and filling.stops and event.token is not None:
                so_far[event.number].append(event.token)
                if filling.is_stopped(so_far[event.number], tokenizer):
                    answers = [(so_far.pop(event.number), None)]
                    batch.drop(event.number)
            if answers is None:
                continue
            del owners[event.number]
            after = filling.failed(str(NonFinite([index]))) if event.is_broken else filling.take(answers, tokenizer)
            if isinstance(after, Result):
                yield index, after
            else:
                fillings[index], rows[index] = after, row_of(after)
