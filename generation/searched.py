"""Rows that joined together and are searched with the same beams: a step takes all their logits to the host's choice.

Shapes: b rows, k beams, v vocabulary.
"""

from __future__ import annotations

from functools import partial

import torch

from generation import beam, sampling
from generation.groups import Ending, Event, Member, index_of
from generation.params import BeamParams
from generation.sampling import Rules, Ruling
from generation.sequences import Sequences
from glm.logits import Logits


class Searched:
    """Rows that joined together and are searched with the same beams, step by step."""

    may_go_ahead = False
    needs_all = True  # scores are sums over all
    choice = None  # of the host

    def __init__(self, params: BeamParams, rules: Rules, members: list[Member], device: torch.device):
        self.params, self.rules, self.members = params, rules, members
        self.ruling = Ruling(rules, device)
        contexts = [member.row.context for member in members]
        counted = [len(member.row.context) if member.row.counted_length is None else member.row.counted_length
                   for member in members]
        self.state = beam.start(contexts, counted, params, device)
        self.places = [member.place for member in members]  # one for each row before the first step, then one a beam
        self.keys = torch.stack([sampling.keys_of(member.row.seed, max(each.row.limit for each in members))
                                 for member in members]).to(device) if params.stochastic else None

    @property
    def width(self) -> int:
        return len(self.members) * self.params.num_beams

    def move(self, moved: dict[int, int]) -> None:
        self.places = [moved.get(place, place) for place in self.places]
        width = len(self.places) // len(self.members)
        self._keep(sorted(range(len(self.members)), key=lambda number: self.places[number * width]))

    def drop(self, number: int) -> list[int]:
        return self._keep([place for place, member in enumerate(self.members) if member.number != number])

    def begin(self, found: Logits, sequences: Sequences, index) -> Ending:
        """Logits of this group's rows, at `index` in sequences. Which beams go on is the host's choice."""
        return partial(self._step, found.values, sequences)

    def _step(self, logits: torch.Tensor, sequences: Sequences) -> tuple[list[Event], list[int]]:
        params, state = self.params, self.state
        self.ruling.forbid_invalid_(logits)
        if state.steps < params.min_gen_length:
            self.ruling.forbid_ends_(logits)
        logits = logits.view(len(self.members), -1, logits.shape[-1])
        self.ruling.forbid_starts_(logits, state.history[..., state.tail:])
        noise = None if self.keys is None else sampling.exponentials_(
            sampling.all_uniforms(logits[0].numel(), self.keys[:, state.steps]))
        self.state = state = beam.beam_step(state, logits, params, self.rules.end_tokens, noise)
        if state.steps == 1:
            self.places = sequences.copies(self.places, params.num_beams)
        events, going = [], []
        for place, member in enumerate(self.members):
            if state.broken[place]:
                answer = state.history[place, 0, state.tail:-1].tolist(), None
                events.append(Event(member.number, None, [answer], is_broken=True))
            elif state.done[place] or state.steps == member.row.limit:
                events.append(Event(member.number, None, beam.results(state, place, params)))
            else:
                events.append(Event(member.number))
                going.append(place)
        left = self._keep(going)
        if going:
            self._follow_parents(sequences)
        return events, left

    def _keep(self, going: list[int]) -> list[int]:
        """Only these of the members, in this order; the others' places in sequences."""
        if going == list(range(len(self.members))):
            return []
        width = len(self.places) // len(self.members)
        groups = [self.places[begin:begin + width] for begin in range(0, len(self.places), width)]
        left = [place for number, group in enumerate(groups) if number not in going for place in group]
        self.places = [place for number in going for place in groups[number]]
        self.members = [self.members[number] for number in going]
        self.keys = None if self.keys is None else self.keys[going]
        if going:
            self.state = beam.select(self.state, going)
        return left

    def _follow_parents(self, sequences: Sequences) -> None:
        """Give every beam's row the cache of the beam that it goes on from, and its next token."""
        state, k, moves = self.state, self.params.num_beams, []
        for number, member in enumerate(self.members):
            places = self.places[number * k:(number + 1) * k]
            for place, parent, common in zip(places, state.parents[number], state.common[number], strict=True):
                if places[parent] != place:
                    moves.append((place, places[parent], len(member.row.context) + common - state.tail))
        sequences.reorder(moves)
        sequences.go_on(index_of(self.places, sequences.device), state.tokens.flatten())
