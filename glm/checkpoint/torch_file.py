"""What torch.save wrote, read without torch: where its tensors lie. No code of the file is run.

Since torch 1.6 such a file is a zip archive: `data.pkl`, in which a tensor names the record `data/KEY` that holds its
numbers. Before, it was a row of pickles (a magic number, a version, facts of the machine, the content, the keys of the
storages) with the storages behind them, each after its length. Pickles are looked at first (glm.checkpoint.pickles),
then walked with stand-ins for all that they name.
"""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from glm.checkpoint.archive import read_pickle, records
from glm.checkpoint.entry import SIZES, Entry, FileIndex, Region, is_row_major, span
from glm.checkpoint.pickles import Refused, check_pickle

ZIP, LEGACY = b"PK\3\4", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how the two begin: a record, the magic number
STORAGES = {
    "Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64", "Char": "int8", "Byte": "uint8",
    "Short": "int16", "Int": "int32", "Long": "int64", "Bool": "bool", "ComplexFloat": "complex64",
    "ComplexDouble": "complex128", "Untyped": "uint8",
}  # fmt: skip
_STORAGE = re.compile(r"torch(?:\.storage)?\.(\w+)Storage")
LEGACY_VERSION = 1001
Locate = Callable[["_Storage"], Region]  # where the numbers of a storage lie; the region's name is not used


class Foreign(NamedTuple):
    """A value that is no tensor and no plain one: nothing is made of it."""

    kind: str


NOT_DENSE = Foreign("a tensor that is not dense")


class _Storage(NamedTuple):
    key: str
    dtype: str | None  # None: one that no dense tensor of numbers has
    numel: int
    begin: int = 0  # numbers of a larger storage before it


class _Tensor(NamedTuple):
    storage: _Storage
    dtype: str
    offset: int  # numbers of the storage before it
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Named:
    """Whatever else a pickle names: takes everything, does nothing."""

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *_):
        return Foreign(self.name)


class _State(dict):
    """A dictionary whose attributes (a state dict's versions) are of no use."""

    def __setstate__(self, _):
        """Nothing to restore."""


def is_one(start: bytes) -> bool:
    """Whether a file that begins like this was written by torch.save, or is a zip archive of another kind."""
    return start.startswith((ZIP, LEGACY))


def read(path: Path) -> FileIndex:
    """Raises Refused where the file asks for more than tensors, UserError for what has a line of its own, and whatever
    a damaged file ends in."""
    return (_read_zip if _begins_with(path, ZIP) else _read_legacy)(path)


def others(path: Path, key: str) -> dict[str, object]:
    """What a file, whose index was read, holds beside `key`, as torch makes it (imports torch)."""
    import torch

    content = torch.load(path, map_location="cpu", mmap=_begins_with(path, ZIP), weights_only=True)
    return {name: value for name, value in content.items() if name != key}


def _begins_with(path: Path, mark: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(mark)) == mark


def _read_zip(path: Path) -> FileIndex:
    found = records(path)
    by_name = {record.name: record for record in found}
    if "byteorder" in by_name and _bytes_of(path, by_name["byteorder"]) != b"little":
        raise ValueError("its numbers are written back to front")
    text = read_pickle(path, found)
    check_pickle(io.BytesIO(text))
    unpickler = _Unpickler(io.BytesIO(text))
    content, regions = _located(path, unpickler.load(), lambda storage: by_name[f"data/{storage.key}"])
    starts = {region.start for region in regions if region.bytes}
    structure = tuple(record for record in found if record.start not in starts)
    identity = "".join(f"{record.name} {record.bytes} {record.crc32}\n" for record in found)
    return FileIndex(path, content, regions, structure, identity)


def _read_legacy(path: Path) -> FileIndex:
    with path.open("rb") as file:
        _, version, machine = (_Unpickler(_next_pickle(file)).load() for _ in range(3))
        if version != LEGACY_VERSION or machine["little_endian"] is not True:
            raise ValueError("another version, or numbers that are written back to front")
        unpickler = _Unpickler(_next_pickle(file))
        content, places = unpickler.load(), {}
        for key in _Unpickler(_next_pickle(file)).load():
            count = int.from_bytes(file.read(8), "little")
            size = count * SIZES[unpickler.dtypes[key]]
            places[key] = Region(key, file.tell(), size, 0)
            end = file.seek(size, io.SEEK_CUR)
    if places and end > path.stat().st_size:
        raise ValueError("its last storage is cut off")
    content, regions = _located(path, content, lambda storage: places[storage.key])
    return FileIndex(path, content, regions)


def _bytes_of(path: Path, record) -> bytes:
    with path.open("rb") as file:
        file.seek(record.start)
        return file.read(record.bytes)


def _next_pickle(file: BinaryIO) -> io.BytesIO:
    """The pickle that begins here, which was looked at; the file is behind it then."""
    begin = file.tell()
    check_pickle(file)
    size = file.tell() - begin
    file.seek(begin)
    return io.BytesIO(file.read(size))


class _Unpickler(pickle.Unpickler):
    """Makes plain values, and stand-ins for all else. dtypes: of the storages, by their keys."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.dtypes: dict[str, str] = {}

    def find_class(self, module, name):
        name = f"{module}.{name}"
        return _MADE[name] if name in _MADE else _named(name)

    def persistent_load(self, identifier):
        kind, storage, key, _, numel, *view = identifier
        match = _STORAGE.fullmatch(storage.name)
        if kind != "storage" or not match or not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise ValueError("a storage that is none")
        dtype = STORAGES.get(match[1])
        if self.dtypes.setdefault(key, dtype) != dtype:
            raise ValueError("one storage of two kinds")
        if view and view[0] is not None:  # of a larger storage, of which files before torch 0.4 name a part
            _, begin, numel = view[0]
            return _Storage(key, dtype, numel, begin)
        return _Storage(key, dtype, numel)


def _named(name: str) -> _Named:
    if not name.startswith(("torch.", "collections.", "_codecs.", "builtins.", "__builtin__.")):
        raise Refused(name)
    return _Named(name)


def _tensor(storage, offset, shape, stride, *rest) -> _Tensor | Foreign:
    """A tensor as torch._utils._rebuild_tensor and its later versions have it: rest is (requires_grad, hooks), then
    what makes it no plain one; or its dtype, where the storage does not say it."""
    dtype = storage.dtype
    if len(rest) > 2 and isinstance(rest[2], _Named):
        dtype = rest[2].name.removeprefix("torch.")
        if dtype in SIZES and storage.numel % SIZES[dtype] == 0 and storage.begin == 0:
            storage = storage._replace(numel=storage.numel // SIZES[dtype])
    elif len(rest) > 2 and rest[2]:
        return NOT_DENSE
    if dtype not in SIZES:
        return NOT_DENSE
    numbers = (offset, *shape, *stride)
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)
            and all(type(number) is int and number >= 0 for number in numbers)):
        raise ValueError("a tensor without a place")
    if offset + span(shape, stride) > storage.numel:
        raise ValueError("a tensor that ends behind its storage")
    return _Tensor(storage, dtype, offset, shape, stride)


def _same(tensor, *_):
    """A parameter, which is a tensor with more."""
    return tensor


def _made_by(function, _, arguments, *__):
    """A tensor with attributes."""
    return function(*arguments)


_MADE = {
    "collections.OrderedDict": _State,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._tensor._rebuild_from_type_v2": _made_by,
}


def _located(path: Path, content: object, locate: Locate) -> tuple[dict, tuple[Region, ...]]:
    """The content with an entry for every tensor, and where the storages of all these lie."""
    regions: dict[str, Region] = {}
    done: dict[int, object] = {}  # by the identity of the value: one that stands in several places is walked once

    def entry(tensor: _Tensor, name: str) -> Entry:
        storage, size = tensor.storage, SIZES[tensor.dtype]
        found = locate(storage)
        if (storage.begin + storage.numel) * size > found.bytes or math.prod(tensor.shape) > path.stat().st_size:
            raise ValueError(f"{name} has more numbers than there are")
        regions.setdefault(storage.key, Region(name, found.start, found.bytes, found.crc32))
        offset = found.start + (storage.begin + tensor.offset) * size
        stride = tuple(step if count > 1 else 1 for count, step in zip(tensor.shape, tensor.stride, strict=True))
        made = Entry(path, offset, tensor.dtype, tensor.shape,
                     None if is_row_major(tensor.shape, tensor.stride) else stride)
        is_alone = made.stride is None and offset == found.start and made.bytes == found.bytes
        return made._replace(crc32=found.crc32 or None) if is_alone else made

    def walk(value: object, name: str) -> object:
        if isinstance(value, _Tensor):
            return entry(value, name)
        if id(value) in done or not isinstance(value, dict | list | tuple) or isinstance(value, Foreign | _Storage):
            return done.get(id(value), value)
        made = done[id(value)] = {} if isinstance(value, dict) else []
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            hidden = key == "module" and not name
            found = walk(inner, "" if hidden else f"{name}.{key}" if name else str(key))
            if isinstance(made, dict):
                made[key] = found
            else:
                made.append(found)
        return made

    found = walk(content, "")
    return found, tuple(sorted(regions.values(), key=lambda region: region.start))
