"""The sum of a tensor over the GPUs of a host in one launch (reduce.h), in memory that every rank lets the others see.

For tensor parallelism: a decoding step adds up a few kilobytes twice a layer, and norms the sum, which is part of the
launch. $GLM_CUDA_ALL_REDUCE=one-shot asks for it.
"""

from __future__ import annotations

import ctypes
import socket
import sys
from collections.abc import Callable, Sequence
from ctypes import byref, c_size_t, c_ubyte, c_uint, c_void_p
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.cuda import norms
from kernels.cuda.build import KINDS, Program
from kernels.cuda.driver import Call, aligned
from runtime.errors import attempt

SOURCE = "step.cu"
BLOCKS, THREADS, MOST_RANKS = 32, 256, 8  # as in reduce.h
SLOT_BYTES = 512 << 10  # the largest tensor: with larger ones a library's all-reduce is not mostly waiting
ROW_BYTES = 32 << 10  # as in reduce.h: the largest row that is normed
PATIENCE = 300  # seconds that a rank waits for another one
LAZY_ENABLE_PEER_ACCESS = 1  # of cuda.h's CUipcMem_flags
Exchange = Callable[[object], Sequence]  # gives every rank's object to all ranks, in their order


class Handle(ctypes.Structure):
    """cuda.h's CUipcMemHandle: what another process opens memory with."""

    _fields_ = (("reserved", c_ubyte * 64),)


class Area(NamedTuple):
    """Memory of some GPU, by its address in this process."""

    address: int

    def data_ptr(self) -> int:
        return self.address


class Ranks(NamedTuple):
    """How tensor-parallel ranks add up what products that are cut by columns give."""

    total: Callable[[Tensor], Tensor]
    small: Sums | None = None  # adds up small tensors


class Sums:
    """Sums over ranks of one host; all take part in each, in the same order."""

    def __init__(self, device, rank: int, areas: Sequence[Area | Tensor], counts: Tensor, failure: Tensor,
                 patience: float = PATIENCE):
        """device: driver.Device; areas: of every rank (area_bytes, zeros before the first sum); counts: int32 zeros
        (2 * BLOCKS) on the device; failure: an int32 zero of the host, pinned; patience: seconds."""
        self.device, self.rank, self.areas, self.counts, self.failure = device, rank, areas, counts, failure
        self.patience = patience

    def fits(self, x: Tensor) -> bool:
        return (x.device == self.counts.device and x.dtype in KINDS and 0 < x.nbytes <= SLOT_BYTES
                and x.nbytes % 16 == 0)

    def sum(self, x: Tensor) -> Tensor:
        """Of a tensor that fits, alike in shape and dtype on all ranks; in float32, rounded once; the same bits on all.

        Where a rank waits in vain, its process's work on the device ends with an error of CUDA; RuntimeError from then
        on.
        """
        self._check()
        x = aligned(x)
        out, pieces = torch.empty_like(x), x.nbytes // 16
        call = Call((x,), (self.counts[:BLOCKS], self.failure, *self._all_areas), (out,),
                    (pieces, *self._numbers, 0, int(1000 * self.patience)))
        self.device.launch(Program(SOURCE, KINDS[x.dtype]), "sum_of_ranks", (min(BLOCKS, -(-pieces // THREADS)), 1),
                           THREADS, call)
        return out

    def gathered(self, x: Tensor) -> None:
        """Nothing: the library brings the ranks' parts together."""

    def fits_norm(self, x: Tensor, *vectors: Tensor | None) -> bool:
        return (x.device == self.counts.device and norms.fits(x, *vectors) and x.nbytes > 0
                and x.shape[-1] * x.itemsize <= ROW_BYTES and x.numel() // x.shape[-1] <= SLOT_BYTES // ROW_BYTES)

    def norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, residual: Tensor, alpha: float,
             added: Tensor | None = None, total: Tensor | None = None) -> Tensor:
        """norms.norm of the sum of x (..., h) over the ranks, otherwise as `sum`."""
        self._check()
        norms.check(x, weight, bias, residual, added)
        x = aligned(x)
        out, (each, threads) = torch.empty_like(x), norms.division(x)
        call = Call((x, aligned(residual), added, weight, bias),
                    (self.counts[BLOCKS:], self.failure, *self._all_areas), (total, out),
                    (x.shape[-1], *self._numbers, half_bytes(len(self.areas)), int(1000 * self.patience)),
                    (alpha, epsilon))
        self.device.launch(Program(SOURCE, KINDS[x.dtype]), f"norm_of_ranks_{each}", (x.numel() // x.shape[-1], 1),
                           threads, call)
        return out

    @property
    def _all_areas(self) -> tuple:
        return *self.areas, *[None] * (MOST_RANKS - len(self.areas))

    @property
    def _numbers(self) -> tuple[int, int, int]:
        return self.rank, len(self.areas), SLOT_BYTES

    def _check(self) -> None:
        if self.failure[0]:
            raise RuntimeError(f"rank {self.rank} has waited {self.patience:g} s for rank {int(self.failure[0]) - 1} "
                               "to add up a tensor")


def half_bytes(ranks: int) -> int:
    """Of an area: sums take the first half, sums that are normed the second, as their blocks use other places."""
    return 2 * SLOT_BYTES + 4 * ranks * BLOCKS


def area_bytes(ranks: int) -> int:
    return 2 * half_bytes(ranks)


def join(device, on: torch.device, rank: int, ranks: int, exchange: Exchange) -> Sums | None:
    """Called by all ranks at a time, once in a process. None, on all alike, where one cannot see another's memory;
    the first rank says why on standard error."""
    own = c_void_p()
    found = exchange((socket.gethostname(), *attempt(lambda: offered(device, own, ranks), RuntimeError)))
    reasons = [error for _, _, error in found if error]
    if not reasons and len({host for host, *_ in found}) > 1:
        reasons = ["the ranks run on several hosts"]
    areas: list[Area] = []
    if not reasons:
        handles = [handle for _, handle, _ in found]
        areas, error = attempt(lambda: [Area(own.value if other == rank else opened(device, handles[other]))
                                        for other in range(ranks)], RuntimeError)
        reasons = [error for error in exchange(error) if error]
    if reasons:
        if rank == 0:
            print(f"kernels: sums over ranks are left to the library: {reasons[0]}", file=sys.stderr)
        return None
    return Sums(device, rank, areas, torch.zeros(2 * BLOCKS, dtype=torch.int32, device=on),
                torch.zeros(1, dtype=torch.int32, pin_memory=on.type == "cuda"))


def offered(device, own: c_void_p, ranks: int) -> bytes:
    """Makes this rank's area, with zeros, at `own`; what others open it with."""
    if ranks > MOST_RANKS:
        raise RuntimeError(f"there are {ranks} ranks, and at most {MOST_RANKS} can take part")
    handle = Handle()
    device.call("cuMemAlloc_v2", byref(own), c_size_t(area_bytes(ranks)))
    device.call("cuMemsetD8_v2", own, c_ubyte(0), c_size_t(area_bytes(ranks)))
    device.call("cuCtxSynchronize")
    device.call("cuIpcGetMemHandle", byref(handle), own)
    return bytes(handle)


def opened(device, handle: bytes) -> int:
    """The address of another rank's area in this process."""
    address = c_void_p()
    device.call("cuIpcOpenMemHandle_v2", byref(address), Handle.from_buffer_copy(handle),
                c_uint(LAZY_ENABLE_PEER_ACCESS))
    return address.value
