"""Choosing the next token: pure functions of logits, and of uniform numbers where chance comes in.

Nothing here draws by itself: every row brings its own uniform numbers (`uniforms`), a function of its seed alone. So
a row gets the same tokens alone, in a batch, on any device and on every tensor-parallel rank.
Shapes: b rows, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch

FORBIDDEN = -65504.0  # the original's value: the least half; kept, because scores of golden data were made with it
_SHORTLIST = 256  # tokens that nearly always hold the nucleus; a full sort is needed only where they do not


def forbid_(logits: torch.Tensor, ids: slice | torch.Tensor) -> torch.Tensor:
    """Give `ids` (a slice or an int64 tensor) of every row of `logits` (..., v) the forbidden value, in place."""
    if isinstance(ids, slice):
        logits[..., ids] = FORBIDDEN
        return logits
    return logits.index_fill_(-1, ids, FORBIDDEN)


def uniforms(seeds: Sequence[int], count: int) -> torch.Tensor:
    """`count` numbers of [0, 1), float64, which depend on `seeds` (whole numbers, such as seed and blank) alone."""
    return torch.from_numpy(numpy.random.default_rng(list(seeds)).random(count))


def keep_top_k(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Logits (b, v) with -inf below the k-th largest; equals of the k-th largest all stay. 0 keeps everything."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    least = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, float("-inf"))


def nucleus(logits: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest leading sets of tokens whose probability exceeds `top_p`.

    Returns ids (b, c) from the likeliest down (equals by id) and their logits, -inf where a token is left out.
    """
    values, ids, kept = _shortlist(logits, top_p)
    if values is None:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        kept = _leading(values.softmax(dim=-1), top_p)
    return ids, values.masked_fill(~kept, float("-inf"))


def _leading(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Which tokens (b, c), in falling order, have at most `top_p` before them."""
    return probabilities.cumsum(dim=-1) - probabilities <= top_p


def _shortlist(logits: torch.Tensor, top_p: float):
    """`nucleus` from a short list instead of a sorted vocabulary; (None, None, None) if a row's nucleus is longer.

    Looking at the result waits for the device, which costs nothing on a CPU only.
    """
    if logits.device.type != "cpu" or logits.shape[-1] <= 4 * _SHORTLIST:
        return None, None, None
    values, ids = logits.topk(_SHORTLIST, dim=-1)
    ids, order = ids.sort(dim=-1)  # by id, then stably by value: the order that the stable sort of everything has
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)
    kept = _leading((values - logits.logsumexp(dim=-1, keepdim=True)).exp(), top_p)
    # equals of the last value may lie outside the list: then the list does not tell which of them come first
    if (kept & (values <= values[..., -1:])).any():
        return None, None, None
    return values, ids, kept


def invert(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Places (b,) drawn from the softmax of logits (b, c): where the running sum passes `uniform` (b,) of the total."""
    running = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total = running[:, -1:]
    # rounding must not push the mark up to the total, behind which only tokens of probability 0 lie
    mark = torch.minimum(uniform[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(running, mark, right=True)[:, 0]


def sample(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, uniform: torch.Tensor) -> torch.Tensor:
    """Next tokens (b,) for float32 logits (b, v): temperature, then top-k, then top-p, then one draw each.

    uniform: (b,) float64, one number of [0, 1) per row. top_k 1 is greedy and looks at nothing else.
    """
    if top_k == 1:
        return logits.argmax(dim=-1)
    logits = keep_top_k(logits if temperature == 1.0 else logits / temperature, top_k)
    if not 0 < top_p < 1:
        return invert(logits, uniform)
    ids, logits = nucleus(logits, top_p)
    return ids.gather(-1, invert(logits, uniform)[:, None])[:, 0]
