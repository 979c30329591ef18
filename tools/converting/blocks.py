"""One tensor of the result, block by block: cut out of the mapped inputs, joined, quantised, never whole in memory.

A `Band` is some rows of the result whose columns come from one or several inputs. A tensor is a list of bands, one
below the other. Rows are quantised one by one, so a block of rows gives what the whole tensor would.
"""

import collections
import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from kernels.packing import dequantize
from quantization.functional import Scheme, quantize
from runtime import resources
from tools.converting.torchfile import Block

BLOCK_BYTES = 1 << 21  # fits the caches in which copying, checksum and hash meet it
THREADS = 8  # that quantise, where there are as many cores


class Slice(NamedTuple):
    """Rows and columns of a mapped tensor; of a vector, as of a tensor of other dimensions, all columns."""

    tensor: Tensor
    rows: tuple[int, int]
    columns: tuple[int, int] | None = None

    def part(self, start: int, stop: int) -> Tensor:
        """Rows start ... stop of the slice, as a view."""
        rows = self.tensor[self.rows[0] + start : self.rows[0] + stop]
        return rows if self.columns is None else rows[:, self.columns[0] : self.columns[1]]

    def advise(self, start: int, stop: int, advice: Callable[[Tensor], None]) -> None:
        """advice: read_now or let_go of runtime.resources."""
        if self.tensor.is_contiguous():
            advice(self.tensor[self.rows[0] + start : self.rows[0] + stop])


Band = Sequence[Slice]


def read_blocks(bands: Sequence[Band]) -> Iterator[Block]:
    """The rows of the bands as contiguous blocks; one slice alone is not copied but lies in the mapped file."""
    buffers = itertools.cycle(([], []))  # two, because a block may still be written while the next one is made
    for band in bands:
        count = band[0].rows[1] - band[0].rows[0]
        for start, stop in _row_blocks(count, sum(_row_bytes(piece) for piece in band)):
            yield _block(band, start, stop, next(buffers))


def quantized_blocks(bands: Sequence[Band], target: Scheme, keep_scale: Callable[[Tensor], None],
                     source: Scheme | None = None, scale_of: Callable[[], Tensor] | None = None) -> Iterator[Block]:
    """The rows of the bands quantised; keep_scale gets the scale of all rows at the end.

    source, scale_of: what the bands are quantised by already, with the scale of all rows of the result: they are
    expanded to float32 first.
    """
    old_scale = scale_of() if scale_of is not None else None

    def quantized(band: Band, start: int, stop: int, row: int) -> tuple[Tensor, Tensor]:
        weight, release = _block(band, start, stop, [])
        if source is not None:
            weight = dequantize(weight, old_scale[row : row + stop - start], source.bits, torch.float32)
        result = quantize(weight, target.bits, target.group_size)
        release()
        return result

    scales, threads, pending = [], min(THREADS, os.cpu_count() or 1), collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        for job in _quantizing_jobs(bands):
            pending.append(pool.submit(quantized, *job))
            if len(pending) > threads:
                packed, scale = pending.popleft().result()
                scales.append(scale)
                yield Block(packed)
        for job in pending:
            packed, scale = job.result()
            scales.append(scale)
            yield Block(packed)
    keep_scale(torch.cat(scales))


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Blocks are too small for torch's own threads, which spin while they wait; ours take a block each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _quantizing_jobs(bands: Sequence[Band]) -> Iterator[tuple[Band, int, int, int]]:
    """Each block with the number of rows above it."""
    above = 0
    for band in bands:
        count = band[0].rows[1] - band[0].rows[0]
        for start, stop in _row_blocks(count, sum(_row_bytes(piece) for piece in band)):
            yield band, start, stop, above + start
        above += count


def _block(band: Band, start: int, stop: int, buffer: list[Tensor]) -> Block:
    """buffer: of a block before, to be used again, or empty; fresh memory costs as much as copying."""

    def advise(advice: Callable[[Tensor], None]) -> None:
        for piece in band:
            piece.advise(start, stop, advice)

    advise(resources.read_now)
    parts = [piece.part(start, stop) for piece in band]
    if len(parts) == 1 and parts[0].is_contiguous():
        return Block(parts[0], lambda: advise(resources.let_go))
    if parts[0].dim() == 2:
        if not buffer or len(buffer[-1]) < stop - start:
            buffer.append(torch.empty(stop - start, sum(part.shape[1] for part in parts), dtype=parts[0].dtype))
        block = buffer[-1][: stop - start]
        _copy_side_by_side(parts, block)
    else:
        block = parts[0].contiguous()
    advise(resources.let_go)
    return Block(block, lambda: None)


def _copy_side_by_side(parts: Sequence[Tensor], block: Tensor) -> None:
    """torch.cat(parts, dim=1) in one thread: torch's others would wait for one another and for the one that writes."""
    if any(part.stride(1) != 1 for part in parts):
        torch.cat(parts, dim=1, out=block)
        return
    target, begin = block.view(torch.uint8).numpy(), 0
    for part in parts:
        source = part.view(torch.uint8).numpy()
        target[:, begin : begin + source.shape[1]] = source
        begin += source.shape[1]


def _row_blocks(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // max(row_bytes, 1))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _row_bytes(piece: Slice) -> int:
    shape = piece.tensor.shape[1:]
    columns = torch.Size(shape).numel() if piece.columns is None else piece.columns[1] - piece.columns[0]
    return columns * piece.tensor.element_size()
