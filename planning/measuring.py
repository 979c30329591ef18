"""This machine's rates, measured in under a second: reading memory, matrix products, and the disk of a checkpoint."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from planning.devices import Device

BUFFER = 256 << 20  # bytes that are read at most; far more than caches hold
LEAST_BUFFER = 1 << 20
READINGS = 8
ROWS = 512  # of x in the products
LARGEST = 1 << 24  # weights of a product that is tried; larger ones are cut
BLOCK = 8 << 20  # bytes that are read from disk at a time
DISK_SECONDS, PRODUCT_SECONDS = 0.2, 0.25


def host(memory: float, precisions: Sequence[str], shapes: Sequence[tuple[int, int]], weights: float,
         rows: int = ROWS) -> Device:
    """This machine's processor as a device. shapes: (n, k) of the products to try; weights: bytes that a step reads:
    small ones stay in the processor's caches. Imports torch."""
    speed = bandwidth(weights)
    rates = {precision: matrix_rate(precision, shapes, rows) for precision in precisions}
    return Device("cpu", "this machine's processor", "cpu", memory, speed, rates, speed, speed, "measured now", True)


def bandwidth(size: float, choose: Callable = median) -> float:
    """Bytes a second at which all threads together read `size` bytes again and again, by the compiled kernels' loop.
    choose: which of several readings counts (of seconds; min: the best one)."""
    import torch

    import kernels

    compiled = kernels.compiled()
    count = int(min(BUFFER, max(LEAST_BUFFER, size))) // 64 * 64
    buffer = torch.zeros(count, dtype=torch.uint8)
    read = (lambda: compiled.read(buffer)) if compiled else (lambda: buffer.view(torch.float32).sum())
    read()
    return count / choose(_seconds(read) for _ in range(READINGS))


def matrix_rate(precision: str, shapes: Sequence[tuple[int, int]], rows: int = ROWS,
                choose: Callable = median) -> float:
    """Operations a second of torch's products of `rows` rows with weights of these shapes; choose as above."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    operations = seconds = 0.0
    with torch.inference_mode():
        for n, k in shapes:
            n, k = min(n, LARGEST // 1024), min(k, 4096)
            x, weight = torch.ones(rows, k, dtype=dtype), torch.ones(n, k, dtype=dtype)

            def product(x=x, weight=weight):
                torch.nn.functional.linear(x, weight)

            product()
            found, end = [], time.perf_counter() + PRODUCT_SECONDS / len(shapes)
            while not found or (time.perf_counter() < end and len(found) < 20):
                found.append(_seconds(product))
            operations += 2.0 * rows * n * k
            seconds += choose(found)
    return operations / seconds


def disk_rate(file: Path) -> float | None:
    """Bytes a second that come from the disk of a file, past the page cache; None where this cannot be told."""
    size = file.stat().st_size
    if size < 2 * BLOCK or not hasattr(os, "O_DIRECT"):
        return None
    try:
        handle = os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError:  # a file system that knows no direct reading
        return None
    total, begin = 0, time.perf_counter()
    with mmap.mmap(-1, BLOCK) as buffer:
        try:
            while total < size - BLOCK and time.perf_counter() - begin < DISK_SECONDS:
                total += os.preadv(handle, [buffer], total)
        except OSError:
            return None
        finally:
            os.close(handle)
    return total / (time.perf_counter() - begin)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
