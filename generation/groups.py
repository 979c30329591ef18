"""Rows to be decoded, in groups that are treated alike: a step of a group chooses each row's next token.

A group is sampled, or searched with beams (searched.py). What a step meant for a row is an event. A step is begun on
the device, and what it chose is read when the host needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from generation import sampling
from generation.params import BeamParams, SamplingParams
from generation.sampling import Choice, Rules, Ruling
from generation.sequences import Coming, Sequences, sent
from glm.logits import Logits

Answer = tuple[list[int], float | None]  # generated ids with their end token, score (None when sampled)


@dataclass(frozen=True)
class Row:
    """A context, and how to go on behind it."""

    context: Sequence[int]  # its last id is the token that the first generated one follows
    params: SamplingParams | BeamParams  # its limits of length, but for the least one, are the caller's business
    limit: int  # most tokens to generate, end token included, >= 1
    rules: Rules
    shared_position: int | None = None  # of the last context token and all generated ones; None: they count up
    unidirectional: bool = False  # context tokens see only what is left of them
    opened: int = 0  # tokens of the blank in front of the last context token: read as generated ones are
    has_places: bool = True  # generated tokens count on in the second channel; without it all have 1
    counted_length: int | None = None  # what the context counts as in beam search's length penalty; None: its length
    seed: Sequence[int] = ()  # the only source of chance; needed unless decoding is deterministic
    alternatives: int | None = None  # each sampled token's event brings its log-probability, and so many alternatives

    @property
    def width(self) -> int:
        """How many rows of the cache it comes to take up."""
        return self.params.num_beams

    @property
    def places(self) -> int:
        """How many it takes up of each of these rows."""
        return len(self.context) - 1 + self.limit

    @property
    def kind(self) -> tuple[SamplingParams | BeamParams, Rules]:
        """Equal for rows that can be sampled or searched together."""
        return replace(self.params, seed=None, out_seq_length=None, max_gen_length=None), self.rules


@dataclass(frozen=True)
class Event:
    """What a step meant for one row."""

    number: int
    token: int | None = None  # what was chosen; None under beam search
    answers: list[Answer] | None = None  # best first, once the row is complete, with which it has left
    is_broken: bool = False  # its logits are no numbers, and it has left with what it had
    score: sampling.Score | None = None  # where the row asks for alternatives


Ending = Callable[[], tuple[list[Event], list[int]]]  # reads what a step chose: events, the places of those that left


@dataclass(eq=False)
class Member:
    """A row in a group."""

    number: int  # the batch's
    row: Row
    place: int  # its row in Sequences
    steps: int = 0  # begun
    ids: list[int] = field(default_factory=list)  # read; one less than there are steps where one is under way
    keys: list[list[int]] | None = None  # of every step
    turn: int = 0  # counts up where what has been begun for it is of no use


class Sampled:
    """Rows that are sampled with the same options, each at a step of its own."""

    def __init__(self, params: SamplingParams, rules: Rules, members: list[Member], device: torch.device):
        self.params, self.rules, self.members = params, rules, members
        self.ruling = Ruling(rules, device)

    @property
    def places(self) -> list[int]:
        return [member.place for member in self.members]

    @property
    def width(self) -> int:
        return len(self.members)

    def move(self, moved: dict[int, int]) -> None:
        for member in self.members:
            member.place = moved.get(member.place, member.place)
        self.members.sort(key=lambda member: member.place)

    def drop(self, number: int) -> list[int]:
        gone = [member.place for member in self.members if member.number == number]
        self.members = [member for member in self.members if member.number != number]
        return gone

    @property
    def may_go_ahead(self) -> bool:
        """Whether another step can begin before the last one is read: nothing in it depends on the last one's ids, and
        no row is known to end."""
        return self.params.repetition_penalty == 1 and all(
            self.ruling.longest_start <= member.steps < member.row.limit for member in self.members)

    @property
    def needs_all(self) -> bool:
        """Whether a step looks at more exact logits than those it may choose."""
        return self.params.repetition_penalty != 1 or any(each.row.alternatives is not None for each in self.members)

    @property
    def choice(self) -> Choice | None:
        """How the next tokens are chosen, where that can be recorded."""
        steps = [member.steps for member in self.members]
        first, last, least = min(steps), max(steps), self.params.min_gen_length
        if self.needs_all or first < self.ruling.longest_start or first < least <= last:
            return None
        return Choice(self.params, self.rules, last < least, self.ruling)

    def begin_whole(self, choice: Choice, sequences: Sequences) -> Ending:
        """Of all rows in sequences, which are this group's; the model's part and the choice are one recording."""
        keys = self._keys(sequences.device)
        numbers, number = sequences.chosen(choice, keys)
        coming, begun = Coming(numbers), self._begun()

        def end() -> tuple[list[Event], list[int]]:
            found, count = coming.read(), len(begun)
            unsure = [place for place in self._there(begun) if not found[2 * count + place]]
            if not unsure:
                return self._end(begun, found, {})
            members = [begun[place][0] for place in unsure]
            exact = sequences.exactly(choice, None if keys is None else keys[unsure],
                                      [member.place for member in members], number)
            others = [member for place, member, token in zip(unsure, members, exact, strict=False)
                      if found[place] != token]
            for place, token, total in zip(unsure, exact, exact[len(unsure):], strict=False):
                found[place], found[count + place] = token, total
            ended = self._end(begun, found, {})
            for member in others:
                if member in self.members:  # what has been begun since was behind another token
                    sequences.go_back(member.place, member.steps - len(member.ids), member.ids[-1])
                    member.steps, member.turn = len(member.ids), member.turn + 1
            return ended

        return end

    def _begun(self) -> list[tuple[Member, int]]:
        """Members that a step begins for, each with its turn."""
        for member in self.members:
            member.steps += 1
        return [(member, member.turn) for member in self.members]

    def _there(self, begun: list[tuple[Member, int]]) -> list[int]:
        """Places of those that a step still counts for: they have neither left since, nor gone back."""
        return [place for place, (member, turn) in enumerate(begun) if member in self.members and member.turn == turn]

    def begin(self, found: Logits, sequences: Sequences, index) -> Ending:
        """Logits of this group's rows, at `index` in sequences. Each row gets its next token."""
        logits = found.values
        sums = logits.sum(-1)  # one that is no number makes its sum none
        device = logits.device
        asking = {place: member.row.alternatives for place, member in enumerate(self.members)
                  if member.row.alternatives is not None}
        chosen = sent([*asking], device) if asking else None
        plain = logits[chosen] if asking else None  # a copy: what is forbidden has its probability, too
        if self.params.repetition_penalty != 1:
            seen = [{*member.row.context, *member.ids} for member in self.members]
            sampling.penalise_(logits, seen, self.params.repetition_penalty)
        self._forbid(logits)
        tokens = sampling.sample(logits, self.params, self._keys(device), found.refine)
        sequences.go_on(index, tokens)
        coming, begun = Coming(tokens, sums), self._begun()
        return lambda: self._end(begun, coming.read(), dict(zip(asking, sampling.scores(
            plain, tokens[chosen], [*asking.values()]), strict=True)) if asking else {})

    def _end(self, begun: list[tuple[Member, int]], found: list[float], scores: dict) -> tuple[list[Event], list[int]]:
        """found: a token of each of these members, then sums."""
        events, left = [], []
        for place in self._there(begun):
            member, _ = begun[place]
            token, is_broken = int(found[place]), not math.isfinite(found[len(begun) + place])
            if is_broken:
                events.append(Event(member.number, None, [(member.ids, None)], is_broken=True))
                left.append(member)
                continue
            member.ids.append(token)
            is_complete = token in self.rules.end_tokens or len(member.ids) == member.row.limit
            events.append(Event(member.number, token, [(member.ids, None)] if is_complete else None,
                                score=scores.get(place)))
            left += [member] if is_complete else []
        self.members = [member for member in self.members if member not in left]
        return events, [member.place for member in left]

    def _forbid(self, logits: torch.Tensor) -> None:
        self.ruling.forbid_invalid_(logits)
        steps = [member.steps for member in self.members]
        for step in {step for step in steps if step < max(self.params.min_gen_length, self.ruling.longest_start)}:
            places = [place for place, own in enumerate(steps) if own == step]
            part = logits if len(places) == len(steps) else logits[places]
            if step < self.params.min_gen_length:
                self.ruling.forbid_ends_(part)
            if step < self.ruling.longest_start:
                ids = [self.members[place].ids for place in places]
                self.ruling.forbid_starts_(part, torch.tensor(ids, device=logits.device).view(len(ids), step))
            if part is not logits:
                logits[places] = part

    def _keys(self, device: torch.device) -> torch.Tensor | None:
        if self.params.top_k == 1:
            return None
        for member in self.members:
            if member.keys is None:
                member.keys = sampling.keys_of(member.row.seed, member.row.limit).tolist()
        return sent([member.keys[member.steps] for member in self.members], device)


def index_of(places: list[int], device: torch.device) -> slice | torch.Tensor:
    """Of these rows; a slice, which copies nothing, where they lie side by side."""
    first, end = places[0], places[0] + len(places)
    return slice(first, end) if places == list(range(first, end)) else sent(places, device)
