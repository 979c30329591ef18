"""A model without a network: its logits are noise that depends on nothing but the ids and position a row may see.

So whatever the decode loop does to batch, padding, cache and beams, a row must get the same tokens, bit by bit.
"""

from types import SimpleNamespace

import numpy
import torch


class FakeCache:
    """(token, position) per place and row."""

    def __init__(self, batch: int, capacity: int):
        self.capacity, self.length = capacity, 0
        self.places = torch.full((batch, capacity, 2), -1)

    def select(self, rows):
        other = FakeCache(len(rows), self.capacity)
        other.length, other.places = self.length, self.places[rows].clone()
        return other

    def part(self, rows):
        other = FakeCache(0, self.capacity)
        other.length, other.places = self.length, self.places[rows]
        return other

    def reorder(self, parents, start):
        self.places[:, start:self.length] = self.places[parents, start:self.length]


class FakeModel:
    def __init__(self, vocab_size: int = 50, script=None, max_sequence_length: int = 64, sharpness: float = 2.0):
        """script(ids that the last token sees, itself included) -> the next id; noise if None."""
        self.config = SimpleNamespace(vocab_size=vocab_size, position_encoding_2d=False, num_layers=1, hidden_size=1,
                                      max_sequence_length=max_sequence_length)
        self.script, self.sharpness = script, sharpness
        self.rows_read = []  # rows of every forward pass

    def parameters(self):
        yield torch.zeros(1)

    def new_cache(self, batch, capacity):
        return FakeCache(batch, capacity)

    def hidden_states(self, tokens, position_ids, blocked=None, cache=None, places=None):
        b, s = tokens.shape
        self.rows_read.append(b)
        start = cache.length
        cache.length += s
        assert cache.length <= cache.capacity
        cache.places[:, start:cache.length] = torch.stack((tokens, position_ids), dim=-1)
        if blocked is None:
            blocked = torch.zeros(b, s, cache.length, dtype=torch.bool)
        assert blocked.shape == (b, s, cache.length)
        hidden = torch.zeros(b, s, self.config.vocab_size)
        for row in range(b):
            seen = cache.places[row, :cache.length][~blocked[row, -1]]
            hidden[row, -1] = self._logits(seen)
        return hidden if places is None else hidden.flatten(0, 1)[places]

    def head(self, hidden):
        return hidden.clone()

    def _logits(self, seen):
        if self.script is not None:
            return torch.nn.functional.one_hot(torch.tensor(self.script(seen[:, 0].tolist())),
                                               self.config.vocab_size) * 10.0
        noise = numpy.random.default_rng((seen.flatten() + 1).tolist())
        return torch.from_numpy(noise.standard_normal(self.config.vocab_size, dtype=numpy.float32)) * self.sharpness
