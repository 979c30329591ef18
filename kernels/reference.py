"""The model's operations in plain torch: they define what the compiled backends must compute.

Differentiable (training runs through them), and fast where matrix products dominate (prefill, scoring, CUDA).
Nothing here knows of ranks, checkpoints or configurations. Shapes: b batch, s sequence, h hidden, n heads, d head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., k) times weight (n, k) transposed, plus bias (n) -> (..., n)."""
    return F.linear(x, weight, bias)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """Normalise the last dimension; the statistics are FP32 whatever the dtype of x (..., h)."""
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def residual_layer_norm(
    residual: Tensor, update: Tensor, alpha: float, weight: Tensor, bias: Tensor, epsilon: float
) -> Tensor:
    """layer_norm(alpha * residual + update), all (..., h)."""
    return F.layer_norm(scaled_add(residual, update, alpha), weight.shape, weight, bias, epsilon)


def scaled_add(residual: Tensor, update: Tensor, alpha: float) -> Tensor:
    """alpha * residual + update in one pass."""
    return torch.add(update, residual, alpha=alpha)


def geglu(x: Tensor) -> Tensor:
    """x (..., 2i) = halves (x1, x2) -> x1 * gelu(x2) (..., i), with the exact (erf) GELU."""
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, positions_2d: bool = False) -> Tensor:
    """Rotary embedding of x (..., d): x * cos + rotate_half(x) * sin; cosine and sine broadcast against x.

    In 2D each half of d is rotated as a head of its own; cosine and sine are laid out over d in both cases.
    """
    if positions_2d:
        first, second, third, fourth = x.chunk(4, dim=-1)
        half_turned = torch.cat((-second, first, -fourth, third), dim=-1)
    else:
        first, second = x.chunk(2, dim=-1)
        half_turned = torch.cat((-second, first), dim=-1)
    return torch.addcmul(x * cosine, half_turned, sine)


def attend(
    qkv: Tensor,
    cosine: Tensor,
    sine: Tensor,
    keys: Tensor | None = None,
    values: Tensor | None = None,
    start: int = 0,
    blocked: Tensor | None = None,
    positions_2d: bool = False,
) -> Tensor:
    """Attention of s new tokens over the `start` cached ones and themselves: qkv (b, s, n*3*d) -> (b, s, n*d).

    qkv holds [q | k | v] per head. q and k are rotated by cosine and sine (b, s, d); with a cache, keys and values
    (b, n, capacity, d), the new k and v are written to its places start .. start + s - 1. blocked (b, s, start + s) is
    True where attention is forbidden, None where everything sees everything. A row that may attend to nothing
    (padding) attends to everything instead: what it yields is meaningless but finite.
    """
    b, s, _ = qkv.shape
    d = cosine.shape[-1]
    qkv = qkv.view(b, s, -1, 3, d)
    # q and k rotate together: (b, s, n, 2, d)
    rotated = rotate(qkv[:, :, :, :2], cosine[:, :, None, None].to(qkv.dtype), sine[:, :, None, None].to(qkv.dtype),
                     positions_2d)
    query = rotated[:, :, :, 0].transpose(1, 2)  # (b, n, s, d)
    key = rotated[:, :, :, 1].transpose(1, 2)
    value = qkv[:, :, :, 2].transpose(1, 2)
    if keys is not None:
        keys[:, :, start : start + s] = key
        values[:, :, start : start + s] = value
        if start > 0:
            key, value = keys[:, :, : start + s], values[:, :, : start + s]
    allowed = None
    if blocked is not None:
        allowed = (~blocked | blocked.all(dim=-1, keepdim=True))[:, None]  # (b, 1, s, start + s)
    output = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
    return output.transpose(1, 2).reshape(b, s, -1)
