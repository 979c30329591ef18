"""The rows of a running batch inside the model: their cache, the next token of each and where it goes.

A row's context is read at once, but for its last token (sop, for a blank); from then on every row is given one token a
step. Each row fills its own places of the cache and sees no others, so a row's result is what it would be alone. Rows
in use lie at the front of the cache, so that a step meets them as one block: the last row takes the place of one that
leaves.
On a GPU a step is recorded (kernels.graphs) for a number of rows and of places to look at, both rounded up: what
a row's next token needs lies in one tensor there, and the host only knows how far the longest row is. Where all rows
are alike in how their tokens are chosen, the choice is recorded with it.
Copies of a row (beams) have its places in common: attention reads those of one row for all of them.
Shapes: b rows in use, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

import kernels
from generation.batching import CPU_READ_TOKENS, rounded
from generation.sampling import Choice
from glm.inputs import in_blank, padding_blocked, position_ids, prefix_causal_blocked, right_pad, row_positions
from glm.logits import Logits
from kernels import CHOICE_ROWS
from kernels.reference import Lengths, Shared

# What a row's next token needs; whose first places the row has in common, and how many (0: none); and the two numbers
# that its choice draws by.
_POSITION, _PLACE, _LENGTH, _TOKEN, _CONTEXT, _COMMON = range(6)
_KEY, _FACTS = slice(6, 8), 8
FEWEST_PLACES = 256  # that a recorded step looks at
MODEL, CHOICE = "decoding", "choosing tokens"  # what is recorded: without the choice, and with it


class Sequences:
    def __init__(self, model, rows: int = 0, places: int = 0, most: int | None = None):
        """rows, places: room to begin with; it grows when it is asked for (``reserve``). most: places of all rows
        together that the cache has at most, as long as no more are asked for."""
        self.model, self.most = model, most
        self.device = next(model.parameters()).device
        self.cache, self.count, self._graphs = None, 0, None
        self.lengths: list[int] = []  # of the rows in use: filled places, as the host knows them
        # of every row, and how it counts on
        self._state = torch.zeros(2, _FACTS, 0, dtype=torch.int64, device=self.device)
        self._has_copies = False  # whether rows in use may have places in common
        self._kept = None  # hidden states that the last two choices by approximate logits were made from, newest first
        self._choices = 0  # such choices
        self.reserve(rows, places)

    def reserve(self, rows: int, places: int) -> None:
        """Make room for so many rows of so many places each, those in use included. A larger cache takes over the old
        one's content, and stands beside it for that moment."""
        old, state = self.cache, self._state
        if old is not None and rows <= old.batch and places <= old.capacity:
            return
        if old is not None:  # joining row by row must not copy everything every time
            more_rows = old.batch if rows <= old.batch else max(rows, 2 * old.batch)
            more_places = old.capacity if places <= old.capacity else max(places, old.capacity * 3 // 2)
            if self.most is not None:
                more_places = max(places, min(more_places, self.most // rows))
                more_rows = max(rows, min(more_rows, self.most // more_places))
            rows, places = more_rows, more_places
        self.cache = self.model.new_cache(rows, places, is_clear=False) if rows and places else None
        self._state = torch.zeros(2, _FACTS, rows, dtype=torch.int64, device=self.device)
        self._state[..., :self.count] = state[..., :self.count]
        self._views: dict[int, tuple[torch.Tensor, ...]] = {}
        self._graphs = None if self.model.stream else kernels.graphs(self.device)  # the old ones are of the old cache
        if self._graphs is not None and self.model.vocabulary is not None:
            kept, weight = self._kept, self.model.head_weight
            self._kept = torch.zeros(2, rows, weight.shape[1], dtype=weight.dtype, device=self.device)
            if kept is not None:
                self._kept[:, :self.count] = kept[:, :self.count]
        if old is not None and self.count:
            longest = max(self.lengths)
            self.cache.take_over(old, self.count, longest)
            self.cache.clear(slice(0, self.count), longest)

    def read(self, contexts: Sequence[Sequence[int]], shared_positions: Sequence[int | None], opened: Sequence[int],
             has_places: Sequence[bool], unidirectional: bool) -> list[int]:
        """Rows for these contexts, whose keys and values are put into the cache; hidden states are of no use.

        shared_positions: of the blank's tokens, which are the last context token and all that follows; None: positions
        count up. opened: tokens in front of the last one that are the blank's, too. has_places: behind the last one
        they count on in the second channel.
        """
        first, self.count = self.count, self.count + len(contexts)
        lengths = [len(ids) - 1 for ids in contexts]
        self.lengths += lengths
        facts, read = [], []
        for ids, length, shared, begun, counts in zip(contexts, lengths, shared_positions, opened, has_places,
                                                      strict=True):
            position, advance = (length - begun, 1) if shared is None else (shared, 0)
            now, then = (in_blank(position, advance, step) for step in (begun, begun + 1))
            read.append((list(ids[:-1]), length - begun, row_positions(length - begun, [(position, advance, begun)])))
            facts.append(((*now, length, ids[-1], 0, 0, 0, 0),
                          (then[0] - now[0], (then[1] - now[1]) * counts, 1, 0, 0, 0, 0, 0)))
        self._state[..., first:self.count] = torch.tensor(facts, device=self.device).permute(1, 2, 0)
        self.cache.clear(slice(first, self.count))
        most = len(contexts)
        if self.device.type == "cpu":
            most = max(1, CPU_READ_TOKENS // max(1, *lengths))
        for begin in range(0, len(contexts), most):
            part = read[begin:begin + most]
            self._read(slice(first + begin, first + begin + len(part)), *zip(*part, strict=True), unidirectional)
        return list(range(first, self.count))

    def _read(self, rows: slice, contexts: Sequence[list[int]], prefixes: Sequence[int],
              positions: Sequence[tuple[list[int], list[int]]], unidirectional: bool) -> None:
        tokens, lengths = (part.to(self.device) for part in right_pad(contexts))
        width = tokens.shape[1]
        if width == 0:
            return
        positions = position_ids(self.model.config, *(right_pad(channel)[0].to(self.device)
                                                      for channel in zip(*positions, strict=True)))
        blocked = None
        if unidirectional or list(map(len, contexts)) != list(prefixes):
            prefix = torch.tensor(prefixes, device=self.device)
            blocked = prefix_causal_blocked(prefix * (not unidirectional), lengths, width)
        elif min(map(len, contexts)) < width:
            blocked = padding_blocked(lengths, width).expand(-1, width, -1)
        self.model.hidden_states(tokens, positions, blocked, self.cache.part(rows),
                                 places=torch.zeros(1, dtype=torch.int64, device=self.device))

    def logits(self, is_exact: bool = False) -> Logits:
        """Every row's next token goes in -> logits (b, v) of what follows, which the next call may overwrite; is_exact:
        see GLM.choices."""
        if self._may_record:
            rows, seen = self._bounds
            values = self._graphs.run(MODEL, (rows, seen, self._has_copies),
                                      lambda: self.model.head(self._hidden(rows, seen - 1)))
            logits = Logits(values[:self.count])
        else:
            longest, rows = max(self.lengths), self.count
            is_alike = rows == self.cache.batch and min(self.lengths) == longest and not self._has_copies
            logits = self.model.choices(self._hidden(rows, longest, is_alike), is_exact)  # unmasked: faster on a GPU
        state, pace, *_ = self._view(self.count)
        state += pace
        self.lengths = [length + 1 for length in self.lengths]
        return logits

    @property
    def records_choices(self) -> bool:
        return self._may_record and not self._graphs.has_failed(CHOICE)

    def chosen(self, choice: Choice, keys: torch.Tensor | None) -> tuple[torch.Tensor, int]:
        """`logits`, the choice of every row's next token and `go_on` in one, with keys (b, 2) int64 where it draws ->
        float32 (3 * b), which the next call may overwrite: tokens, exact below 2^24, the sums of logits, whether exact
        logits are sure to choose the same (0: `exactly` tells); and a number for `exactly`."""
        rows, seen = self._bounds
        is_exact = self._kept is None or rows > CHOICE_ROWS or not choice.needs_few
        if keys is not None:
            self._state[0, _KEY, :self.count] = keys.T
        numbers = self._graphs.run(CHOICE, (rows, seen, self._has_copies, choice),
                                   lambda: self._choose(rows, seen - 1, choice, is_exact))
        self.lengths = [length + 1 for length in self.lengths]
        self._choices += not is_exact
        return numbers[:, :self.count].flatten(), self._choices

    def _choose(self, rows: int, longest: int, choice: Choice, is_exact: bool) -> torch.Tensor:
        """For the first rows; the tokens of those not in use are never looked at."""
        hidden = self._hidden(rows, longest)
        logits = self.model.choices(hidden, is_exact, looks=False)
        sums, (state, pace) = logits.values.sum(-1), self._state[..., :rows]
        tokens = choice(logits, state[_KEY].T)
        if not is_exact:
            self._kept[1, :rows] = self._kept[0, :rows]
            self._kept[0, :rows] = hidden
        state[_TOKEN] = tokens
        state += pace
        is_sure = torch.ones_like(sums) if logits.decides is None else logits.decides.to(sums.dtype)
        return torch.stack((tokens.to(sums.dtype), sums, is_sure))

    def exactly(self, choice: Choice, keys: torch.Tensor | None, rows: Sequence[int], number: int) -> list[float]:
        """What `chosen` would have told of these rows, from exact logits: tokens, then sums. number: what it gave then;
        at most one choice has been begun since."""
        hidden = self._kept[self._choices - number].index_select(0, sent(rows, self.device))
        logits = Logits(self.model.head(hidden))
        sums = logits.values.sum(-1)
        return torch.cat((choice(logits, keys).to(sums.dtype), sums)).tolist()

    def go_back(self, row: int, steps: int, token: int) -> None:
        """Undo so many steps of a row, whose next token is this one. Places that they filled are filled again."""
        state, pace = self._state[..., row]
        state -= pace * steps
        state[_TOKEN] = token
        self.lengths[row] -= steps

    @property
    def _may_record(self) -> bool:
        """A position behind the learned ones is the host's to find."""
        if self._graphs is None:
            return False
        last = self.model.last_position
        return last is None or max(self.lengths) < last

    @property
    def _bounds(self) -> tuple[int, int]:
        """Rows of a recorded step, and places that it looks at."""
        seen = max(FEWEST_PLACES, rounded(max(self.lengths) + 1))
        return min(rounded(self.count), self.cache.batch), min(seen, self.cache.capacity)

    def _hidden(self, rows: int, longest: int, is_alike: bool = False) -> torch.Tensor:
        """(rows, h) of the first rows, those not in use included; the state stays, so that again means the same.
        is_alike: all are as long as the longest; otherwise no row is longer."""
        state, _, *where, token = self._view(rows)
        shared = Shared(state[_CONTEXT], state[_COMMON]) if self._has_copies else None
        self.cache.length = longest if is_alike else Lengths(state[_LENGTH].clone(), longest, shared)
        return self.model.hidden_states(token, position_ids(self.model.config, *where), None, self.cache)[:, -1]

    def _view(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Of the first rows: state, pace, positions, places and tokens (b, 1). Kept: a view costs microseconds."""
        if rows not in self._views:
            state, pace = self._state[..., :rows]
            self._views[rows] = state, pace, *(state[fact, :, None] for fact in (_POSITION, _PLACE, _TOKEN))
        return self._views[rows]

    def go_on(self, rows: torch.Tensor | slice, tokens: torch.Tensor) -> None:
        """The next tokens of some rows."""
        self._state[0, _TOKEN, rows] = tokens

    def copies(self, rows: Sequence[int], times: int) -> list[int]:
        """Make each of these rows `times` equal ones -> the numbers of all of them, row by row.

        They lie side by side if these rows are the last ones; otherwise each row stays, and its copies come last.
        """
        if times == 1:
            return list(rows)
        first, count = self.count - len(rows), self.count
        self.count += len(rows) * (times - 1)
        if list(rows) == list(range(first, count)):
            groups = [range(first + place, first + place + times) for place in range(0, len(rows) * times, times)]
        else:
            groups = [(row, *range(count + place, count + place + times - 1))
                      for row, place in zip(rows, range(0, len(rows) * times, times - 1), strict=False)]
        places, sources = [place for group in groups for place in group], [row for row in rows for _ in range(times)]
        for row, group in reversed(list(zip(rows, groups, strict=True))):  # a row is copied before it is written to
            new = group[row == group[0]:]
            self.cache.copy_row(row, slice(new[0], new[-1] + 1))
        self._state[..., places] = self._state[..., sources]
        common = [[group[0] for group in groups for _ in group], [self.lengths[row] for row in sources]]
        self._state[0, _CONTEXT:_COMMON + 1, places] = sent(common, self.device)
        self._has_copies = True
        of_row = dict(zip(places, [self.lengths[row] for row in sources], strict=True))
        self.lengths = [of_row[place] if place in of_row else self.lengths[place] for place in range(self.count)]
        return places

    def reorder(self, moves: Sequence[tuple[int, int, int]]) -> None:
        """For each (row, source, start): the row becomes a copy of the source, with which it agrees before `start`."""
        moves = [(row, source, start, self.lengths[row]) for row, source, start in moves if start < self.lengths[row]]
        if moves:
            self.cache.exchange(moves)

    def leave(self, rows: Sequence[int]) -> dict[int, int]:
        """Take out these rows -> old and new numbers of the rows that took their places."""
        gone, count = set(rows), self.count - len(rows)
        moving = [row for row in range(count, self.count) if row not in gone]
        holes = [row for row in sorted(gone) if row < count]
        if moving:
            for source, target in zip(moving, holes, strict=True):
                self.lengths[target] = self.lengths[source]
            here, there = sent(moving, self.device), sent(holes, self.device)
            self._state[..., there] = self._state[..., here]
            if self._kept is not None:
                self._kept[:, there] = self._kept[:, here]
            if self._has_copies:
                now = torch.arange(self._state.shape[-1], device=self.device).index_copy_(0, here, there)
                self._state[0, _CONTEXT] = now[self._state[0, _CONTEXT]]
            self.cache.move_rows(here, there, max(self.lengths[row] for row in holes))
        self._state[..., count:self.count] = 0  # a recorded step may compute rows that are not in use
        self._has_copies = self._has_copies and count > 0
        self.count, self.lengths = count, self.lengths[:count]
        return dict(zip(moving, holes, strict=True))


def sent(values: Sequence, device: torch.device) -> torch.Tensor:
    """Numbers of the host as a tensor, without waiting for what the device has yet to do."""
    tensor = torch.tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Coming:
    """Numbers of a device on their way to the host."""

    def __init__(self, *parts: torch.Tensor):
        """Vectors of float32, or of int64 below 2^24, exact as float32. From here on they may be overwritten."""
        self._event = None
        if parts[0].is_cuda:
            whole = torch.cat([part.float() for part in parts]) if len(parts) > 1 else parts[0]
            self._numbers = whole.to("cpu", non_blocking=True)  # one transfer
            self._event = torch.cuda.current_stream(whole.device).record_event()
        else:
            self._numbers = [number for part in parts for number in part.tolist()]

    def read(self) -> list:
        """All of them, part by part. Waits for them, and not for what the device was given to do since."""
        if self._event is None:
            return self._numbers
        self._event.synchronize()
        return self._numbers.tolist()
