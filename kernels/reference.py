"""The model's operations in plain torch: they define what the compiled backends must compute.

Differentiable (training runs through them), and fast where matrix products dominate (prefill, scoring, CUDA).
Nothing here knows of ranks, checkpoints or configurations. Shapes: b batch, s sequence, h hidden, n heads, d head size.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import HEAD_BYTES
from kernels.gradients import Drop, Geglu, Turned
from kernels.packing import BITS, dequantize

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class PackedWeight(NamedTuple):
    """A quantised weight of (n, k), as kernels/packing.py says."""

    weight: Tensor  # int8 (n, k * bits / 8)
    scale: Tensor  # (n) or (n, k / group_size)
    bits: int  # 8 or 4
    group_size: int | None = None  # columns that share a scale; None: the whole row

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1] * 8 // self.bits


class Shared(NamedTuple):
    """Places that rows of a cache have in common, as the beams of a context: the first lengths[i] of row i are those of
    row rows[i]. Row i has them, too; but read there, the same numbers come from memory once for every beam."""

    rows: Tensor  # (b) int64
    lengths: Tensor  # (b) int64


class Lengths(NamedTuple):
    """How many places of a cache are filled where its rows differ in it."""

    each: Tensor  # (b,) int64, on the device of the cache
    longest: int  # the largest of them, known to the host
    shared: Shared | None = None


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """(..., k) times weight (n, k) transposed, plus bias (n) -> (..., n)."""
    if isinstance(weight, PackedWeight):
        return weight_only_linear(x, weight.weight, weight.scale, bias, weight.bits, weight.group_size)
    return F.linear(x, weight, bias)


def weight_only_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, bits: int = 8,
                       group_size: int | None = None) -> Tensor:
    """x (..., k) times the packed weight (n, k) transposed, plus bias (n) -> (..., n) of x's dtype.

    x float32, bfloat16 or float16; weight, scale, bits and group_size as in PackedWeight. Weights are rounded to x's
    dtype, and so is the result; compiled backends keep both in higher precision. No more than `_rows_at_once` of the
    weight are unpacked at a time. Raises ValueError (check_packed).
    """
    check_packed(x, weight, scale, bias, bits, group_size)
    if torch.is_grad_enabled() and x.requires_grad:
        output = PackedProduct.apply(x, weight, scale, bits)
        return output if bias is None else output + bias
    return _unpacked_product(x, weight, scale, bits, bias)


def _unpacked_product(x: Tensor, weight: Tensor, scale: Tensor, bits: int, bias: Tensor | None = None) -> Tensor:
    products = [F.linear(x, piece, None if bias is None else bias[rows])
                for rows, piece in _pieces(weight, scale, bits, x.dtype)]
    return products[0] if len(products) == 1 else torch.cat(products, dim=-1)


def _pieces(weight: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """A packed weight, dequantised a piece at a time, with the rows of each."""
    step = _rows_at_once(weight.shape[1] * 8 // bits)
    for begin in range(0, max(1, weight.shape[0]), step):
        rows = slice(begin, begin + step)
        yield rows, dequantize(weight[rows], scale[rows], bits, dtype)


def _rows_at_once(columns: int) -> int:
    """Of a matrix that is made piece by piece: as many as take HEAD_BYTES in float32."""
    return max(1, HEAD_BYTES // (4 * columns))


class PackedProduct(torch.autograd.Function):
    """x times a packed weight transposed. The weight is unpacked again for the gradient of x, and never kept."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, scale: Tensor, bits: int) -> Tensor:
        return _unpacked_product(x, weight, scale, bits)

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        _, weight, scale, bits = inputs
        ctx.save_for_backward(weight, scale)
        ctx.bits = bits

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        parts = ((gradient[..., rows] @ piece).float()  # 16-bit sums would be rounded once for each piece
                 for rows, piece in _pieces(*ctx.saved_tensors, ctx.bits, gradient.dtype))
        return functools.reduce(torch.add, parts).to(gradient.dtype), None, None, None


def check_packed(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int,
                 group_size: int | None) -> None:
    """Raises ValueError, one line, where weight_only_linear's arguments do not belong together."""
    if bits not in BITS:
        raise ValueError(f"weight_only_linear: bits is {bits}; it must be 8 or 4")
    if x.dtype not in FLOATS or scale.dtype not in FLOATS or (bias is not None and bias.dtype is not x.dtype):
        found = ", ".join(str(t.dtype) for t in (x, scale, bias) if t is not None)
        raise ValueError(f"weight_only_linear: x, scale and bias are {found}; allowed are float32, bfloat16 and "
                         "float16, and the bias must have x's dtype")
    if weight.dtype is not torch.int8 or weight.dim() != 2 or not weight.is_contiguous():
        raise ValueError(f"weight_only_linear: the packed weight must be contiguous int8 (n, k * bits / 8), not "
                         f"{weight.dtype} {tuple(weight.shape)}")
    n, k = weight.shape[0], weight.shape[1] * 8 // bits
    if x.dim() == 0 or x.shape[-1] != k:
        raise ValueError(f"weight_only_linear: x is {tuple(x.shape)}, but the weight has {k} columns")
    if group_size is not None and (group_size < 1 or k % group_size):
        raise ValueError(f"weight_only_linear: groups of {group_size} do not divide {k} columns")
    expected = (n,) if group_size is None else (n, k // group_size)
    if tuple(scale.shape) != expected or not scale.is_contiguous():
        raise ValueError(f"weight_only_linear: scale is {tuple(scale.shape)}; {expected} is needed, contiguous")
    if bias is not None and tuple(bias.shape) != (n,):
        raise ValueError(f"weight_only_linear: bias is {tuple(bias.shape)}; ({n},) is needed")
    if len({t.device for t in (x, weight, scale, bias) if t is not None}) > 1:
        raise ValueError("weight_only_linear: x, weight, scale and bias must be on one device")


def head(x: Tensor, weight: Tensor) -> Tensor:
    """(..., k) times weight (v, k) transposed -> float32 logits (..., v).

    16-bit sums near 16 lie 1/16 or more apart, which makes ties of likely tokens: CUDA keeps the product's FP32.
    Without gradients no second, 16-bit copy of all logits is made.
    """
    if x.dtype == torch.float32 or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)):
        return F.linear(x, weight).float()
    places, v = x.reshape(-1, x.shape[-1]), weight.shape[0]
    if x.device.type == "cuda":
        return torch.mm(places, weight.t(), out_dtype=torch.float32).view(*x.shape[:-1], v)
    output, step = torch.empty(places.shape[0], v, dtype=torch.float32, device=x.device), _rows_at_once(v)
    for part, logits in zip(places.split(step), output.split(step), strict=True):
        logits.copy_(F.linear(part, weight))
    return output.view(*x.shape[:-1], v)


def log_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
    """float32 logits (..., v) -> the highest, and the logarithm of the sum of all exponentials, both (...)."""
    return logits.amax(dim=-1), logits.logsumexp(dim=-1)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise the last dimension; the statistics are FP32 whatever the dtype of x (..., h)."""
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def residual_layer_norm(residual: Tensor, update: Tensor, alpha: float, weight: Tensor, bias: Tensor,
                        epsilon: float) -> Tensor:
    """layer_norm(alpha * residual + update), all (..., h)."""
    return F.layer_norm(scaled_add(residual, update, alpha), weight.shape, weight, bias, epsilon)


def scaled_add(residual: Tensor, update: Tensor, alpha: float) -> Tensor:
    """alpha * residual + update in one pass."""
    return torch.add(update, residual, alpha=alpha)


def geglu(x: Tensor) -> Tensor:
    """x (..., 2i) = halves (x1, x2) -> x1 * gelu(x2) (..., i), with the exact (erf) GELU."""
    return Geglu.apply(x)


def gelu(x: Tensor, is_exact: bool) -> Tensor:
    """The GELU of every value: with erf, or by the approximation with tanh."""
    return F.gelu(x, approximate="none" if is_exact else "tanh")


def swiglu(x: Tensor) -> Tensor:
    """x (..., 2i) = halves (x1, x2) -> silu(x1) * x2 (..., i)."""
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + epsilon) over the last dimension; the mean is FP32 whatever the dtype of x."""
    return F.rms_norm(x, weight.shape, weight, epsilon)


def attend(qkv: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor | None = None, values: Tensor | None = None,
           start: int | Lengths = 0, blocked: Tensor | None = None, positions_2d: bool = False,
           drop: Drop | None = None, places: Tensor | None = None) -> Tensor:
    """Attention of s new tokens over the `start` cached ones and themselves: qkv (b, s, n*3*d) -> (b, s, n*d).

    qkv holds [q | k | v] per head. q and k are rotated by cosine and sine (b, s, d); with a cache, keys and values
    (b, n, capacity, d), the new k and v are written to its places start .. start + s - 1. blocked (b, s, start + s) is
    True where attention is forbidden, None where everything sees everything. A row that may attend to nothing
    (padding) gets an even average of all values: finite, and what the original models compute.
    Lengths: every row has its own start and sees nothing behind its new tokens; blocked must be None then, and the
    cache may have more rows, of which the first b are used.
    drop: in training alone, of the probabilities (b, n, s, start + s).
    places: (c,) int64 out of b * s, the only ones wanted: the result is (c, n*d).
    """
    b, s, _ = qkv.shape
    d = cosine.shape[-1]
    query, key, value = Turned.apply(qkv.view(b, s, -1, 3, d), cosine, sine, positions_2d, _sees_nothing(blocked))
    return wanted(_attention(query, key, value, keys, values, start, blocked, drop), places)


def attend_groups(qkv: Tensor, groups: int, size: int, cosine: Tensor, sine: Tensor, keys: Tensor | None = None,
                  values: Tensor | None = None, start: int | Lengths = 0, blocked: Tensor | None = None,
                  drop: Drop | None = None, places: Tensor | None = None) -> Tensor:
    """`attend` with keys and values that several heads share: qkv (b, s, (n + 2g)*d) -> (b, s, n*d), g `groups`, d
    `size`.

    qkv holds all of q, all of k, all of v; keys and values are (b, g, capacity, d), each for n/g neighbouring heads.
    Of q and k the first r coordinates are turned in adjacent pairs, by the first half of cosine and sine (b, s, r).
    """
    b, s, _ = qkv.shape
    qkv = qkv.view(b, s, -1, size)
    turned, value = qkv[:, :, :-groups], qkv[:, :, -groups:]
    turned = _rotate_pairs(turned, cosine[:, :, None].to(qkv.dtype), sine[:, :, None].to(qkv.dtype))
    query = turned[:, :, :-groups]
    if (even := _sees_nothing(blocked)) is not None:
        query = query.masked_fill(even[..., None, None], 0.0)
    return wanted(_attention(query, turned[:, :, -groups:], value, keys, values, start, blocked, drop), places)


def wanted(x: Tensor, places: Tensor | None) -> Tensor:
    """x (b, s, k) as it is, or at places (c,) out of b * s -> (c, k)."""
    return x if places is None else x.flatten(0, 1)[places]


def _sees_nothing(blocked: Tensor | None) -> Tensor | None:
    """(b, s) bool: where all scores are made equal, by a query of zeros."""
    return None if blocked is None else blocked.all(dim=-1)


def _rotate_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary embedding of the first r of x's (..., d) coordinates, of which 2i and 2i + 1 are a pair; the first halves
    of cosine and sine (..., r) broadcast against the pairs."""
    r = cosine.shape[-1]
    cosine, sine = cosine[..., : r // 2], sine[..., : r // 2]
    even, odd = x[..., :r].unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1).flatten(-2)
    return torch.cat((turned, x[..., r:]), dim=-1)


def _attention(query: Tensor, key: Tensor, value: Tensor, keys: Tensor | None, values: Tensor | None,
               start: int | Lengths, blocked: Tensor | None, drop: Drop | None = None) -> Tensor:
    """query (b, s, n, d), key and value (b, s, g, d), ready for the cache -> (b, s, n*d); the rest as in `attend`.
    Queries that see nothing are zero."""
    b, s, n, _ = query.shape
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # (b, n, s, d), (b, g, s, d)
    if isinstance(start, Lengths):
        places = start.each[:, None] + torch.arange(s, device=query.device)  # (b, s)
        rows = torch.arange(b, device=query.device)[:, None]
        keys[rows, :, places], values[rows, :, places] = key.transpose(1, 2), value.transpose(1, 2)
        total = start.longest + s
        key, value = keys[:b, :, :total], values[:b, :, :total]
        blocked = torch.arange(total, device=query.device) > places[:, :1, None] + (s - 1)  # (b, 1, total)
    elif keys is not None:
        keys[:, :, start : start + s] = key
        values[:, :, start : start + s] = value
        if start > 0:
            key, value = keys[:, :, : start + s], values[:, :, : start + s]
    allowed = None
    if blocked is not None:
        allowed = (~blocked | blocked.all(dim=-1, keepdim=True))[:, None]  # (b, 1, s, start + s)
    groups = key.shape[1]
    if drop is not None:
        key, value = (x.repeat_interleave(n // groups, dim=1) for x in (key, value))
        scores = (query @ key.transpose(-1, -2)).float() / query.shape[-1] ** 0.5
        scores = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
        return (drop.of(scores.softmax(-1)).to(value.dtype) @ value).transpose(1, 2).reshape(b, s, -1)
    if s == 1 and groups < n:  # the heads of a group are rows of one product, and no key is copied
        output = F.scaled_dot_product_attention(query.reshape(b, groups, n // groups, -1), key, value,
                                                attn_mask=allowed)
        return output.reshape(b, 1, -1)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, enable_gqa=groups < n)
    return output.transpose(1, 2).reshape(b, s, -1)
