"""The only decode loop: rows that join and leave a running batch, one token for each of them a step.

    batch = Batch(model);  numbers = batch.add(rows);  events = batch.step();  batch.drop(number)

A row brings its own options, and gets the ids that it would get alone. Ids in, ids and scores out.
On a GPU a step begins before the last one's tokens are read: the next token of a row is there already, and what is
computed for a row that has ended is thrown away. One thread drives a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count, groupby

import torch

from generation.groups import Answer, Ending, Event, Member, Row, Sampled, index_of
from generation.params import BeamParams, SamplingParams
from generation.sampling import rules
from generation.searched import Searched
from generation.sequences import Sequences
from runtime.errors import NonFinite

JOINING = 4  # the share of a batch's rows that join it together: a quarter


class Batch:
    """Rows that are decoded together."""

    def __init__(self, model, rows: int = 0, places: int = 0, most: int | None = None):
        """rows, places: room in the cache to begin with; more is made when rows join. most: places of all rows together
        that it does not exceed, as long as those that join leave it a choice."""
        self.sequences = Sequences(model, rows, places, most)
        self._groups: list[Sampled | Searched] = []
        self.goes_ahead = self.sequences.device.type == "cuda"
        self._begun: list[Ending] = []  # of a step that is under way
        self._numbers = count()

    @property
    def rows(self) -> int:
        """How many of the cache are taken up or will be."""
        return sum(group.width for group in self._groups)

    @torch.inference_mode()
    def add(self, rows: Sequence[Row]) -> list[int]:
        """Read the rows' contexts -> a number for each, by which events name it."""
        if not rows:
            return []
        numbers = [next(self._numbers) for _ in rows]
        going = [member.row for group in self._groups for member in group.members]
        self.sequences.reserve(self.rows + sum(row.width for row in rows), max(row.places for row in (*going, *rows)))
        for unidirectional, part in groupby(zip(numbers, rows, strict=True), lambda pair: pair[1].unidirectional):
            part = list(part)
            asked = ((row.context, row.shared_position, row.opened, row.has_places) for _, row in part)
            places = self.sequences.read(*zip(*asked, strict=True), unidirectional)
            kinds: dict[tuple, list[Member]] = {}
            for (number, row), place in zip(part, places, strict=True):
                kinds.setdefault(row.kind, []).append(Member(number, row, place))
            for kind, members in kinds.items():
                self._join(kind, members)
        return numbers

    def _join(self, kind: tuple, members: list[Member]) -> None:
        is_search = isinstance(kind[0], BeamParams)
        like = [group for group in self._groups if not is_search and (group.params, group.rules) == kind]
        if like:
            like[0].members += members
        else:
            self._groups.append((Searched if is_search else Sampled)(*kind, members, self.sequences.device))

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """One token for every row -> an event for each, in the order of their numbers; none when no row is left.

        Where a step was under way when a row joined, the row's first event comes with the next one.
        """
        while self._groups:
            begun, self._begun = self._begun or self._begin(), []
            if self.goes_ahead and all(group.may_go_ahead for group in self._groups):
                self._begun = self._begin()
            ended = [ending() for ending in begun]
            self._leave([place for _, places in ended for place in places])
            if events := [event for found, _ in ended for event in found]:
                return sorted(events, key=lambda event: event.number)
        return []

    def _begin(self) -> list[Ending]:
        first, *others = self._groups
        if not others and self.sequences.records_choices and (choice := first.choice):
            return [first.begin_whole(choice, self.sequences)]
        logits, endings = self.sequences.logits(any(group.needs_all for group in self._groups)), []
        for group in self._groups:
            index = index_of(group.places, self.sequences.device)
            endings.append(group.begin(logits.rows(index), self.sequences, index))
        return endings

    @torch.inference_mode()
    def drop(self, number: int) -> None:
        """Take out a row before it is complete; its places in the cache are free at once."""
        self._leave([place for group in self._groups for place in group.drop(number)])

    def _leave(self, places: list[int]) -> None:
        self._groups = [group for group in self._groups if group.width]
        self._begun = self._begun if self._groups else []
        if places:
            moved = self.sequences.leave(places)
            for group in self._groups:
                group.move(moved)


def generate(
    model,
    contexts: Sequence[Sequence[int]],
    params: SamplingParams | BeamParams,
    *,
    end_tokens: Sequence[int],
    limits: Sequence[int],
    shared_positions: Sequence[int | None] | None = None,
    unidirectional: bool = False,
    opened: Sequence[int] | None = None,
    has_places: bool = True,
    counted_lengths: Sequence[int] | None = None,
    invalid_ids: Sequence[int] = (),
    forbidden_starts: Sequence[Sequence[int]] = (),
    seeds: Sequence[Sequence[int]] | None = None,
    on_step: Callable[[list[tuple[int, int | None]]], None] | None = None,
    is_over: Callable[[Sequence[int]], bool] | None = None,
    at_once: int | None = None,
    on_answer: Callable[[int], None] | None = None,
) -> list[list[Answer]]:
    """Generate behind every context until an end token or the row's limit: per row its answers, best first.

    The arguments are fields of generation.groups.Row and generation.sampling.Rules, one for each row or one for all.
    on_step: called after every step with (row, token) for the rows still going; token is None under beam search.
    is_over: whether an answer ends with these ids; not asked under beam search.
    at_once: most contexts at a time, None: all; the next ones join as soon as a quarter of them have their answers,
    since contexts are read faster together.
    on_answer: called with a row as soon as its answers are there.
    Raises NonFinite where logits are NaN or infinite.
    """
    nothing = [None] * len(contexts)
    common = rules(end_tokens, invalid_ids, forbidden_starts)
    rows = [Row(context, params, limit, common, shared, unidirectional, begun or 0, has_places, counted, seed or ())
            for context, limit, shared, begun, counted, seed in zip(
                contexts, limits, shared_positions or nothing, opened or nothing, counted_lengths or nothing,
                seeds or nothing, strict=True)]
    at_once = min(at_once or len(rows), len(rows))
    batch = Batch(model, at_once * rows[0].width, max(row.places for row in rows))
    place: dict[int, int] = {}  # of the batch's numbers: which row each is
    answers: list[list[Answer]] = [[] for _ in rows]
    so_far: list[list[int]] = [[] for _ in rows]  # kept for is_over alone
    while len(place) < len(rows) or batch.rows:
        free, waiting = at_once - batch.rows // rows[0].width, len(rows) - len(place)
        if free >= min(waiting, -(-at_once // JOINING)) > 0:
            begin = len(place)
            place |= zip(batch.add(rows[begin:begin + free]), range(begin, len(rows)), strict=False)
        events = batch.step()
        if broken := [event for event in events if event.is_broken]:
            raise NonFinite([place[event.number] for event in broken], [event.answers[0][0] for event in broken])
        for event in events:
            row = place[event.number]
            if event.answers is not None:
                answers[row] = event.answers
            elif is_over is not None and event.token is not None:
                so_far[row].append(event.token)
                if is_over(so_far[row]):
                    answers[row] = [(so_far[row], None)]
                    batch.drop(event.number)
            if on_answer is not None and answers[row]:
                on_answer(row)
        if on_step is not None:
            on_step([(place[event.number], event.token) for event in events])
    return answers
