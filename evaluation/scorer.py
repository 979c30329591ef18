"""The narrow waist: everything that the evaluation asks of a model, one batch at a time.

A batch of contexts with their continuations is one forward pass. What several contexts begin with is read once, and
logits are computed at the scored places only.
Shapes: b rows, s sequence, h hidden, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

import kernels
from evaluation.requests import GenerateRequest, Pack, Request, ScoreRequest, packs_of
from generation.batch import generate
from generation.texts import cut
from glm.diagnose import diagnose
from glm.inputs import position_ids, right_pad, row_positions, whole_row
from kernels import FEW_ROWS, scored_bytes
from runtime.errors import NonFinite
from runtime.mapped import check_unchanged

PADDING, NO_SEGMENT = -1, -2
# In float32 a score must not feel the batch that it was computed in. Products of few rows sum in another order than
# those of many, and attention sums in vectors of 16: so there are never few rows, and widths are multiples of 16.
VECTOR = 16


def padded_places(count: int) -> int:
    """So many scored places, in float32."""
    return max(count, FEW_ROWS)


def padded_width(width: int, rows: int) -> int:
    """Of so many rows, in float32."""
    return -(-max(width, -(-FEW_ROWS // rows)) // VECTOR) * VECTOR


class Choice(NamedTuple):
    """What the model makes of one continuation."""

    log_prob: float  # nats, the sum over its tokens
    is_greedy: bool  # at no place a token is likelier than its own


class Scorer:
    """Answers requests with a model. An answer is a value that JSON can hold:

    ScoreRequest -> {"log_probs": [one per continuation], "is_greedy": [one per continuation]}
    GenerateRequest -> {"beams": [ids without end token, best first], "scores": [float or None]}
    Raises NonFinite, with the layer and rank, where the model gives NaN or infinity.
    """

    def __init__(self, model, tokenizer=None):
        """tokenizer: needed for requests with stop texts alone."""
        self.model, self.tokenizer = model, tokenizer
        parameter = next(model.parameters())
        self.device, self.is_exact = parameter.device, parameter.dtype == torch.float32

    def answer(self, requests: Sequence[Request], at_once: int | None = None,
               on_answer: Callable[[int], None] | None = None) -> list[dict]:
        """Answers of one batch, in order; all requests must be of one family. at_once: most that are generated at a
        time; None: all. on_answer: called with a request's place as soon as it is generated."""
        try:
            if isinstance(requests[0], ScoreRequest):
                return [{"log_probs": [each.log_prob for each in row], "is_greedy": [each.is_greedy for each in row]}
                        for row in self.choices(requests)]
            return self.generate(requests, at_once, on_answer)
        finally:  # what was computed with other weights than were loaded is no answer
            check_unchanged(self.model)

    def window_losses(self, requests: Sequence[ScoreRequest]) -> list[float]:
        """Summed cross entropy (nats) of every request's only continuation."""
        return [-row[0] for row in self.choice_log_probs(requests)]

    def choice_log_probs(self, requests: Sequence[ScoreRequest]) -> list[list[float]]:
        """Per request, the log-probability of each of its continuations: the sum over its tokens."""
        return [[choice.log_prob for choice in row] for row in self.choices(requests)]

    @torch.inference_mode()
    def choices(self, requests: Sequence[ScoreRequest]) -> list[list[Choice]]:
        """Per request, what the model makes of each of its continuations."""
        packs = packs_of(requests, range(len(requests)))
        tokens, positions, segments, behind, prefix, begins = self._inputs(requests, packs)
        blocked = segments_blocked(segments, prefix, behind if len(packs) < len(requests) else None)
        row_of = {index: row for row, pack in enumerate(packs) for index in pack.members}
        places, owners, targets = _scored(
            requests, [row_of[index] * tokens.shape[1] + begin for index, begin in enumerate(begins)])
        if self.is_exact:
            places += places[-1:] * (padded_places(len(places)) - len(places))
        hidden = self.model.hidden_states(tokens, positions, blocked, places=torch.tensor(places, device=self.device))
        log_probs, is_best = self._token_scores(hidden, owners, targets)
        sizes = [len(ids) for request in requests for ids in request.continuations]
        choices = iter(Choice(one.sum().item(), bool(best.all())) for one, best in zip(
            log_probs.cpu().double().split(sizes), is_best.cpu().split(sizes), strict=True))
        found = [[next(choices) for _ in request.continuations] for request in requests]
        if hit := [index for index, row in enumerate(found) if not all(math.isfinite(one.log_prob) for one in row)]:
            row = row_of[hit[0]]
            for index in packs[row].members if len(packs[row].members) > 1 else ():
                try:  # each by itself, since masked places of a row spread NaN, too
                    self.choices([requests[index]])
                except NonFinite as error:
                    raise NonFinite([index], why=str(error)) from None
            one = slice(row, row + 1)
            raise NonFinite(hit, why=diagnose(self.model, tokens[one], positions[one], blocked[one]))
        return found

    def generate(self, requests: Sequence[GenerateRequest], at_once: int | None = None,
                 on_answer: Callable[[int], None] | None = None) -> list[dict]:
        """Generated ids, best first, without their end token. at_once, on_answer: as in `answer`."""
        first = requests[0]
        try:
            answers = generate(
                self.model, [request.context for request in requests], first.params, end_tokens=first.end_tokens,
                limits=[request.limit for request in requests],
                shared_positions=[request.shared_position for request in requests],
                unidirectional=first.unidirectional, opened=[request.opened for request in requests],
                counted_lengths=[request.counted_length for request in requests],
                invalid_ids=first.invalid_ids, forbidden_starts=first.forbidden_starts,
                is_over=self._has_stopped(first.stops) if first.stops else None, at_once=at_once,
                on_answer=on_answer)
        except NonFinite as error:
            place = generation_input(self.model, requests[error.rows[0]], error.generated[0])
            raise NonFinite(error.rows, error.generated, diagnose(self.model, *place)) from None
        ends = set(first.end_tokens)
        return [{"beams": [ids[:-1] if ids and ids[-1] in ends else ids for ids, _ in beams],
                 "scores": [score for _, score in beams]} for beams in answers]

    def _has_stopped(self, stops: Sequence[str]) -> Callable[[Sequence[int]], bool]:
        """An answer's ids -> whether a stop text has come."""
        def has_stopped(ids: Sequence[int]) -> bool:
            text = self.tokenizer.decode(ids)
            return cut(text, stops) != text

        return has_stopped

    def _inputs(self, requests: Sequence[ScoreRequest], packs: Sequence[Pack]) -> tuple:
        """A row for each pack: tokens (b, s), positions (b, s) or (b, 2, s), segments, behind (b, s) and prefix (b,) as
        in segments_blocked; and of every request, the place in its row behind its context."""
        tokens, positions, places, segments, behind, begins = [], [], [], [], [], {}
        for pack in packs:
            row, position, place, segment, sees, last = [], [], [], [], [], 0
            for index in pack.members:
                request, c = requests[index], len(requests[index].context)
                longest, blank = max(map(len, request.segments)), c - request.opened
                at = row_positions(blank, [(request.first_position, request.advance, request.opened + longest)])
                begin, rest = pack.common if row else 0, last + 1  # number of what is left of the context
                for number, ids in enumerate((request.context[begin:], *request.segments)):
                    start = c if number else begin
                    is_context = number == 0 and not row
                    row += ids
                    position += at[0][start:start + len(ids)]
                    place += at[1][start:start + len(ids)]
                    segment += [0] * pack.common + [rest] * (len(ids) - pack.common) if is_context else (
                        [rest + number] * len(ids))
                    sees += [rest] * len(ids)
                    if number == 0:
                        begins[index] = len(row)
                last = rest + len(request.segments)
            tokens.append(row)
            positions.append(position)
            places.append(place)
            segments.append(segment)
            behind.append(sees)
        width = max(map(len, tokens))
        if self.is_exact:
            width = padded_width(width, len(packs))
        padded, position, place, segment, sees = (
            right_pad([*rows, [fill] * width], fill)[0][:-1].to(self.device)
            for rows, fill in ((tokens, 0), (positions, 0), (places, 0), (segments, PADDING), (behind, 0)))
        positions = position_ids(self.model.config, position, place)
        firsts = [requests[pack.members[0]] for pack in packs]
        prefix = [0 if request.causal else len(request.context) - request.opened for request in firsts]
        return (padded, positions, segment, sees, torch.tensor(prefix, device=self.device),
                [begins[index] for index in range(len(requests))])

    def _token_scores(self, hidden: torch.Tensor, owners: list[int],
                      targets: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden (n, h) -> for every target, of targets[i] at hidden[owners[i]]: its log-probability, float32, and
        whether no token's is higher, bool.

        owners never decrease, so that a slice of hidden is one of targets.
        """
        owner, target = torch.tensor(owners, device=self.device), torch.tensor(targets, device=self.device)
        most = max(FEW_ROWS, scored_bytes(self.device.type) // (4 * self.model.config.vocab_size))
        n = len(hidden)
        step = -(-n // -(-n // most))  # all parts alike: the last one is not of few rows
        found, is_best, begin = [], [], 0
        for start in range(0, n, step):
            logits = self.model.head(hidden[start:start + step])
            end = begin
            while end < len(owners) and owners[end] < start + step:
                end += 1
            row = owner[begin:end] - start
            highest, sums = kernels.backend(logits).log_sums(logits)
            chosen = logits[row, target[begin:end]]
            found.append(chosen - sums[row])
            is_best.append(chosen == highest[row])
            begin = end
        return torch.cat(found), torch.cat(is_best)


def segments_blocked(segments: torch.Tensor, prefix: torch.Tensor,
                     behind: torch.Tensor | None = None) -> torch.Tensor:
    """The mask of packed continuations, bool (b, s, s), True = must not attend.

    segments: (b, s), 0 for the context, 1, 2, ... for the continuations behind it, PADDING behind the end.
    prefix: (b,), how many of the context's tokens all see; the others are seen from their right alone.
    behind: (b, s), a segment that tokens see beside their own and the context: the rest of a longer context.
    [0 0 1 1 2 -1], prefix 2:
        . . x x x x
        . . x x x x
        . . . x x x
        . . . . x x
        . . x x . x     the second continuation does not see the first
        . . x x x x     padding: whatever it sees, nobody looks at it
    """
    s = segments.shape[1]
    keys = segments.to(torch.int32)[:, None, :]
    queries = torch.where(segments == PADDING, NO_SEGMENT, segments).to(torch.int32)[:, :, None]
    blocked = queries != keys
    if behind is not None:
        blocked &= behind.to(torch.int32)[:, :, None] != keys
    of_context, places = keys == 0, torch.arange(s, device=segments.device)
    blocked &= ~of_context
    hides_future = ~of_context | (places >= prefix[:, None])[:, None, :]
    blocked |= (places > places[:, None]) & hides_future
    return blocked


def _scored(requests: Sequence[ScoreRequest], begins: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Places of the flattened batch whose logits are needed, and for each scored token which of them, and its id.

    begins: of every request, the place behind its context.
    """
    places, owners, targets = [], [], []
    for request, place in zip(requests, begins, strict=True):
        is_shared = len(request.segments) < len(request.continuations)
        for number, ids in enumerate(request.continuations):
            for target in ids:
                if number == 0 or not is_shared:
                    places.append(place)
                    place += 1
                owners.append(len(places) - 1)
                targets.append(target)
    return places, owners, targets


def generation_input(model, request: GenerateRequest, generated: list[int]) -> tuple[torch.Tensor, ...]:
    """tokens, position_ids, blocked of a request's context and what has been generated behind it, read at once."""
    begin = len(request.context) - 1 - request.opened  # of the blank
    return whole_row(model.config, [*request.context, *generated], begin, request.shared_position,
                     request.unidirectional, next(model.parameters()).device)
