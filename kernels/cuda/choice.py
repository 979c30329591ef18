"""Which kernel computes a weight-only linear layer, and how its work is divided among blocks.

m rows of x, a weight of (n, k). skinny.h serves up to 8 rows, wide.h up to UNPACKED_ROWS; for more the weight is
expanded for the library's product. By arithmetic, for GLM-130B's 127e9 INT4 weights on an H100: expanding moves 2.5
bytes for each, 0.12 s, and the library then takes 0.085 s, or 0.36 ms a row at 700 TFLOP/s where that is more. A wide
kernel takes 0.02 s, or 0.42 ms a row at 600 TFLOP/s, which mma.sync may reach there: 0.14 s for 320 rows against
0.24 in turn, and 0.145 where weights are expanded beside the products (expansion.py).
"""

from functools import lru_cache
from typing import NamedTuple

from kernels import SIMPLE_ROWS, UNPACKED_ROWS

FEW_ROWS = 8  # of x: the columns of a tensor core's product
WARPS = 8  # MAXIMUM_WARPS in skinny.h
STAGES, DEPTH = {1: 2, 2: 1, 4: 1}, {1: 3, 2: 3, 4: 2}  # by tiles: STAGES and DEPTH in linear.cu
BLOCKS = 2  # of a skinny kernel: of a processor
LARGEST_INDEX, LARGEST_GRID = 2**31, 65535
WIDE_ROWS, STEP_BYTES = 256, 64  # of the weight: rows of a block in wide.h, bytes of a row that a step takes
DEEPEST, MOST_SPLITS = 4, 16  # steps in shared memory; parts of the columns
# Work beside the steps, in steps (of 0.7 microseconds where memory is the limit): of each block, to fill and to drain,
# and to write its sums as a part and to read them again, for 64 rows of x; of a product in parts, one kernel more.
FILLING, PART, ADDING = 2, 4, 3


class Plan(NamedTuple):
    """One kernel's launch."""

    name: str  # in linear.cu
    grid: tuple[int, int]
    threads: int
    splits: int = 1  # parts of the columns, which another kernel adds up
    shared_bytes: int = 0  # beside what the kernel declares


@lru_cache(4096)
def choose(m: int, n: int, k: int, bits: int, group_size: int | None, tensor_cores: bool,
           processors: int) -> Plan | None:
    """The kernel for m rows of x and a weight of (n, k); None: dequantise, then the library's product."""
    width = 128 // bits  # columns of a 16-byte load
    if k % width or not fits_eights(n, k, group_size):
        return None
    group_size = None if group_size == k else group_size
    if not tensor_cores or (group_size is not None and group_size % width):
        return simple(m, n)
    if m > FEW_ROWS:
        return wide(m, n, k, bits, group_size, processors) if m <= UNPACKED_ROWS else None
    return skinny(n, k, bits, group_size, tiling(m, n, bits, processors), processors)


def tiling(m: int, n: int, bits: int, processors: int) -> int:
    """Tiles of 16 rows of the weight that a warp of a skinny kernel takes.

    A block reads 2 * m bytes of x for 16 * tiles * bits / 8 bytes of the weight. x comes from the L2 cache,
    the weight passes through it, and H100's L2 gives less than twice what its memory gives: as many tiles as
    keep x at half of the weight or below, as long as there are blocks for all processors.
    """
    tiles = next((tiles for tiles in (1, 2, 4) if tiles * bits >= 2 * m), 4)
    while tiles > 1 and n < 16 * tiles * processors:
        tiles //= 2
    return tiles


def skinny(n: int, k: int, bits: int, group_size: int | None, tiles: int, processors: int) -> Plan:
    """The kernel with these template arguments; as many warps as take equally many turns along k, as many blocks as the
    device holds at a time."""
    shares = -(-n // (16 * tiles))
    stage = 4 * 128 // bits  # columns
    scaling = "ROW" if group_size is None else "CHUNK" if group_size % stage else "STAGE"
    turns = -(-k // (stage * STAGES[tiles]))
    warps = -(-turns // -(-turns // WARPS))
    turn, sums = 32 * 16 * 2 * tiles * STAGES[tiles], 4 * 16 * tiles * FEW_ROWS  # bytes, of a warp
    return Plan(f"skinny_{tiles}_{scaling}", (1, min(shares, BLOCKS * processors)), 32 * warps, 1,
                warps * (DEPTH[tiles] * turn + sums))


def wide(m: int, n: int, k: int, bits: int, group_size: int | None, processors: int,
         splits: int | None = None) -> Plan | None:
    """splits: None for as many as it pays."""
    slices = 2 if m <= 16 else 4 if m <= 32 else 8  # of 8 rows of x
    step = STEP_BYTES * 8 // bits  # columns
    steps, x_blocks, row_blocks = -(-k // step), -(-m // (8 * slices)), -(-n // WIDE_ROWS)
    splits = splits or fewest_steps(x_blocks * row_blocks, steps, slices, processors)
    splits = -(-steps // -(-steps // splits))  # none without a step
    depth = 3 if slices == 8 else DEEPEST
    shared_bytes = depth * (WIDE_ROWS * STEP_BYTES + 8 * slices * step * 2)
    name = f"wide_{slices}_{'ROW' if group_size is None else 'GROUPS'}"
    plan = Plan(name, (splits * x_blocks, row_blocks), WIDE_ROWS, splits, shared_bytes)
    return plan if row_blocks <= LARGEST_GRID and splits * m * n < LARGEST_INDEX else None


def fewest_steps(blocks: int, steps: int, slices: int, processors: int) -> int:
    """Into how many parts to cut the columns, so that the processor with most to do has least; the fewest of equals."""
    def most(splits: int) -> float:
        part, adding = (0, 0) if splits == 1 else (PART * slices / 8, ADDING)
        return -(-blocks * splits // processors) * (-(-steps // splits) + FILLING + part) + adding

    return min(range(1, min(steps, MOST_SPLITS) + 1), key=most)


def simple(m: int, n: int) -> Plan | None:
    rows_of_x = 1 if m == 1 else 2 if m == 2 else 4
    grid = (-(-m // rows_of_x), -(-n // 8))  # 4 warps of 2 rows
    return Plan(f"simple_{rows_of_x}", grid, 128) if m <= SIMPLE_ROWS and grid[1] <= LARGEST_GRID else None


def blocks_beside(processors: int) -> int:
    """Of an expansion beside a product: a large one for each of a sixth of the processors. A product's blocks leave no
    registers for others, so the two share the processors, not each of them; and a device spreads blocks over all that
    are free, so that many small ones would keep the product's from every one. One processor moves 64 bytes in a turn
    of its clock: a sixth of an H100's 2.2 TB/s, and on all of them the product would stand still while they wait for
    memory."""
    return max(1, processors // 6)


def fits_eights(n: int, k: int, group_size: int | None) -> bool:
    """Whether eight neighbouring columns have one scale, and 32-bit indices of them and of scales suffice."""
    size = group_size or k
    return k % 8 == 0 and size % 8 == 0 and k * size < LARGEST_INDEX and n * (k // 8) < LARGEST_INDEX
