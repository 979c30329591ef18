"""Log-probabilities of a text read from left to right, as a causal model gives them; for other families in their blank.
"""

from __future__ import annotations

import torch

from generation.sampling import Score, scores
from glm.inputs import whole_row
from serving.jobs import Scored

LOGITS_BYTES = 64 << 20  # of float32 logits at a time, whatever the vocabulary


@torch.inference_mode()
def score(model, asked: Scored) -> list[Score]:
    """For every id but the first: its log-probability behind those before it, with the alternatives."""
    context = asked.context
    s = len(context.ids)
    begin = s if context.causal else s - 1 - context.opened  # of the blank
    tokens, positions, blocked = whole_row(model.config, context.ids, begin, context.shared_position, context.causal,
                                           next(model.parameters()).device)
    hidden = model.hidden_states(tokens, positions, blocked)[0, :-1]
    step, found = max(1, LOGITS_BYTES // (4 * model.config.vocab_size)), []
    for begin in range(0, s - 1, step):
        part = model.head(hidden[begin:begin + step])
        found += scores(part, tokens[0, begin + 1:begin + 1 + len(part)], [asked.alternatives] * len(part))
    return found
