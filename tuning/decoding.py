"""Writing the answers of seq2seq samples as GLM's fine-tuning does: with beams, or greedily blank after blank.

What is generated sees the source with its padding, unless the sample hides that (--mask-pad-token).
Shapes: b rows, v vocabulary, t tokens so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from generation.batch import generate
from generation.batching import batches
from generation.beam import forbid_repeats_
from generation.params import BeamParams
from generation.sampling import forbid_
from glm.inputs import position_ids
from runtime.errors import NonFinite
from tuning.data.sample import Row

if TYPE_CHECKING:
    from glm.cache import KVCache
    from glm.model import GLM


def source_of(row: Row) -> list[int]:
    """The ids that an answer sees."""
    source = row.input_ids[:row.sep]
    return [token for token, seen in zip(source, row.visible[0], strict=False) if seen == "1"] if row.visible else [
        *source]


def written(model: GLM, rows: Sequence[Row], params: BeamParams, end: int, limit: int,
            seeds: Sequence[tuple[int, int]] | None = None, advances: bool = False,
            has_places: bool = True) -> list[list[int]]:
    """The best answer to each row, with the end token where it has one.

    rows: what stands behind sop is not read. end: the id of eop. limit: most tokens, the end included. advances: the
    answer's positions count on, they are not all the mask's. has_places: generated tokens count 2, 3, ... behind sop in
    the second channel; without it all have 1. seeds: of each row's draws; None: by its number. Raises NonFinite
    where logits are no numbers.
    """
    contexts = [[*source_of(row), row.input_ids[row.sep]] for row in rows]
    answers: list[list[int]] = [[] for _ in rows]
    sizes = [len(context) + limit for context in contexts]
    for numbers in batches(range(len(rows)), sizes, model, params.num_beams, None):
        found = generate(
            model, [contexts[number] for number in numbers], params, end_tokens=[end], limits=[limit] * len(numbers),
            shared_positions=[None if advances else rows[number].places[rows[number].sep] for number in numbers],
            has_places=has_places, counted_lengths=[0] * len(numbers),
            seeds=[(0, number) if seeds is None else seeds[number] for number in numbers])
        for number, best in zip(numbers, found, strict=True):
            answers[number] = best[0][0]
    return answers


@torch.inference_mode()
def filled(model: GLM, sources: Sequence[Sequence[int]], mask: int, sop: int, end: int, params: BeamParams,
           limit: int) -> list[list[int]]:
    """What is generated for the blanks of each source, greedily: the first one's tokens, sop, the next one's ...

    sources: of one length; one without a mask gets nothing. params: the least length and the size of n-grams that come
    once, both of all blanks of a row together. limit: most tokens of these, with sop before all but the first.
    Raises NonFinite.
    """
    device, count, width = next(model.parameters()).device, len(sources), len(sources[0])
    masks = [[place for place, token in enumerate(source) if token == mask] for source in sources]
    tokens = torch.tensor(sources, device=device)
    cache, places = model.new_cache(count, width + limit), torch.arange(width, device=device).expand(count, width)
    model.hidden_states(tokens, position_ids(model.config, places, torch.zeros_like(places)), None, cache,
                        places=torch.zeros(1, dtype=torch.int64, device=device))

    size = params.no_repeat_ngram_size
    history = torch.full((count, max(size - 1, 0)), -1, device=device)
    numbers, steps, done = [0] * count, [1] * count, [not each for each in masks]  # of the blank; its token
    answers: list[list[int]] = [[] for _ in sources]
    chosen = torch.full((count,), sop, device=device)
    for step in range(limit):
        positions = [(own or [0])[number] for own, number in zip(masks, numbers, strict=True)]
        logits = _next(model, cache, chosen, positions, steps)
        if broken := [row for row, is_finite in enumerate(logits.isfinite().all(-1).tolist()) if not is_finite]:
            raise NonFinite(broken)
        if step < params.min_gen_length:
            forbid_(logits, slice(end, end + 1))
        if size:
            forbid_repeats_(logits[:, None], history[:, None], size)
        found = logits.argmax(-1).tolist()
        for row, token in enumerate(found):
            steps[row] += 1
            if token == end and numbers[row] + 1 < len(masks[row]):
                numbers[row], steps[row], found[row] = numbers[row] + 1, 1, sop
            done[row] = done[row] or found[row] == end
            answers[row] += [] if done[row] else [found[row]]
        if all(done):
            break
        chosen = torch.tensor(found, device=device)
        history = torch.cat((history, chosen[:, None]), dim=-1)
    return answers


def _next(model: GLM, cache: KVCache, tokens: Tensor, positions: Sequence[int], places: Sequence[int]) -> Tensor:
    """One token (b,) for every row of the cache -> logits (b, v) of what follows."""
    both = position_ids(model.config, tokens.new_tensor(positions)[:, None], tokens.new_tensor(places)[:, None])
    return model.head(model.hidden_states(tokens[:, None], both, None, cache)[:, -1])
