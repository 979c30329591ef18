"""torch's file format written front to back, with the tensors' bytes coming as a stream.

torch.save needs a tensor whole in memory. The format is a zip archive without compression: `data.pkl`, in which a
tensor is a reference to the record `data/<key>`, and these records, each at a multiple of 64 bytes, so that they can be
mapped. Here the pickle is made from names, shapes and dtypes alone, and the records are written as blocks arrive. The
same tensors give the same bytes, today and tomorrow.
"""

import contextlib
import ctypes
import io
import os
import pickle
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from glm.checkpoint import Region
from runtime.hashing import new_hash

ALIGNMENT = 64
FLUSH_BYTES = 32 << 20
SYNC_FILE_RANGE_WRITE = 2  # Linux
ARCHIVE = "archive"  # any name: torch takes that of the first record
FIRST_YEAR = (1980, 1, 1, 0, 0, 0)  # the oldest date of a zip archive, instead of now
_STORAGES = {
    torch.float16: "HalfStorage", torch.bfloat16: "BFloat16Storage", torch.float32: "FloatStorage",
    torch.float64: "DoubleStorage", torch.int8: "CharStorage", torch.uint8: "ByteStorage", torch.int16: "ShortStorage",
    torch.int32: "IntStorage", torch.int64: "LongStorage", torch.bool: "BoolStorage",
    torch.complex64: "ComplexFloatStorage", torch.complex128: "ComplexDoubleStorage",
}  # fmt: skip


class Block(NamedTuple):
    """Some of a tensor's memory. release: called once it has been used."""

    tensor: torch.Tensor
    release: Callable[[], None] | None = None


class Planned(NamedTuple):
    """A tensor to be: what it is, and how its bytes come, as blocks that follow one another in memory order."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Block]]

    @property
    def bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()


class Written(NamedTuple):
    """The places of a file's tensors, and the checksum of everything that lies between them."""

    regions: list[Region]
    structure_crc32: int


class Output(Protocol):
    """Where a file goes: written front to back only. behind: data that is written inside the with block, and may be
    needed until the next one or drain()."""

    def write(self, data) -> int: ...

    def behind(self, data) -> AbstractContextManager: ...

    def drain(self) -> None: ...


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


def start_flushing(file: int, start: int, count: int) -> None:
    """The system begins to write these bytes to the disk now instead of all of them at the end. Only advice."""
    if sys.platform == "linux":
        ctypes.CDLL(None).sync_file_range(file, ctypes.c_int64(start), ctypes.c_int64(count), SYNC_FILE_RANGE_WRITE)


class _Storage(NamedTuple):
    kind: type
    key: str
    size: int


class _Pickler(pickle.Pickler):
    """Entries become the tensors that torch.load rebuilds; everything else is pickled as it is."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.entries: list[tuple[Planned, _Storage]] = []

    def persistent_id(self, value):
        return ("storage", value.kind, value.key, "cpu", value.size) if isinstance(value, _Storage) else None

    def reducer_override(self, value):
        return _rebuilt(value, self._storage(value)) if isinstance(value, _Named) else NotImplemented

    def _storage(self, named):
        entry = named.entry
        kind = getattr(torch, _STORAGES[entry.dtype]) if entry.dtype in _STORAGES else torch.UntypedStorage
        storage = _Storage(kind, str(len(self.entries)), entry.numel if entry.dtype in _STORAGES else entry.bytes)
        self.entries.append((entry, storage))
        return storage


class _Named:
    """An entry that the pickler meets: no tuple, because tuples are pickled without asking."""

    def __init__(self, entry: Planned):
        self.entry = entry


def _rebuilt(named: _Named, storage: _Storage):
    entry = named.entry
    stride = torch.empty(entry.shape, device="meta").stride()
    arguments = (storage, 0, tuple(entry.shape), stride, False, OrderedDict())
    if entry.dtype in _STORAGES:
        return torch._utils._rebuild_tensor_v2, arguments
    return torch._utils._rebuild_tensor_v3, (*arguments, entry.dtype)


def write_torch_file(output: Output, content: Mapping[str, object]) -> Written:
    """Writes what torch.load gives back as ``content`` with its entries as tensors; where everything lies.

    content: dictionaries of entries, of anything that torch.load reads with weights_only=True, and of such
    dictionaries. output: gets the whole file front to back.
    """
    stream, text = _Position(output), io.BytesIO()
    pickler = _Pickler(text)
    names: list[str] = []
    pickler.dump(_marked(content, names))
    regions = []
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        _small(archive, stream, "data.pkl", text.getvalue())
        _small(archive, stream, "byteorder", sys.byteorder.encode())
        for name, (entry, storage) in zip(names, pickler.entries, strict=True):
            record = _record(stream, f"data/{storage.key}", entry.bytes)
            with archive.open(record, "w") as file:
                start, stream.in_tensor = stream.position, True
                write_blocks(output, file, entry)
                stream.in_tensor = False
                if stream.position - start != entry.bytes or start % ALIGNMENT:
                    raise RuntimeError(f"{name}: {stream.position - start} bytes at {start}, {entry.bytes} planned")
            regions.append(Region(name, start, entry.bytes, record.CRC))
        _small(archive, stream, "version", b"3\n")
    return Written(regions, stream.structure_crc32)


def planned_bytes(content: Mapping[str, object]) -> int:
    """How large the file will be, or a little more."""
    names: list[str] = []
    text = io.BytesIO()
    pickler = _Pickler(text)
    pickler.dump(_marked(content, names))
    return text.tell() + 4096 + sum(entry.bytes + 384 for entry, _ in pickler.entries)


def write_blocks(output: Output, file, entry: Planned) -> None:
    """A tensor's bytes, to the disk and at the same time through `file`, which passes them to output.write."""
    before = None
    for block in entry.blocks():
        data = as_bytes(block.tensor)
        with output.behind(data):  # the block before is on its way
            if before is not None and before.release is not None:
                before.release()
            file.write(data)
        before = block
    output.drain()
    if before is not None and before.release is not None:
        before.release()


def as_bytes(block: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor of any dtype."""
    return memoryview(block.detach().reshape(-1).view(torch.uint8).numpy())


def _marked(content: Mapping[str, object], names: list[str], prefix: str = "") -> dict:
    """A copy in which the pickler sees entries; names: gets the entries' names, in the pickler's order."""
    copy = {}
    for key, value in content.items():
        if isinstance(value, Planned):
            names.append(prefix + str(key))
            copy[key] = _Named(value)
        else:
            inner = "" if key == "module" and not prefix else f"{prefix}{key}."
            copy[key] = _marked(value, names, inner) if isinstance(value, dict) else value
    return copy


def _small(archive: zipfile.ZipFile, stream: "_Position", name: str, data: bytes) -> None:
    archive.writestr(_record(stream, name, len(data)), data)


def _record(stream: "_Position", name: str, size: int) -> zipfile.ZipInfo:
    """A record whose data begins at a multiple of ALIGNMENT: an extra field "FB", as torch has it, fills up."""
    record = zipfile.ZipInfo(f"{ARCHIVE}/{name}", FIRST_YEAR)
    record.file_size = size
    # zipfile adds a field of 20 bytes where sizes may need 64 bits, by this very rule
    wide = 20 if size * 1.05 > zipfile.ZIP64_LIMIT else 0
    begin = stream.position + 30 + len(record.filename) + 4 + wide
    padding = -begin % ALIGNMENT
    record.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return record


class _Position:
    """Counts what is written. Has no seek, so that zipfile never goes back."""

    def __init__(self, output: Output):
        self._output, self.position, self.in_tensor, self.structure_crc32 = output, 0, False, 0

    def write(self, data) -> int:
        if not self.in_tensor:
            self.structure_crc32 = zlib.crc32(data, self.structure_crc32)
        self.position += len(data)
        self._output.write(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""
