"""The only decode loop: ids in, ids and scores out.

A row's context is read at once, but for its last token (sop, for a blank); from then on every row is given one token a
step. Rows of unequal contexts are padded on the right to the longest and generate behind that width; nothing ever
looks at the padding, so a row's result is what it would be alone.
Shapes: b rows, w width of the padded contexts without their last tokens, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from generation import beam, sampling
from generation.params import BeamParams, SamplingParams
from glm.errors import NonFinite
from glm.inputs import padding_blocked, prefix_causal_blocked, right_pad

CPU_READ_TOKENS = 4096  # of contexts at a time: with more, the activations leave a processor's caches
Answer = tuple[list[int], float | None]  # generated ids with their end token, score (None when sampled)
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

    contexts: ids of each row; the last one is the token that the first generated one follows. All tokens before it see
        each other (only what is left of them if `unidirectional`); it and what is generated see everything before.
    limits: most tokens to generate, end token included, >= 1. Only `params`' limits of the answer's beginning and of
        repetition are looked at; its out_seq_length and max_gen_length are the caller's business.
    shared_positions: position of the last context token and all generated ones ([MASK]), or None to count up ([gMASK]).
    counted_lengths: what each context counts as in the length penalty of beam search; its own length by default.
    invalid_ids: never generated. forbidden_starts: ids that no answer may begin with.
    seeds: whole numbers per row, the only source of chance; needed unless decoding is deterministic.
    on_step: called after every step with (row, token) for the rows still going; token is None under beam search.
    Raises NonFinite where logits are NaN or infinite.
    """
    context = _Context(model, contexts, max(limits), shared_positions, unidirectional)
    rules = _Rules(end_tokens, invalid_ids, forbidden_starts, context.device)
    if isinstance(params, BeamParams):
        first = beam.start(contexts, counted_lengths or [len(ids) for ids in contexts], params, context.device)
        return _search_beams(context, first, params, rules, limits, seeds, on_step)
    last = torch.tensor([ids[-1] for ids in contexts], device=context.device)
    return _sample(context, last, params, rules, limits, seeds, on_step)


def _sample(context, tokens, params, rules, limits, seeds, on_step) -> list[list[Answer]]:
    answers: list[list[int]] = [[] for _ in limits]
    rows = list(range(len(limits)))  # which answer each row of the batch belongs to; -1: already complete
    keys = None if params.top_k == 1 else _keys(seeds, max(limits), context.device)
    history = tokens[:, None]  # as far back as the forbidden beginnings need it
    for step in range(max(limits)):
        logits = context.logits(tokens)
        sums = logits.sum(-1)  # one that is no number makes its sum none
        rules.apply_(logits, step, params.min_gen_length)
        rules.forbid_starts_(logits, history[:, 1:])
        tokens = sampling.sample(logits, params, None if keys is None else keys[:, step])
        if step < rules.longest_start:
            history = torch.cat((history, tokens[:, None]), dim=-1)
        found = torch.cat((tokens.double(), sums)).tolist()  # one transfer
        if hit := [row for row, total in zip(rows, found[len(rows):], strict=True)
                   if row >= 0 and not math.isfinite(total)]:
            raise NonFinite(hit, [answers[row] for row in hit])
        chosen = [(row, int(token)) for row, token in zip(rows, found, strict=False) if row >= 0]
        for row, token in chosen:
            answers[row].append(token)
            if token in rules.end_set or len(answers[row]) == limits[row]:
                rows[rows.index(row)] = -1
        if on_step is not None:
            on_step(chosen)
        going = [place for place, row in enumerate(rows) if row >= 0]
        if not going:
            break
        if 2 * len(going) <= len(rows):  # halving pays for the copy of the cache, and bounds all copies by one cache
            rows, kept = [rows[place] for place in going], torch.tensor(going, device=context.device)
            tokens, history, keys = (None if x is None else x[kept] for x in (tokens, history, keys))
            context.select(kept)
    return [[(answer, None)] for answer in answers]


def _search_beams(context, state, params, rules, limits, seeds, on_step) -> list[list[Answer]]:
    answers: list[list[Answer]] = [[] for _ in limits]
    rows = list(range(len(limits)))
    k = params.num_beams
    keys = _keys(seeds, max(limits), context.device) if params.stochastic else None
    while True:
        logits = rules.apply_(context.logits(state.tokens.flatten()), state.steps, params.min_gen_length)
        logits = logits.view(len(rows), -1, logits.shape[-1])
        rules.forbid_starts_(logits, state.history[..., state.tail:])
        noise = None
        if keys is not None:
            places = torch.arange(logits[0].numel(), device=context.device)
            noise = sampling.exponentials(places, keys[:, state.steps])
        state = beam.beam_step(state, logits, params, rules.end_list, noise)
        if hit := [place for place, row in enumerate(rows) if row >= 0 and state.broken[place]]:
            raise NonFinite([rows[place] for place in hit],
                            [state.history[place, 0, state.tail:-1].tolist() for place in hit])
        for place, row in enumerate(rows):
            if row >= 0 and (state.done[place] or state.steps == limits[row]):
                answers[row] = beam.results(state, place, params)
                rows[place] = -1
        going = [place for place, row in enumerate(rows) if row >= 0]
        if on_step is not None:
            on_step([(rows[place], None) for place in going])
        if not going:
            return answers
        if 2 * len(going) <= len(rows):
            rows = [rows[place] for place in going]
            keys = None if keys is None else keys[torch.tensor(going, device=context.device)]
            state = beam.select(state, going)
            width = logits.shape[1]
            context.select(torch.tensor([place * width + i for place in going for i in range(width)],
                                        device=context.device))
        if state.steps == 1:
            context.expand(k)  # all beams of a prompt go on from its only one
        elif state.common < state.tail + state.steps - 1:
            first = torch.arange(len(rows), device=context.device)[:, None] * k
            context.reorder((first + state.parents).flatten(), state.common - state.tail)


class _Rules:
    """What may not be generated, whatever the strategy. Works on logits (..., v) in place."""

    def __init__(self, end_tokens, invalid_ids, forbidden_starts, device):
        self.end_list, self.end_set = list(end_tokens), frozenset(end_tokens)
        self.ends = torch.tensor(self.end_list, device=device)
        self.invalid = torch.tensor(sorted(invalid_ids), device=device) if invalid_ids else None
        self.starts = [(torch.tensor(list(ids[:-1]), device=device), ids[-1]) for ids in forbidden_starts]
        self.longest_start = max((len(ids) for ids in forbidden_starts), default=0)

    def apply_(self, logits: torch.Tensor, step: int, min_gen_length: int) -> torch.Tensor:
        if self.invalid is not None:
            sampling.forbid_(logits, self.invalid)
        if step < min_gen_length:
            sampling.forbid_(logits, self.ends)
        return logits

    def forbid_starts_(self, logits: torch.Tensor, generated: torch.Tensor) -> None:
        """generated (..., t): the ids that each row or beam has generated so far."""
        for beginning, last in self.starts:
            if len(beginning) == generated.shape[-1]:
                begun = (generated == beginning).all(-1)
                logits[..., last] = torch.where(begun, sampling.FORBIDDEN, logits[..., last])


class _Context:
    """The batch inside the model: its cache, what of it is padding, and the position of the next token."""

    def __init__(self, model, contexts, longest_answer, shared_positions, unidirectional):
        self.model = model
        self.device = next(model.parameters()).device
        self.is_2d = model.config.position_encoding_2d
        tokens, lengths = right_pad([list(ids[:-1]) for ids in contexts])
        self.width = tokens.shape[1]
        self.cache = model.new_cache(len(contexts), self.width + longest_answer)
        self.padding = self._padding_of(lengths.to(self.device)) if int(lengths.min()) < self.width else None
        rows = len(contexts)
        if self.device.type == "cpu":
            rows = max(1, CPU_READ_TOKENS // max(1, self.width))
        for start in range(0, len(contexts), rows):
            part = slice(start, start + rows)
            self._read(part, tokens[part], lengths[part], unidirectional)
        self.cache.length = self.width
        shared = shared_positions or [None] * len(contexts)
        first = [len(ids) - 1 if p is None else p for ids, p in zip(contexts, shared, strict=True)]
        self.position = torch.tensor(first, device=self.device)
        self.advance = torch.tensor([int(p is None) for p in shared], device=self.device)
        self.steps = 0

    def _padding_of(self, lengths: torch.Tensor) -> torch.Tensor:
        """(b, 1, capacity) bool: the places that nothing may see, between a row's end and the common width."""
        blocked = torch.zeros(len(lengths), 1, self.cache.capacity, dtype=torch.bool, device=self.device)
        blocked[:, :, :self.width] = padding_blocked(lengths, self.width)
        return blocked

    def _read(self, rows: slice, tokens: torch.Tensor, lengths: torch.Tensor, unidirectional: bool) -> None:
        """Fill the cache of some rows with keys and values of their contexts; hidden states are of no use."""
        width = int(lengths.max())
        if width == 0:
            return
        is_padded = int(lengths.min()) < width
        tokens, lengths = tokens[:, :width].to(self.device), lengths.to(self.device)
        positions = torch.arange(width, device=self.device).expand(tokens.shape)
        if self.is_2d:
            positions = torch.stack((positions, torch.zeros_like(positions)), dim=1)
        blocked = None
        if unidirectional:
            blocked = prefix_causal_blocked(torch.zeros_like(lengths), lengths, width)
        elif is_padded:
            blocked = padding_blocked(lengths, width).expand(-1, width, -1)
        self.model.hidden_states(tokens, positions, blocked, self.cache.part(rows),
                                 places=torch.zeros(1, dtype=torch.int64, device=self.device))

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """One more token (b,) for every row -> float32 logits (b, v) of what follows."""
        positions = (self.position + self.steps * self.advance)[:, None]
        self.steps += 1
        if self.is_2d:  # second channel: place inside the blank, from 1
            positions = torch.stack((positions, torch.full_like(positions, self.steps)), dim=1)
        blocked = None if self.padding is None else self.padding[:, :, :self.cache.length + 1]
        return self.model.head(self.model.hidden_states(tokens[:, None], positions, blocked, self.cache)[:, -1])

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows only, in this order; repeats are allowed."""
        self.cache = self.cache.select(rows)
        self.position, self.advance = self.position[rows], self.advance[rows]
        self.padding = None if self.padding is None else self.padding[rows]

    def expand(self, times: int) -> None:
        self.select(torch.arange(len(self.position), device=self.device).repeat_interleave(times))

    def reorder(self, parents: torch.Tensor, common: int) -> None:
        """Row i goes on from row parents[i], a beam of the same prompt that shares its first `common` tokens."""
        self.cache.reorder(parents, self.width + 1 + common)


def _keys(seeds: Sequence[Sequence[int]], count: int, device: torch.device) -> torch.Tensor:
    """(b, count, 2): the keys of every row and step."""
    return torch.stack([sampling.keys_of(seed, count) for seed in seeds]).to(device)
