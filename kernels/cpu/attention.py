"""The compiled attention: what its C++ reads beside tensors, and which of attend's calls it takes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_int, c_size_t, c_void_p

import torch
from torch import Tensor

from kernels import reference
from kernels.layer import Rotary
from kernels.reference import Lengths

SIGNATURES = {
    "glm_attend": [c_int, *[c_void_p] * 7, c_int],
    "glm_prefill": [c_int, c_int, c_void_p, c_size_t, c_void_p, c_size_t, *[c_void_p] * 6, c_int],
}


class Shape(ctypes.Structure):
    """attention.h's AttentionShape, which explains the fields."""

    _fields_ = [("batch", c_size_t), ("heads", c_size_t), ("groups", c_size_t), ("size", c_size_t),
                ("total", c_size_t), ("batch_stride", c_size_t), ("head_stride", c_size_t), ("rotary", c_size_t),
                ("turned", c_size_t), ("by_heads", c_size_t), ("blocked", c_void_p), ("lengths", c_void_p),
                ("context_rows", c_void_p), ("context_lengths", c_void_p)]

    @classmethod
    def of(cls, batch: int, heads: int, keys: Tensor, total: int, rotary: Rotary, cosine: Tensor, by_heads: bool,
           blocked: Tensor | None, lengths: Lengths | None) -> Shape:
        """keys (b or more, g, total or more, d); cosine (b, s, r); blocked bool (b, s, total) and what lengths holds,
        all contiguous: they must outlive the structure."""
        _, groups, _, size = keys.shape
        each, shared = (None, None) if lengths is None else (lengths.each, lengths.shared)
        return cls(batch, heads, groups, size, total, *keys.stride()[:2], rotary, cosine.shape[-1], by_heads,
                   address(blocked), address(each), *map(address, shared or (None, None)))


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def attend(operators, qkv: Tensor, heads: int, groups: int, size: int, rotary: Rotary, by_heads: bool, cosine: Tensor,
           sine: Tensor, keys: Tensor | None, values: Tensor | None, start: int | Lengths,
           blocked: Tensor | None, places: Tensor | None) -> Tensor | None:
    """reference.attend or attend_groups; cosine and sine (b, s, r). None where it is the reference's to compute: caches
    laid out in another way."""
    b, s, _ = qkv.shape
    start, lengths = (start.longest, start) if isinstance(start, Lengths) else (start, None)
    if keys is None:
        keys, values = qkv.new_empty((2, b, groups, s, size))
    total = start + s
    if blocked is not None and blocked.shape[-1] == total:
        blocked = blocked.expand(b, s, total)
    if not (qkv.is_contiguous() and keys.dtype is qkv.dtype and keys.stride()[2:] == (size, 1)
            and values.stride() == keys.stride() and total <= keys.shape[2]
            and (blocked is None or blocked.shape[-1] == total)):
        return None
    cosine, sine = cosine.float().contiguous(), sine.float().contiguous()
    blocked = None if blocked is None else blocked.contiguous()
    asked = places if s > 1 and places is not None and _ascends(places, b * s) else None
    out = qkv.new_empty((b, s, heads * size) if asked is None else (len(asked), heads * size))
    shape = ctypes.byref(Shape.of(b, heads, keys, total, rotary, cosine, by_heads, blocked, lengths))
    tensors = [tensor.data_ptr() for tensor in (qkv, cosine, sine, keys, values, out)]
    if s == 1:
        operators.library.glm_attend(operators.TYPES[qkv.dtype], shape, *tensors, torch.get_num_threads())
    else:
        operators.library.glm_prefill(operators.TYPES[qkv.dtype], operators.prefill_products, shape, s, address(asked),
                                      b * s if asked is None else len(asked), *tensors, torch.get_num_threads())
    return reference.wanted(out, places) if asked is None else out


def _ascends(places: Tensor, count: int) -> bool:
    """Whether each of them is below `count` and none lies before the one before it, as C++ walks along them."""
    return (places.dtype is torch.int64 and places.is_contiguous() and len(places) > 0 and int(places[0]) >= 0
            and int(places[-1]) < count and bool((places[1:] >= places[:-1]).all()))


def in_float32(function: Callable, qkv: Tensor, cosine: Tensor, sine: Tensor, keys: Tensor | None,
               values: Tensor | None, start: int | Lengths, blocked: Tensor | None) -> Tensor:
    """`function` (reference.attend's arguments up to `blocked`) with all of 16 bits as float32; what it returns and
    writes to the cache is rounded once."""
    b, s, _ = qkv.shape
    longest = start.longest if isinstance(start, Lengths) else start
    caches = () if keys is None else (keys[:b, :, :longest + s], values[:b, :, :longest + s])
    copies = [cached.float() for cached in caches]
    out = function(qkv.float(), cosine.float(), sine.float(), *(copies or (None, None)), start, blocked)
    first = 0 if isinstance(start, Lengths) else start  # new places, where all rows have the same
    for cached, copy in zip(caches, copies, strict=True):
        cached[:, :, first:] = copy[:, :, first:]
    return out.to(qkv.dtype)
