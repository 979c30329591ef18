"""What lm-evaluation-harness asks for, as token ids: which ids are scored, what stands around a context, how an answer
is decoded. No model here, and no torch.

The harness asks in texts. Where a continuation begins is decided by its own rule, the same for all its models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evaluation.requests import Ids, ScoreRequest
from evaluation.tasks import score_request
from generation.blanks import split
from generation.params import SamplingParams
from glm.prompt_form import Context, PromptForm, left_to_right
from runtime.errors import UserError, shown
from runtime.show import nearest

MASKS = ("[gMASK]", "[MASK]")  # behind a context
# names that a task may give an option of generation -> ours
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first that is given counts
_SAMPLING = {"top_k": "top_k", "top_p": "top_p", "repetition_penalty": "repetition_penalty",
             "min_new_tokens": "min_gen_length"}
_KNOWN = ("until", *_LIMITS, "do_sample", "temperature", *_SAMPLING, "seed", "num_beams")


def split_pair(encode: Callable[[str], Sequence[int]], context: str, continuation: str) -> tuple[Ids, Ids]:
    """Ids of a context and of the continuation to be scored behind it.

    Blanks at the end of the context belong to the continuation, whose ids are those that context and continuation have
    together beyond as many as the context alone. Where that is none, both having become one piece, the last id of both
    is scored. A continuation without any text has no ids.
    """
    kept = context.rstrip()
    both = tuple(encode(context + continuation))
    if len(kept) == len(context + continuation):
        return both, ()
    before = tuple(encode(kept)) if kept else ()
    return (before, both[len(before):]) if len(both) > len(before) else (both[:-1], both[-1:])


def windows(ids: Sequence[int], first: int, step: int) -> list[tuple[Ids, Ids]]:
    """A text's ids as (context, scored): the first so many with no context, then always the next `step` with
    first - step before them. Every id is scored once."""
    found = [((), tuple(ids[:first]))] if ids else []
    for begin in range(first, len(ids), step):
        found.append((tuple(ids[begin - (first - step):begin]), tuple(ids[begin:begin + step])))
    return found


@dataclass(frozen=True)
class Frame:
    """What a family puts around a context's ids (evaluation.contexts says how each family is read)."""

    before: Ids
    behind: Ids  # from the mask to sop; empty where the context is read from left to right and goes on
    advances: bool  # positions of the answer count on; else all are the mask's

    @property
    def size(self) -> int:
        """Tokens that are added."""
        return len(self.before) + len(self.behind)

    def context(self, ids: Ids) -> Context:
        if not self.behind:
            return left_to_right(self.before, ids, self.advances)
        sequence = (*self.before, *ids, *self.behind)
        return Context(sequence, len(sequence) - 1 if self.advances else len(self.before) + len(ids),
                       int(self.advances))

    def room(self, most: int, answer: int) -> int:
        """Tokens of a context where the model reads `most` at most, the last of the answer not being read.

        Negative where there is no room for the answer alone."""
        return most - self.size - (answer - 1)


def frame_of(form: PromptForm, tokenizer, mask: str = "[gMASK]", unidirectional: bool = False) -> Frame:
    """Raises UserError for a mask that the family, or its vocabulary, does not have."""
    if mask not in MASKS or (unidirectional and mask != MASKS[0]):
        allowed = f"{MASKS[0]} with unidirectional" if mask in MASKS else " and ".join(MASKS)
        raise UserError(f"mask is {shown(mask)}; allowed: {allowed}")
    if form.is_causal and mask != MASKS[0]:
        raise UserError(f"this model fills no {mask}: it reads from left to right, behind {MASKS[0]}")
    if unidirectional or form.is_causal:
        return Frame(tuple(map(tokenizer.command, form.in_front(MASKS[0]))), (), form.counts_on)
    prompt = split(mask, tokenizer, form)
    before, behind = prompt.stretches
    return Frame(before, (prompt.mask, *behind, prompt.sop), prompt.advances)


def packed(frame: Frame, pairs: Sequence[tuple[Ids, Ids]],
           most: int) -> tuple[list[ScoreRequest], list[tuple[int, int]]]:
    """Requests that score all (context, continuation), and of each pair the request and the place in it.

    Equal contexts share a request, as long as its continuations have at most so many tokens together."""
    groups: list[tuple[Ids, list[Ids]]] = []
    tokens: list[int] = []  # of each group's continuations
    open_group: dict[Ids, int] = {}
    owner: dict[tuple[Ids, Ids], tuple[int, int]] = {}
    for pair in pairs:
        if pair in owner:
            continue
        context, continuation = pair
        number = open_group.get(context)
        if number is None or tokens[number] + len(continuation) > most:
            number = open_group[context] = len(groups)
            groups.append((context, []))
            tokens.append(0)
        owner[pair] = number, len(groups[number][1])
        groups[number][1].append(continuation)
        tokens[number] += len(continuation)
    requests = [score_request(frame.context(context), tuple(members)) for context, members in groups]
    return requests, [owner[pair] for pair in pairs]


@dataclass(frozen=True)
class Decoding:
    """How a task wants an answer to be generated."""

    stops: tuple[str, ...]  # texts that end it
    limit: int  # most tokens
    params: SamplingParams
    seed: int | None  # None: the run's

    @classmethod
    def of(cls, options: Mapping[str, Any], limit: int) -> Decoding:
        """limit: where the task says none. Greedy unless do_sample comes with a temperature above 0.

        Raises UserError for options that are not known, or not served: an answer is never another than was asked for.
        """
        given = {name: value for name, value in options.items() if value is not None}
        for name in given:
            if name not in _KNOWN:
                close = nearest(name, _KNOWN)
                hint = f" (did you mean {close!r}?)" if close else ""
                raise UserError(f"unknown option of generation {name!r}{hint}; there are: {', '.join(_KNOWN)}")
        if given.get("num_beams", 1) != 1:
            raise UserError(f"num_beams is {shown(given['num_beams'])}; the harness's tasks are decoded without beam "
                            "search (allowed: 1); python -m evaluation has it")
        limit = next((given[name] for name in _LIMITS if name in given), limit)
        temperature = given.get("temperature", 1.0)
        chosen = {own: given[name] for name, own in _SAMPLING.items() if name in given}
        if given.get("do_sample", False) and temperature != 0:
            chosen["temperature"] = temperature
        else:
            chosen["top_k"] = 1
        until = given.get("until", ())
        stops = (until,) if isinstance(until, str) else tuple(until)
        if not all(isinstance(stop, str) for stop in stops):
            raise UserError(f"until is {shown(until)}; it must be a text or a list of texts")
        params = SamplingParams(**chosen, seed=given.get("seed"), max_gen_length=limit)  # looks at the numbers
        return cls(tuple(filter(None, stops)), limit, params, params.seed)
