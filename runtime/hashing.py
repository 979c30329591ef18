"""Hashes of files at the speed of a disk, and many files at once.

XXH3 with 128 bits is the usual hash: it finds damage as well as any other and costs a tenth of copying; SHA-256, which
also withstands intent, would take longer than everything else that a conversion does.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HASHES = ("xxh3_128", "sha256")
DEFAULT_HASH = HASHES[0]
BUFFER_BYTES = 1 << 20
THREADS = 8  # hashing lets other threads of Python run; a disk serves no more readers at once


def new_hash(kind: str):
    """An object with update() and hexdigest()."""
    if kind == "xxh3_128":
        import xxhash

        return xxhash.xxh3_128()
    return hashlib.new(kind)


def blocks_of(path: Path, start: int = 0, size: int | None = None) -> Iterator[memoryview]:
    """A stretch of a file, in blocks that are valid until the next one; as far as the file goes."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while size is None or size > 0:
            count = file.readinto(buffer if size is None else buffer[: min(size, BUFFER_BYTES)])
            if not count:
                return
            yield buffer[:count]
            size = None if size is None else size - count


def hash_file(path: Path, kind: str = DEFAULT_HASH, advance: Callable[[int], None] = lambda count: None) -> str:
    """"kind:digits"."""
    digest = new_hash(kind)
    for block in blocks_of(path):
        digest.update(block)
        advance(len(block))
    return f"{kind}:{digest.hexdigest()}"


def hash_bytes(data: bytes, kind: str = DEFAULT_HASH) -> str:
    digest = new_hash(kind)
    digest.update(data)
    return f"{kind}:{digest.hexdigest()}"


def in_threads(work: Callable, items: Sequence) -> list:
    """work(item) of many files at once, in order."""
    with ThreadPoolExecutor(min(THREADS, max(1, len(items)), os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))
