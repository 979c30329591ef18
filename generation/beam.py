"""Beam search, one pure step at a time: `beam_step` takes a state and logits and returns the next state.

Continuing beams live in tensors and never wait for Python; only finished beams become Python objects. A step looks at
the device once: at its candidates, to see which of them ended.
Shapes: p prompts, k beams, v vocabulary, c candidates, t tokens so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

import kernels
from generation.params import BeamParams
from generation.sampling import FORBIDDEN, forbid_
from runtime.errors import UserError


class Ranking(NamedTuple):
    """How the original of a family ranks beams that have ended: by score / ((offset + length) / scale) ** penalty."""

    offset: int
    scale: int
    counts_end: bool  # the end token belongs to the length
    ends_among_best: bool  # only candidates among the k best can end
    counts_next: bool = True  # open beams are compared at the length that they come to have, not at that before
    renormalises: bool = True  # what may not come has no part in the others' probabilities
    sees_context: bool = True  # an n-gram that comes once may begin in the context


RANKINGS = {"glm": Ranking(5, 6, True, False), "transformers": Ranking(0, 1, False, True),
            "seq2seq": Ranking(0, 1, False, True, counts_next=False, renormalises=False,
                               sees_context=False)}


@dataclass(frozen=True)
class Finished:
    """A beam that has ended. score: with the length penalty. history: (t,) int64 as BeamState's. end: its end token,
    None for a beam that was cut off."""

    score: float
    history: torch.Tensor
    end: int | None


@dataclass(frozen=True)
class BeamState:
    """The beams of p prompts after `steps` steps. Before the first step a prompt has one beam, afterwards k.

    scores (p, k) float32: summed log-probabilities. history (p, k, tail + steps) int64: the tokens of each beam behind
    the last `tail` tokens of its context. tokens (p, k) int64: what the last step chose.
    """

    scores: torch.Tensor
    history: torch.Tensor
    tokens: torch.Tensor
    lengths: tuple[int, ...]  # what each context counts as in the length penalty
    tail: int
    steps: int = 0
    parents: tuple[tuple[int, ...], ...] = ()  # per prompt and beam: the beam of the prompt that it went on from
    common: tuple[tuple[int, ...], ...] = ()  # first tokens of the history before in which these two agree
    finished: tuple[tuple[Finished, ...], ...] = ()  # per prompt, best first, k at most
    done: tuple[bool, ...] = ()  # prompts that nothing can improve any more
    broken: tuple[bool, ...] = ()  # the last candidates' scores were no numbers, for the model's logits were none


def start(contexts: Sequence[Sequence[int]], lengths: Sequence[int], params: BeamParams,
          device: torch.device | str = "cpu") -> BeamState:
    """One beam per context. lengths: what each counts as in the length penalty (its own length, or a padded one)."""
    tail = max(params.no_repeat_ngram_size - 1, 0)
    seen = contexts if RANKINGS[params.ranking or "glm"].sees_context else [[]] * len(contexts)
    tails = [([-1] * tail + list(context))[len(context):] for context in seen]
    tokens = torch.tensor([[context[-1]] for context in contexts], device=device)
    return BeamState(
        scores=torch.zeros(len(contexts), 1, device=device),
        history=torch.tensor(tails, dtype=torch.int64, device=device).view(len(contexts), 1, tail),
        tokens=tokens, lengths=tuple(lengths), tail=tail,
        finished=((),) * len(contexts), done=(False,) * len(contexts), broken=(False,) * len(contexts))


def beam_step(state: BeamState, logits: torch.Tensor, params: BeamParams, end_tokens: Sequence[int],
              noise: torch.Tensor | None = None) -> BeamState:
    """Extend every beam by one token.

    logits (p, k, v) float32, whose forbidden ids already have the forbidden value; they are changed in place.
    noise (p, k * v): independent draws of the unit exponential distribution for the stochastic variant, else None.
    """
    k, v = params.num_beams, logits.shape[-1]
    width = (len(end_tokens) + 1) * k
    if width > v:
        raise UserError(f"num_beams {k} needs a vocabulary of at least {width} tokens, the model has {v}")
    rule = RANKINGS[params.ranking or "glm"]
    sums = None if rule.renormalises else _log_sums(logits)
    if state.steps < params.min_gen_length:
        for end in end_tokens:
            forbid_(logits, slice(end, end + 1))
    if params.no_repeat_ngram_size > 0:
        forbid_repeats_(logits, state.history, params.no_repeat_ngram_size)
    scores, beams, tokens = _candidates(logits, state.scores, width, noise, sums)

    # the first k candidates that do not end go on, in order: at most len(end_tokens) * k of them can end
    is_end = sum(tokens == end for end in end_tokens)
    order = is_end.argsort(dim=-1, stable=True)[:, :k]
    parents, chosen, kept = (x.gather(-1, order) for x in (beams, tokens, scores))
    history = state.history.gather(1, parents[:, :, None].expand(-1, -1, state.history.shape[-1]))
    # everything that the host must know, in one transfer
    parts = beams, tokens, parents, _common(history, state.history)  # exact as float32 below 2^24
    found = torch.cat((scores, *(part.to(scores.dtype) for part in parts)), -1).tolist()
    candidates = [list(zip(row[:width], row[width:2 * width], row[2 * width:3 * width], strict=True)) for row in found]
    finished, done = _finish(state, candidates, params, frozenset(end_tokens))
    return replace(
        state, scores=kept, tokens=chosen, finished=finished, done=done, steps=state.steps + 1,
        parents=tuple(tuple(map(int, row[3 * width:3 * width + k])) for row in found),
        common=tuple(tuple(map(int, row[3 * width + k:])) for row in found),
        broken=tuple(not all(map(math.isfinite, row[:width])) for row in found),
        history=torch.cat((history, chosen[:, :, None]), dim=-1))


def _common(history: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """(p, k): in how many first tokens each beam of `history` (p, k, t) agrees with the one in its place `before`."""
    differs = history != before
    return torch.nn.functional.pad(differs, (0, 1), value=True).byte().argmax(dim=-1)


def _candidates(logits: torch.Tensor, beam_scores: torch.Tensor, width: int, noise: torch.Tensor | None,
                sums: torch.Tensor | None = None):
    """The best `width` continuations over all beams, best first: scores, beams and tokens (p, width). sums (p, k, 1):
    the logarithms that logits are normalised by; None: those of their own."""
    v = logits.shape[-1]
    if noise is None:
        # the best of all are among the best of each beam; log-probabilities are needed for these only
        best, ids = logits.topk(width, dim=-1)
        best = best - (_log_sums(logits) if sums is None else sums) + beam_scores[..., None]
        scores, places = best.flatten(1).topk(width, dim=-1)
        return scores, places // width, ids.flatten(1).gather(-1, places)
    scores = logits.log_softmax(dim=-1) if sums is None else logits - sums
    scores = (scores + beam_scores[..., None]).flatten(1)
    # keys of exponential races: the largest `width` are a draw without replacement from the softmax of the scores
    places = (scores - noise.log()).topk(width, dim=-1).indices
    scores, order = scores.gather(-1, places).sort(dim=-1, descending=True, stable=True)
    places = places.gather(-1, order)
    return scores, places // v, places % v


def _log_sums(logits: torch.Tensor) -> torch.Tensor:
    """(p, k, v) -> (p, k, 1): what makes logarithms of probabilities of them."""
    return kernels.backend(logits).log_sums(logits)[1][..., None]


def forbid_repeats_(logits: torch.Tensor, history: torch.Tensor, size: int) -> torch.Tensor:
    """Forbid, in place, every token that would repeat an n-gram of `size` which this beam has generated.

    history (p, k, tail + t): an n-gram counts once its last token is generated, so its first ones may be context.
    """
    if history.shape[-1] < size:
        return logits
    ngrams = history.unfold(-1, size, 1)  # (p, k, t, size)
    repeats = (ngrams[..., :-1] == history[:, :, None, history.shape[-1] - (size - 1):]).all(-1)
    value = torch.where(repeats, FORBIDDEN, float("inf")).to(logits.dtype)
    return logits.scatter_reduce_(-1, ngrams[..., -1], value, "amin")


def _finish(state: BeamState, candidates: list[list[tuple]], params: BeamParams, ends: frozenset[int]):
    """Walk each prompt's candidates (score, beam, token) for ended beams: the new `finished` and `done`."""
    finished, done, rule = list(state.finished), list(state.done), RANKINGS[params.ranking or "glm"]
    for prompt, each in enumerate(candidates):
        if done[prompt]:
            continue
        length, going_on, best = state.lengths[prompt] + state.steps, 0, each[0][0] if rule.ends_among_best else None
        for rank, (score, beam, token) in enumerate(each):
            if token in ends:
                if rank < params.num_beams or not rule.ends_among_best:
                    entry = Finished(_penalised(score, length + rule.counts_end, params),
                                     state.history[prompt, int(beam)], int(token))
                    finished[prompt] = _insert(finished[prompt], entry, params.num_beams)
            elif going_on == params.num_beams:
                break
            else:
                going_on += 1
                best = score if best is None else best
        done[prompt] = len(finished[prompt]) == params.num_beams and (
            params.early_stopping or finished[prompt][-1].score >= _penalised(best, length + rule.counts_next, params))
    return tuple(finished), tuple(done)


def _penalised(score: float, length: int, params: BeamParams) -> float:
    rule = RANKINGS[params.ranking or "glm"]
    return score / ((rule.offset + max(length, 1)) / rule.scale) ** params.length_penalty


def _insert(finished: tuple[Finished, ...], entry: Finished, most: int) -> tuple[Finished, ...]:
    """`finished` with `entry` before those that are not better, cut to `most`."""
    place = sum(other.score > entry.score for other in finished)
    return (*finished[:place], entry, *finished[place:])[:most]


def results(state: BeamState, prompt: int, params: BeamParams) -> list[tuple[list[int], float]]:
    """(generated ids with their end token, score) of a prompt's beams, best first.

    Continuing beams of a prompt that is not done count as cut off at their present length.
    """
    finished = state.finished[prompt]
    if not state.done[prompt]:
        length = state.lengths[prompt] + state.steps
        for beam, score in enumerate(state.scores[prompt].tolist()):
            entry = Finished(_penalised(score, length, params), state.history[prompt, beam], None)
            finished = _insert(finished, entry, params.num_beams)
    return [(entry.history[state.tail:].tolist() + ([] if entry.end is None else [entry.end]), entry.score)
            for entry in finished]


def select(state: BeamState, prompts: list[int]) -> BeamState:
    """The state of these prompts only."""
    rows = torch.tensor(prompts, device=state.scores.device)
    tensors = {name: getattr(state, name).index_select(0, rows) for name in ("scores", "history", "tokens")}
    names = ("lengths", "finished", "done", "broken", "parents", "common")
    return replace(state, **tensors, **{name: tuple(getattr(state, name)[prompt] for prompt in prompts)
                                        for name in names if getattr(state, name)})
