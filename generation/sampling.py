"""Choosing the next token: what may not come, and pure functions of logits, and of keys where chance comes in.

Nothing here draws by itself: every row brings a key per step (`keys_of`), a function of its seeds alone, and a token's
noise is a hash of key and id. So a row gets the same tokens alone, in a batch, on any device and on every
tensor-parallel rank. A draw is the argmax of logits plus Gumbel noise, because that hardly feels how logits are
rounded, which differs from batch to batch; inverting a cumulative distribution of many tokens does feel it.
Shapes: b rows, v vocabulary, c candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy
import torch

import kernels
from generation.params import SamplingParams
from glm.logits import Logits, Refine
from kernels import SPARE

FORBIDDEN = -65504.0  # the original's value: the least half; kept, because scores of golden data were made with it
_32_BITS = 0xFFFFFFFF
Score = tuple[float, list[tuple[int, float]]]  # a token's log-probability; the likeliest ids at its place, with theirs
_SHORTLIST = 256  # tokens that nearly always hold the nucleus; a full sort is needed only where they do not
REFINED = 64  # exact logits where all count: the logarithm of their exponentials' sum is then right to 1e-4


def forbid_(logits: torch.Tensor, ids: slice | torch.Tensor) -> torch.Tensor:
    """Give `ids` (a slice or an int64 tensor) of every row of `logits` (..., v) the forbidden value, in place."""
    if isinstance(ids, slice):
        logits[..., ids] = FORBIDDEN
        return logits
    return logits.index_fill_(-1, ids, FORBIDDEN)


def penalise_(logits: torch.Tensor, rows: Sequence[Collection[int]], penalty: float) -> None:
    """Make the ids of each row less likely in logits (b, v), in place: those above 0 are divided by the penalty, those
    below multiplied by it (Keskar et al. 2019, as transformers applies it)."""
    for row, ids in zip(logits, rows, strict=True):
        index = torch.tensor(list(ids), device=logits.device)
        values = row[index]
        row[index] = torch.where(values < 0, values * penalty, values / penalty)


def keys_of(seeds: Sequence[int], count: int) -> torch.Tensor:
    """(count, 2) int64 of 32 bits each, which depend on `seeds` (seed, number of the blank, the prompt's ids) alone."""
    # hashed: numpy takes lists for equal that differ in zeros at their end, or in where a large number is cut
    digest = hashlib.sha256(",".join(map(str, seeds)).encode()).digest()
    return torch.from_numpy(numpy.random.default_rng(int.from_bytes(digest, "big")).integers(0, 2**32, (count, 2)))


def uniforms(ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Uniform numbers between 0 and 1, (b, c) float32, for ids (b, c) or (c) int64 and keys (b, 2): a hash, equal for
    equal input.

    The hash multiplies and shifts in the manner of lowbias32 (Chris Wellons, 2018); products stay below 2^63.
    """
    x = (ids * 0x1E3779B1 + keys[:, :1]) & _32_BITS
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & _32_BITS
    x = x ^ keys[:, 1:]
    x = ((x ^ (x >> 15)) * 0x046CA68B) & _32_BITS
    x = x ^ (x >> 16)
    return x.to(torch.float32) * 2.0**-32 + 2.0**-33


def all_uniforms(count: int, keys: torch.Tensor) -> torch.Tensor:
    """Those of the ids 0 ... count - 1, (b, count)."""
    compiled = kernels.compiled() if keys.device.type == "cpu" else None
    return compiled.uniforms(keys, count) if compiled else uniforms(torch.arange(count, device=keys.device), keys)


def exponentials_(uniform: torch.Tensor) -> torch.Tensor:
    """Unit exponential noise of uniform numbers, in place."""
    return uniform.neg_().log1p_().neg_()  # small values decide a draw: they are the exact ones of log1p


def gumbels_(uniform: torch.Tensor) -> torch.Tensor:
    """Gumbel noise of uniform numbers, in place: the largest sum of a logit and its noise is drawn from the softmax."""
    return exponentials_(uniform).log_().neg_()


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
    if not is_at_hand(logits) or logits.shape[-1] <= 4 * _SHORTLIST:
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


def draw(logits: torch.Tensor, ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Places (b,) in logits (b, c), drawn from their softmax. ids (b, c) or (c): the tokens that the logits are of."""
    return (logits + gumbels_(uniforms(ids, keys))).argmax(dim=-1)


def sample(logits: torch.Tensor, params: SamplingParams, keys: torch.Tensor | None,
           refine: Refine | None = None) -> torch.Tensor:
    """Next tokens (b,) for float32 logits (b, v): temperature, then top-k, then top-p, then one draw each.

    keys: (b, 2) int64, see keys_of. top_k 1 is greedy, looks at nothing else and needs no keys.
    refine: makes the best logits exact, in place (glm.logits.Logits; None: all are); the token is that of exact logits
    then. Only how likely the nucleus is as a whole is known to 1e-4 (REFINED), which may add or drop its last token.
    """
    refine = partial(refine or Logits(logits).refine, least=FORBIDDEN)
    if params.top_k == 1:
        refine(1)
        return best(logits)
    if 0 < params.top_p < 1:
        ids, logits = _refined_nucleus(logits, params, refine)
        return ids.gather(-1, draw(logits, ids, keys)[:, None])[:, 0]
    if params.top_k and is_at_hand(logits):
        refine(params.top_k)
        logits = _scaled(logits, params)
        ids = (logits != -torch.inf).any(dim=0).nonzero()[:, 0]
        return ids[draw(logits[:, ids], ids, keys)]
    noise = gumbels_(all_uniforms(logits.shape[-1], keys))
    if params.top_k:
        refine(params.top_k)
    else:
        refine(1, noise * params.temperature)
    return best(_scaled(logits, params) + noise)


def is_at_hand(values: torch.Tensor) -> bool:
    """Whether the host may look at them: on a GPU it would wait, and what waits cannot be recorded."""
    return values.device.type == "cpu"


def best(logits: torch.Tensor) -> torch.Tensor:
    """The place (b,) of the largest of logits (b, v), the first of equals. On a CPU argmax takes 2.5 times as long."""
    return logits.max(dim=-1).indices if logits.device.type == "cpu" else logits.argmax(dim=-1)


def _scaled(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    logits = logits if params.temperature == 1.0 else logits / params.temperature
    return keep_top_k(logits, params.top_k)


def _refined_nucleus(logits: torch.Tensor, params: SamplingParams, refine: Refine) -> tuple[torch.Tensor, torch.Tensor]:
    """`nucleus`, all of whose tokens have exact logits."""
    count = params.top_k or REFINED
    is_approximate = refine(count)
    ids, kept = nucleus(_scaled(logits, params), params.top_p)
    while is_approximate and not params.top_k and count < (widest := int(kept.isfinite().sum(dim=-1).max())):
        count = widest + widest // 4
        refine(count)
        ids, kept = nucleus(_scaled(logits, params), params.top_p)
    return ids, kept


class Rules(NamedTuple):
    """What may not be generated, whatever the strategy."""

    end_tokens: tuple[int, ...]
    invalid_ids: tuple[int, ...] = ()  # never generated
    forbidden_starts: tuple[tuple[int, ...], ...] = ()  # ids that no answer may begin with


def rules(end_tokens: Sequence[int], invalid_ids: Sequence[int] = (),
          forbidden_starts: Sequence[Sequence[int]] = ()) -> Rules:
    return Rules(tuple(end_tokens), tuple(sorted(invalid_ids)), tuple(map(tuple, forbidden_starts)))


class Ruling:
    """Rules as tensors on a device. Everything works on logits (..., v), in place."""

    def __init__(self, given: Rules, device: torch.device):
        self._ends = torch.tensor(given.end_tokens, device=device)
        self._invalid = torch.tensor(given.invalid_ids, device=device) if given.invalid_ids else None
        self._starts = [(torch.tensor(ids[:-1], device=device), ids[-1]) for ids in given.forbidden_starts]
        self.longest_start = max(map(len, given.forbidden_starts), default=0)  # tokens; behind them anything may come

    def forbid_invalid_(self, logits: torch.Tensor) -> None:
        if self._invalid is not None:
            forbid_(logits, self._invalid)

    def forbid_ends_(self, logits: torch.Tensor) -> None:
        forbid_(logits, self._ends)

    def forbid_starts_(self, logits: torch.Tensor, generated: torch.Tensor) -> None:
        """generated (..., t): the ids that each row or beam has generated so far."""
        for beginning, last in self._starts:
            if len(beginning) == generated.shape[-1]:
                begun = (generated == beginning).all(-1)
                logits[..., last] = torch.where(begun, FORBIDDEN, logits[..., last])


@dataclass(frozen=True)
class Choice:
    """How tokens are chosen for rows that are alike in that: by logits and keys alone, without a look at either, so
    that it can be recorded. Equal ones do the same."""

    params: SamplingParams
    rules: Rules
    forbids_ends: bool  # an answer may not end here
    ruling: Ruling = field(compare=False)  # the rules' tensors

    @property
    def needs_few(self) -> bool:
        """Whether exact logits of so few of the likeliest tokens decide it that they are found without a look."""
        params = self.params
        return 0 < params.top_k <= SPARE if params.top_k else not 0 < params.top_p < 1

    def __call__(self, found: Logits, keys: torch.Tensor) -> torch.Tensor:
        """Logits of b rows, which are written to, keys (b, 2) -> tokens (b,)."""
        self.ruling.forbid_invalid_(found.values)
        if self.forbids_ends:
            self.ruling.forbid_ends_(found.values)
        return sample(found.values, self.params, keys, found.refine)


def scores(logits: torch.Tensor, chosen: torch.Tensor, alternatives: Sequence[int]) -> list[Score]:
    """float32 logits (b, v), chosen ids (b,), how many alternatives each row wants -> a score for each row.

    Natural logarithms of the softmax, the likeliest first. Where any are wanted the chosen token is among them, with
    the very same number.
    """
    log_probabilities = logits.log_softmax(-1)
    own = log_probabilities.gather(-1, chosen[:, None])[:, 0].tolist()
    values, ids = log_probabilities.topk(min(max(alternatives), logits.shape[-1]), dim=-1)
    found = []
    for value, token, likeliest, numbers, most in zip(own, chosen.tolist(), ids.tolist(), values.tolist(), alternatives,
                                                      strict=True):
        pairs = list(zip(likeliest, numbers, strict=True))[:most]
        found.append((value, [*pairs, (token, value)] if most and token not in likeliest[:most] else pairs))
    return found
