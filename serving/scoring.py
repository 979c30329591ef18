"""Log-probabilities of a text read from left to right, as a causal model gives them."""

from __future__ import annotations

import torch

from generation.sampling import Score, scores
from glm.inputs import prefix_causal_blocked
from serving.engine import Scored

LOGITS_BYTES = 64 << 20  # of float32 logits at a time, whatever the vocabulary


@torch.inference_mode()
def score(model, asked: Scored) -> list[Score]:
    """For every id but the first: its log-probability behind those before it, with the alternatives."""
    device = next(model.parameters()).device
    tokens = torch.tensor([asked.ids], device=device)
    s = tokens.shape[1]
    positions = torch.arange(s, device=device)[None]
    if model.config.position_encoding_2d:
        positions = torch.stack((positions, torch.zeros_like(positions)), dim=1)
    length = torch.tensor([s], device=device)
    blocked = prefix_causal_blocked(torch.zeros_like(length), length, s)
    hidden = model.hidden_states(tokens, positions, blocked)[0, :-1]
    step, found = max(1, LOGITS_BYTES // (4 * model.config.vocab_size)), []
    for begin in range(0, s - 1, step):
        part = model.head(hidden[begin:begin + step])
        found += scores(part, tokens[0, begin + 1:begin + 1 + len(part)], [asked.alternatives] * len(part))
    return found
