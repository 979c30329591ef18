"""Hashes and checksums of files at the speed of a disk: while they are written, or of many at once.

XXH3 with 128 bits is the usual hash: it finds damage as well as any other and costs a tenth of copying; SHA-256, which
also withstands intent, would take longer than everything else that a conversion does.
"""

import contextlib
import ctypes
import hashlib
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from glm.checkpoint import Region

HASHES = ("xxh3_128", "sha256")
DEFAULT_HASH = HASHES[0]
BUFFER_BYTES = 1 << 20
FLUSH_BYTES = 32 << 20
SYNC_FILE_RANGE_WRITE = 2  # Linux
THREADS = 8  # hashing lets other threads of Python run; a disk serves no more readers at once


class HashedFile:
    """A file that is written front to back, in a thread of its own, and hashed on the way.

    advance: called with the number of bytes after every write.
    """

    def __init__(self, path: Path, kind: str, advance: Callable[[int], None]):
        self._file, self._advance, self._hash = path.open("wb", buffering=0), advance, new_hash(kind)
        self._kind, self._thread, self._going, self._is_behind = kind, ThreadPoolExecutor(1), None, False
        self.bytes = self._flushing = 0

    def write(self, data) -> int:
        data = memoryview(data)
        if not self._is_behind:
            self.drain()
            self._put(data)
        self._hash.update(data)
        self._advance(len(data))
        return len(data)

    @contextlib.contextmanager
    def behind(self, data) -> Iterator[None]:
        """Data goes to the disk, after what is still going there, while the block passes it to write() for the hash.

        It must stay as it is until the next one has come this far, or drain().
        """
        self.drain()
        self._is_behind, self._going = True, self._thread.submit(self._put, memoryview(data))
        try:
            yield
        finally:
            self._is_behind = False

    def drain(self) -> None:
        """Everything so far has been handed to the system."""
        if self._going is not None:
            going, self._going = self._going, None
            going.result()

    def close(self) -> str:
        """The file is on the disk; its hash."""
        self.drain()
        os.fsync(self._file.fileno())
        self.abandon()
        return f"{self._kind}:{self._hash.hexdigest()}"

    def abandon(self) -> None:
        self._thread.shutdown()
        self._file.close()

    def _put(self, data: memoryview) -> None:
        done = 0
        while done < len(data):  # one call of the system writes 2 GB at most
            done += self._file.write(data[done:])
        self.bytes += len(data)
        if self.bytes - self._flushing >= FLUSH_BYTES:
            start_flushing(self._file.fileno(), self._flushing, self.bytes - self._flushing)
            self._flushing = self.bytes


def new_hash(kind: str):
    """An object with update() and hexdigest()."""
    if kind == "xxh3_128":
        import xxhash

        return xxhash.xxh3_128()
    return hashlib.new(kind)


def start_flushing(file: int, start: int, count: int) -> None:
    """The system begins to write these bytes to the disk now instead of all of them at the end. Only advice."""
    if sys.platform == "linux":
        ctypes.CDLL(None).sync_file_range(file, ctypes.c_int64(start), ctypes.c_int64(count), SYNC_FILE_RANGE_WRITE)


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


def checksums(path: Path, regions: Sequence[Region], kind: str = DEFAULT_HASH,
              advance: Callable[[int], None] = lambda count: None) -> tuple[str, list[int], int]:
    """In one pass over a file: its hash, the CRC-32 of each region, and that of everything between them, in order.

    regions: by their places, which may lie beyond the file's end; nothing else of them is looked at.
    """
    digest, found, structure, place = new_hash(kind), [], 0, 0
    for region in regions:
        for start, size, is_region in ((place, region.start - place, False), (region.start, region.bytes, True)):
            checksum = 0 if is_region else structure
            for block in blocks_of(path, start, max(size, 0)):
                checksum = zlib.crc32(block, checksum)
                digest.update(block)
                advance(len(block))
            if is_region:
                found.append(checksum)
            else:
                structure = checksum
        place = region.start + region.bytes
    for block in blocks_of(path, place):
        structure = zlib.crc32(block, structure)
        digest.update(block)
        advance(len(block))
    return f"{kind}:{digest.hexdigest()}", found, structure


def crc32_of(path: Path, start: int, size: int, advance: Callable[[int], None]) -> int:
    checksum = 0
    for block in blocks_of(path, start, size):
        checksum = zlib.crc32(block, checksum)
        advance(len(block))
    return checksum


def in_threads(work: Callable, items: Sequence) -> list:
    """work(item) of many files at once, in order."""
    with ThreadPoolExecutor(min(THREADS, max(1, len(items)), os.cpu_count() or 1)) as pool:
        return list(pool.map(work, items))
