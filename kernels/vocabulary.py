"""Logits from a vocabulary's matrix in INT8, the best of which are computed again from the exact rows.

Decoding reads all of the matrix for a token and uses little of what it finds: a greedy choice the best logit, top-k the
best k. In INT8 there is half as much to read, or a quarter; and an INT8 logit is wrong by a known amount at most, since
by Cauchy and Schwarz

    |x . w - x . w'| <= |x| |w - w'|        w a row, w' what its INT8 integers stand for

So whatever may be among the best k of the exact logits has an upper end (logit + error) that is not below the k-th
largest lower end (logit - error). These are few: of the embedded model 1.6 for the best one, 70 for the best 50. With
them computed again the best k of the result are those of the exact product, and all others are less than these.

How many they are is seen by looking, for which a recorded step on a GPU cannot wait. There a fixed number of rows with
the largest upper ends is computed again, and what comes out says of itself whether that was enough: all the others'
upper ends lie below the k-th of the exact logits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import SPARE, reference
from kernels.packing import dequantize
from runtime.pages import LargePages

_INTEGER_ROUNDING = 2.0**-12  # of |x| |w'|, at most: x as 16-bit integers (kernels/cpu/integers.h)
_FLOAT_ROUNDING = 2.0**-23  # for each column: sums in float32, of two products
_PIECE, _GPU_PIECE = 1 << 18, 1 << 24  # weights that are packed at a time: they stay in the cache; few kernels


class PackedVocabulary(NamedTuple):
    """A vocabulary's matrix (v, k) in INT8, by rows."""

    weight: Tensor  # int8 (v, k)
    scale: Tensor  # float32 (v,)
    error: Tensor  # float32 (v,): what a row's logit is wrong by at most, for an x of length 1


def pack(weight: Tensor) -> PackedVocabulary:
    """Of weight (v, k), on its device; on the host in pages of 2 MB. A row that has NaN or infinities comes to have a
    logit of NaN."""
    (rows, columns), is_on_host = weight.shape, weight.device.type == "cpu"
    integers = LargePages().empty((rows, columns), torch.int8) if is_on_host else torch.empty(
        rows, columns, dtype=torch.int8, device=weight.device)
    packed = PackedVocabulary(integers, *torch.empty(2, rows, device=weight.device).unbind())
    step = max(1, (_PIECE if is_on_host else _GPU_PIECE) // max(1, columns))
    for first in range(0, rows, step):
        part = slice(first, first + step)
        for place, values in zip(packed, _packed_rows(weight[part].float()), strict=True):
            place[part] = values
    return packed


def _packed_rows(exact: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = exact.abs().amax(dim=1) / 127
    integers = (exact / scale.masked_fill(scale == 0, 1)[:, None]).nan_to_num(0, 0, 0).round().to(torch.int8)
    rounding = _INTEGER_ROUNDING + (exact.shape[1] + 64) * _FLOAT_ROUNDING
    lost = (exact - dequantize(integers, scale, 8, torch.float32)).norm(dim=1)
    return integers, scale, lost + rounding * exact.norm(dim=1)


def approximate(x: Tensor, packed: PackedVocabulary, operations=reference) -> Tensor:
    """x (b, k), b at most CHOICE_ROWS -> float32 logits (b, v); on a GPU rounded to x's dtype. operations: the
    backend's."""
    x = x.float() if x.device.type == "cpu" else x
    return operations.weight_only_linear(x, packed.weight, packed.scale).float()


def refine_(logits: Tensor, x: Tensor, weight: Tensor, error: Tensor, count: int, added: Tensor | None = None,
            least: float = -torch.inf) -> None:
    """Make logits (b, v) exact, in place, wherever they may be among a row's `count` best.

    x (b, k), weight (v, k) the exact rows, error as in PackedVocabulary. added: float32 (b, v) that is added before
    logits are ranked. What is not above `least` was forbidden, and stays as it is.
    """
    reach = x.float().norm(dim=-1, keepdim=True) * error
    ranked = logits if added is None else logits + added
    lower = (ranked - reach).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    bar = lower.topk(min(count, lower.shape[-1]), dim=-1).values[:, -1:]
    bar = torch.where(bar.isfinite(), bar - bar.abs() * 2**-20, bar)
    is_open = ~(logits <= least)
    chosen = (~(ranked + reach < bar) & is_open).any(dim=0).nonzero()[:, 0]
    exact = reference.head(x, weight[chosen])
    logits[:, chosen] = torch.where(is_open[:, chosen], exact, logits[:, chosen])


def rounded_reach(logits: Tensor, x: Tensor, error: Tensor) -> Tensor:
    """By how much approximate logits (b, v), rounded to x's dtype, may be wrong."""
    rounding = torch.finfo(x.dtype)
    return x.float().norm(dim=-1, keepdim=True) * error + logits.abs() * rounding.eps + rounding.smallest_normal


def refine_some_(logits: Tensor, x: Tensor, weight: Tensor, error: Tensor, count: int, added: Tensor | None = None,
                 least: float = -torch.inf) -> Tensor:
    """As `refine_`, without a look at any number: SPARE rows more than `count` become exact. -> bool (b,): whether the
    `count` best of a row are then those of the exact product; where it is False, they may be."""
    reach = rounded_reach(logits, x, error)
    upper = torch.where(logits <= least, -torch.inf, logits + reach if added is None else logits + added + reach)
    b, v = logits.shape
    tops, ids = upper.topk(min(count + SPARE + 1, v), dim=-1)
    left = tops[:, -1] if tops.shape[-1] > count + SPARE else torch.full_like(tops[:, 0], -torch.inf)
    ids = ids[:, :count + SPARE]
    exact = reference.head(x, weight[ids.flatten()]).view(b, b, -1).diagonal().T  # of each row's x and its own ids
    found = logits.gather(-1, ids)
    exact = torch.where(found <= least, found, exact)
    sums = logits.sum(dim=-1)  # none where there is a number that is none
    logits.scatter_(-1, ids, exact)
    ranked = exact if added is None else exact + added.gather(-1, ids)
    bar = ranked.topk(min(count, ranked.shape[-1]), dim=-1).values[:, -1]
    return (left < bar - bar.abs() * 2**-20) & sums.isfinite()
