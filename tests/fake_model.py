"""A model without a network: its logits are noise that depends on nothing but the ids and position a row may see.

So whatever the decode loop does to batch, padding, cache and beams, a row must get the same tokens, bit by bit.
"""

from types import SimpleNamespace

import numpy
import torch

from glm.cache import KVCache
from glm.logits import Logits
from glm.prompt_form import PromptForm
from kernels.reference import Lengths


class FakeModel:
    def __init__(self, vocab_size: int = 50, script=None, max_sequence_length: int = 64, sharpness: float = 2.0):
        """script(ids that the last token sees, itself included) -> the next id; noise if None."""
        self.config = SimpleNamespace(prompt_form=PromptForm(), vocab_size=vocab_size,
                                      position_encoding_2d=False, num_layers=1, key_value_heads=1, head_size=1,
                                      max_sequence_length=max_sequence_length)
        self.script, self.sharpness = script, sharpness
        self.stream = self.last_position = self.vocabulary = None
        self.rows_read = []  # rows of every forward pass

    def parameters(self):
        yield torch.zeros(1)

    def new_cache(self, batch, capacity, is_clear=True):
        """Keys are (token, position)."""
        return KVCache.allocate(1, batch, 1, capacity, 2, torch.int64, "cpu", is_clear)

    def hidden_states(self, tokens, position_ids, blocked=None, cache=None, places=None):
        b, s = tokens.shape
        self.rows_read.append(b)
        starts = cache.length.each.tolist() if isinstance(cache.length, Lengths) else [cache.length] * b
        assert max(starts) + s <= cache.capacity and len(starts) == b
        hidden = torch.zeros(b, s, self.config.vocab_size)
        for row, start in enumerate(starts):
            seen = cache.keys[0][row, 0, :start + s]
            seen[start:] = torch.stack((tokens[row], position_ids[row]), dim=-1)
            if blocked is not None:
                assert blocked.shape == (b, s, start + s)
                seen = seen[~blocked[row, -1]]
            hidden[row, -1] = self._logits(seen)
        cache.advance(s)
        return hidden if places is None else hidden.flatten(0, 1)[places]

    def head(self, hidden):
        return hidden.clone()

    def choices(self, hidden, is_exact=False, looks=True):
        return Logits(self.head(hidden))

    def _logits(self, seen):
        if self.script is not None:
            return torch.nn.functional.one_hot(torch.tensor(self.script(seen[:, 0].tolist())),
                                               self.config.vocab_size) * 10.0
        noise = numpy.random.default_rng((seen.flatten() + 1).tolist())
        return torch.from_numpy(noise.standard_normal(self.config.vocab_size, dtype=numpy.float32)) * self.sharpness
