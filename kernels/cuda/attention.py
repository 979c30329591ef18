"""Attention of a decoding step: one launch turns queries and keys, writes to the cache and reads it (attention.h).

Shapes: b rows, n heads, g heads of keys and values, d head size, r turned coordinates. What changes from step to step
lies on the device, so that a recorded launch serves all steps.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import is_recording
from kernels.cuda.build import KINDS, Program
from kernels.cuda.driver import Call
from kernels.layer import Rotary
from kernels.reference import Shared

SOURCE = "step.cu"
THREADS, SHARED_HEADS = 128, 4  # ATTENTION_THREADS in attention.h; heads of a block that share keys and values
BLOCKS = 2  # for each processor, about
FEWEST_PLACES = 64  # of the capacity, that another block is worth
LARGEST_SIZE, LARGEST_STRIDE, LARGEST_GRID = 128, 2**32, 65535


class Workspace(NamedTuple):
    """What the blocks of a launch tell each other. One serves all layers and steps, one after the other."""

    partial: Tensor  # float32 (b, n, splits, 2 + d)
    arrived: Tensor  # int32, one for each row and block of heads; zero before and after every launch

    @classmethod
    def allocate(cls, device, like: Tensor, b: int, n: int, g: int, size: int, capacity: int) -> Workspace:
        """For rows of `like`'s device; device: driver.Device."""
        return Workspaces().find(device, like, b, n, g, size, capacity)


class Workspaces:
    """One area of a device for the workspaces of all shapes, since launches come one after the other there. A larger
    one takes its place where it is too small, and the old one stays: recorded launches hold its address."""

    def __init__(self):
        self._areas: dict[torch.device, list[tuple[Tensor, Tensor]]] = {}

    def find(self, device, like: Tensor, b: int, n: int, g: int, size: int, capacity: int) -> Workspace:
        """As Workspace.allocate."""
        tasks = tasks_of(b, n, g)
        splits = max(1, min(-(-BLOCKS * device.processors // tasks), capacity // FEWEST_PLACES))
        count, kept = b * n * splits * (2 + size), self._areas.setdefault(like.device, [])
        area = kept[-1] if kept else None
        if area is None or area[0].numel() < count or area[1].numel() < tasks:
            area = (torch.empty(_power_of_two(count), dtype=torch.float32, device=like.device),
                    torch.zeros(_power_of_two(tasks), dtype=torch.int32, device=like.device))
            if not is_recording():  # else its zeros are written when that is replayed, and not before
                kept.append(area)
        return Workspace(area[0][:count].view(b, n, splits, 2 + size), area[1][:tasks])


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def heads_of_block(n: int, g: int) -> int:
    return 1 if n == g else SHARED_HEADS


def tasks_of(b: int, n: int, g: int) -> int:
    """Rows times the blocks that serve a row's heads: blockIdx.y in attention.h."""
    return b * g * -(-n // g // heads_of_block(n, g))


def decode_attention(device, qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, rotary: Rotary,
                     is_by_heads: bool, cosine: Tensor | None = None, sine: Tensor | None = None,
                     starts: Tensor | None = None, shared: Shared | None = None,
                     workspace: Workspace | None = None) -> Tensor:
    """One new token a row: qkv (b, 1, (n + 2g)*d) -> (b, 1, n*d), all of one dtype with keys and values.

    keys, values: of a layer, (rows, g, capacity, d) with places side by side, of which the first b rows are used. The
    new key and value become place lengths[i] of row i, if there is one (the caller counts), and places starts[i] to
    lengths[i] are seen. lengths, starts: (b) int64. cosine, sine (b, 1, r) float32, as in reference.attend and, with
    PAIRS, attend_groups. Scores and sums are float32. Raises ValueError and kernels.cache.BuildError.
    """
    b, (_, g, capacity, d) = qkv.shape[0], keys.shape
    n = qkv.shape[-1] // d - 2 * g
    check(qkv, keys, values, lengths, rotary, is_by_heads, cosine, sine, starts, shared)
    out = qkv.new_empty(b, 1, n * d)
    if b == 0:
        return out
    workspace = workspace or Workspace.allocate(device, qkv, b, n, g, d, capacity)
    splits, tasks = workspace.partial.shape[2], workspace.arrived.shape[0]
    if workspace.partial.shape != (b, n, splits, 2 + d) or tasks != tasks_of(b, n, g):
        raise ValueError(f"decode_attention: the workspace is of {tuple(workspace.partial.shape)}, made for other "
                         f"shapes than {b} rows of {n} heads of {d}")
    numbers = (n, g, d, 0 if cosine is None else cosine.shape[-1], rotary, is_by_heads, capacity, splits,
               keys.stride(0), keys.stride(1))
    call = Call((qkv.contiguous(), cosine, sine, lengths, starts, *(shared or (None, None))),
                (keys, values, workspace.partial, workspace.arrived), (out,), numbers, (math.log2(math.e) / d**0.5,))
    device.launch(Program(SOURCE, KINDS[qkv.dtype]), f"attention_{lanes(d, qkv.dtype)}_{heads_of_block(n, g)}",
                  (splits, tasks), THREADS, call)
    return out


def lanes(size: int, dtype: torch.dtype) -> int:
    """That hold a head, 16 bytes each: a power of two."""
    needed = -(-size * dtype.itemsize // 16)
    return max(2 * dtype.itemsize, 1 << (needed - 1).bit_length())


def fits(keys: Tensor, n: int, b: int = 1) -> bool:
    """Whether there is a kernel for such a cache (rows, g, capacity, d), n heads and b new tokens."""
    _, g, _, d = keys.shape
    return (keys.dtype in KINDS and d % 8 == 0 and d <= LARGEST_SIZE and n % g == 0 and keys.stride()[2:] == (d, 1)
            and keys.data_ptr() % 16 == 0 and max(keys.stride()) < LARGEST_STRIDE
            and tasks_of(b, n, g) <= LARGEST_GRID)


def check(qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, rotary: Rotary, is_by_heads: bool,
          cosine: Tensor | None, sine: Tensor | None, starts: Tensor | None, shared: Shared | None) -> None:
    """Raises ValueError, one line, where decode_attention's arguments do not belong together."""
    b, (rows, g, _, d) = qkv.shape[0], keys.shape
    n = qkv.shape[-1] // d - 2 * g
    if qkv.shape != (b, 1, (n + 2 * g) * d) or n < 1 or b > rows or (n != g and is_by_heads):
        raise ValueError(f"decode_attention: qkv is {tuple(qkv.shape)}, keys {tuple(keys.shape)}; (b, 1, (n + 2g)*d) "
                         "and (b, g, capacity, d) are needed")
    if values.shape != keys.shape or values.stride() != keys.stride() or {keys.dtype, values.dtype} != {qkv.dtype}:
        raise ValueError(f"decode_attention: keys are {keys.dtype} {tuple(keys.shape)}, values {values.dtype} "
                         f"{tuple(values.shape)}; both must be of {qkv.dtype} and lie alike")
    if not (fits(keys, n, b) and fits(values, n, b)):
        raise ValueError(f"decode_attention: {n} heads, and keys {keys.dtype} {tuple(keys.shape)} with strides "
                         f"{keys.stride()}; heads of a multiple of 8 up to {LARGEST_SIZE}, which the groups divide, "
                         "are needed, place by place, from a multiple of 16 bytes on, for at most "
                         f"{LARGEST_GRID} blocks of heads and rows")
    numbers = (lengths, starts, *(shared or ()))
    if any(x is not None and (x.shape != (b,) or x.dtype is not torch.int64 or not x.is_contiguous()) for x in numbers):
        raise ValueError(f"decode_attention: lengths, starts and shared places must be ({b},) int64 each, contiguous")
    angles = (cosine, sine)
    if rotary is not Rotary.NONE and any(
            x is None or x.shape[:2] != (b, 1) or x.shape != cosine.shape or x.dtype is not torch.float32
            or not x.is_contiguous() or (x.shape[2] != d if rotary is not Rotary.PAIRS else x.shape[2] > d)
            for x in angles):
        raise ValueError(f"decode_attention: cosine and sine must be ({b}, 1, r) float32, contiguous; r is {d}, or "
                         "less where coordinates turn in pairs")
    if len({x.device for x in (qkv, keys, values, *numbers, *angles) if x is not None}) > 1:
        raise ValueError("decode_attention: all tensors must be on one device")
