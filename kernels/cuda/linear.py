"""Which kernel computes a weight-only linear layer, and with what arguments."""

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import UNPACKED_ROWS, reference
from kernels.cuda.build import KINDS, Program
from kernels.cuda.driver import ALIGNMENT, Call, aligned
from kernels.layer import Activation, activated
from kernels.reference import check_packed

SOURCE = "linear.cu"
SIMPLE_ROWS = 16  # of x: the most for a device without tensor cores
WARPS = 8  # MAXIMUM_WARPS in skinny.h
STAGES = {1: 2, 2: 2, 4: 1}  # by tiles: STAGES in linear.cu
LARGEST_INDEX, LARGEST_GRID = 2**31, 65535
DEQUANTIZE_THREADS = 256


class End(NamedTuple):
    """What stands at the end of a product: activation(x W^T + bias) + alpha * residual."""

    activation: Activation | None = None
    residual: Tensor | None = None  # shaped as the result, of its dtype
    alpha: float = 1.0

    @property
    def rows(self) -> int:
        """Of the weight, for one column of the result."""
        return 2 if self.activation is not None and self.activation.is_gated else 1

    def of(self, product: Tensor) -> Tensor:
        """In plain torch, which rounds in between."""
        if self.activation is not None:
            product = activated(product, self.activation)
        return product if self.residual is None else reference.scaled_add(self.residual, product, self.alpha)

    def check(self, x: Tensor, n: int) -> None:
        if n % self.rows:
            raise ValueError(f"weight_only_linear: the halves of a gated activation are made of {n} rows of the weight")
        shape = (*x.shape[:-1], n // self.rows)
        if self.residual is not None and (self.residual.shape != shape or self.residual.dtype is not x.dtype
                                          or self.residual.device != x.device):
            raise ValueError(f"weight_only_linear: the residual is {self.residual.dtype} {tuple(self.residual.shape)}; "
                             f"{x.dtype} {shape} on x's device is needed")


NOTHING = End()


class Plan(NamedTuple):
    """One kernel's launch."""

    name: str  # in linear.cu
    grid: tuple[int, int]
    threads: int
    row_groups: int = 1


def weight_only_linear(device, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int,
                       group_size: int | None, end: End = NOTHING) -> Tensor:
    """kernels.reference.weight_only_linear for x in float16 or bfloat16, on `device` (driver.Device), and its
    end. Where one kernel does all, it is in float32 and rounded once.

    Raises ValueError (check_packed, check_alignment, End.check) and kernels.cache.BuildError.
    """
    check_packed(x, weight, scale, bias, bits, group_size)
    check_alignment(weight)
    n, k = weight.shape[0], x.shape[-1]
    end.check(x, n)
    rows = aligned(x.reshape(-1, k))
    if n == 0 or rows.shape[0] == 0:
        return x.new_empty((*x.shape[:-1], n // end.rows))
    plan = choose(rows.shape[0], n, k, bits, group_size, device.has_tensor_cores, device.processors)
    if plan is None:
        return end.of(F.linear(x, dequantize(device, weight, scale, x.dtype, bits, group_size), bias))
    out = x.new_empty((*x.shape[:-1], n // end.rows))
    if bias is not None:
        bias = bias.contiguous()
    launch(device, plan, x.dtype, bits, rows, weight, scale, bias, out, rows.shape[0], k, group_size, end)
    return out


def dequantize(device, weight: Tensor, scale: Tensor, dtype: torch.dtype, bits: int, group_size: int | None) -> Tensor:
    """Packed weight -> (n, k) of dtype (float16 or bfloat16), as kernels.packing.dequantize, bit for bit.

    The memory comes from torch's allocator and goes back to it after the product: layers of a shape share it.
    """
    n, k = weight.shape[0], weight.shape[1] * 8 // bits
    out = torch.empty((n, k), dtype=dtype, device=weight.device)
    name = "dequantize_eights" if fits_eights(n, k, group_size) else "dequantize_any"
    launch(device, Plan(name, (n, 1), DEQUANTIZE_THREADS), dtype, bits, None, weight, scale, None, out, 0, k,
           group_size)
    return out


def check_alignment(weight: Tensor) -> None:
    if weight.data_ptr() % ALIGNMENT:
        raise ValueError(f"weight_only_linear: the packed weight begins {weight.data_ptr() % ALIGNMENT} bytes behind a "
                         f"multiple of {ALIGNMENT}, which its kernels cannot read; a copy (weight.clone()) can be read")


@lru_cache(4096)
def choose(m: int, n: int, k: int, bits: int, group_size: int | None, tensor_cores: bool,
           processors: int) -> Plan | None:
    """The kernel for m rows of x and a weight of (n, k); None: dequantise, then the library's product."""
    width = 128 // bits  # columns of a 16-byte load
    if k % width or not fits_eights(n, k, group_size):
        return None
    group_size = None if group_size == k else group_size
    if tensor_cores and (group_size is None or group_size % width == 0):
        few = m <= UNPACKED_ROWS
        return skinny(m, n, k, bits, group_size, *tiling(m, n, bits, processors)) if few else None
    return choose_simple(m, n)


def tiling(m: int, n: int, bits: int, processors: int) -> tuple[int, int, int]:
    """Tiles of 16 rows of the weight and slices of 8 rows of x that a warp of a skinny kernel takes, and the groups of
    rows that the warps of a block are divided among.

    A block reads 2 * m bytes of x for 16 * tiles * groups * bits / 8 bytes of the weight. x comes from the L2 cache,
    the weight passes through it, and H100's L2 gives less than twice what its memory gives: as many tiles and groups
    as keep x at half of the weight or below, as long as there are blocks for half of the processors.
    """
    tiles = next((tiles for tiles in (1, 2, 4) if tiles * bits >= 2 * m), 4)
    slices = 1 if m <= 8 else 2
    while tiles > 1 and n < 16 * tiles * (processors // 2):
        tiles, slices = tiles // 2, 1
    groups = 2 if tiles * bits < 2 * min(m, 8 * slices) and n >= 32 * tiles * (processors // 2) else 1
    return tiles, slices, groups


def skinny(m: int, n: int, k: int, bits: int, group_size: int | None, tiles: int, slices: int,
           row_groups: int) -> Plan | None:
    """The kernel with these template arguments; as many warps as take equally many turns along k."""
    grid = (-(-m // (8 * slices)), -(-n // (16 * tiles * row_groups)))
    if grid[1] > LARGEST_GRID:
        return None
    stage = 4 * 128 // bits  # columns
    scaling = "ROW" if group_size is None else "CHUNK" if group_size % stage else "STAGE"
    turns = -(-k // (stage * STAGES[tiles]))
    warps = -(-turns // -(-turns // (WARPS // row_groups))) * row_groups
    return Plan(f"skinny_{tiles}_{slices}_{scaling}", grid, 32 * warps, row_groups)


def choose_simple(m: int, n: int) -> Plan | None:
    rows_of_x = 1 if m == 1 else 2 if m == 2 else 4
    grid = (-(-m // rows_of_x), -(-n // 8))  # 4 warps of 2 rows
    return Plan(f"simple_{rows_of_x}", grid, 128) if m <= SIMPLE_ROWS and grid[1] <= LARGEST_GRID else None


def fits_eights(n: int, k: int, group_size: int | None) -> bool:
    """Whether eight neighbouring columns have one scale, and 32-bit indices of them and of scales suffice."""
    size = group_size or k
    return k % 8 == 0 and size % 8 == 0 and k * size < LARGEST_INDEX and n * (k // 8) < LARGEST_INDEX


def launch(device, plan: Plan, dtype: torch.dtype, bits: int, x: Tensor | None, weight: Tensor, scale: Tensor,
           bias: Tensor | None, out: Tensor, m: int, k: int, group_size: int | None, end: End = NOTHING) -> None:
    grouped = group_size is not None and group_size != k
    size = group_size if grouped else k
    numbers = (m, weight.shape[0], k, k // size if grouped else 0, size, 2**31 // size + 1, KINDS[scale.dtype],
               plan.row_groups, 0 if end.activation is None else end.activation + 1)
    residual = None if end.residual is None else end.residual.contiguous()
    device.launch(Program(SOURCE, KINDS[dtype], bits), plan.name, plan.grid, plan.threads,
                  Call((x, weight, scale, bias, residual), (), (out,), numbers, (end.alpha,)))


def read(device, data: Tensor) -> None:
    """Read a contiguous tensor once, to the last whole 16 bytes: the device's read bandwidth, for benchmarks."""
    count = data.numel() * data.element_size() // 16
    if data.data_ptr() % ALIGNMENT or not data.is_contiguous() or count >= LARGEST_INDEX:
        raise ValueError(f"read: the tensor must be contiguous, begin at a multiple of {ALIGNMENT} bytes and have less "
                         f"than {LARGEST_INDEX * 16} bytes")
    out = torch.empty(1, dtype=torch.float16, device=data.device)
    call = Call((data, *[None] * 4), (out,), (), (count, *[0] * 8), (0.0,))  # out: hardly ever written
    device.launch(Program(SOURCE, 0, 8), "read_all", (8 * device.processors, 1), 256, call)
