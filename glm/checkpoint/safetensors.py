"""Safetensors files: the size of a table (8 bytes), the table as JSON, and behind it the numbers of all tensors.

    {"NAME": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}, ..., "__metadata__": {"format": "pt"}}

Offsets count from the end of the table. The numbers fill the rest of the file, without gaps, little end first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from glm.checkpoint.entry import SIZES, Entry, FileIndex, Region
from runtime.errors import UserError
from runtime.reading import decode_text, parse_json

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "U16": "uint16",
    "I16": "int16", "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "I32": "int32", "F32": "float32",
    "U64": "uint64", "I64": "int64", "F64": "float64", "C64": "complex64",
}  # fmt: skip
LARGEST = 100_000_000  # bytes of a table, by the format's definition
METADATA = "__metadata__"
ALIGNMENT = 64  # of the numbers' begin in files that are written, a cache line: they can be mapped
NAMES = {dtype: name for name, dtype in DTYPES.items()}  # of the format, by torch's


def is_one(start: bytes) -> bool:
    """Whether a file that begins like this is a safetensors file."""
    return len(start) > 8 and 0 < int.from_bytes(start[:8], "little") <= LARGEST and start[8:9] == b"{"


def read(path: Path) -> FileIndex:
    """Raises UserError for a table that is no JSON or knows another dtype, ValueError and TypeError for what does not
    describe the file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST:
            raise ValueError("no table")
        text = file.read(size)
        end = file.seek(0, 2)
    table = parse_json(decode_text(text, str(path)), str(path))
    begin = 8 + size
    if not isinstance(table, dict) or len(text) < size:
        raise ValueError("the table is cut off")
    entries = {name: _entry(path, begin, name, value) for name, value in table.items() if name != METADATA}
    regions = sorted((Region(name, entry.offset, entry.bytes, 0) for name, entry in entries.items()),
                     key=lambda region: (region.start, region.bytes))
    place = begin
    for region in regions:
        if region.start != place:
            raise ValueError(f"{region.name} does not begin where the tensor before it ends")
        place += region.bytes
    if place != end:
        raise ValueError("the file does not end with its last tensor")
    return FileIndex(path, entries, tuple(regions))


def metadata_of(path: Path) -> dict[str, str]:
    """What the file says of itself, text by text; empty for a file of another format."""
    with path.open("rb") as file:
        start = file.read(9)
        if not is_one(start):
            return {}
        table = parse_json(decode_text(start[8:] + file.read(int.from_bytes(start[:8], "little") - 1), str(path)),
                           str(path))
    found = table.get(METADATA) if isinstance(table, dict) else None
    return {name: value for name, value in (found or {}).items() if isinstance(value, str)}


def table(described: Mapping[str, tuple[str, Sequence[int], int]], order: Iterable[str],
          metadata: Mapping[str, str]) -> bytes:
    """What stands before the numbers of a file that is written. described: of each tensor its dtype by the format's
    name, its shape and bytes. order: the names as the numbers lie."""
    places, place = {}, 0
    for name in order:
        places[name] = [place, place := place + described[name][2]]
    found = {name: {"dtype": dtype, "shape": list(shape), "data_offsets": places[name]}
             for name, (dtype, shape, _) in described.items()}
    text = json.dumps({METADATA: dict(metadata)} | found, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _entry(path: Path, begin: int, name: str, value: dict) -> Entry:
    dtype, shape, (first, last) = value["dtype"], value["shape"], value["data_offsets"]
    if dtype not in DTYPES:
        raise UserError(f"{path}: {name[:80]} has the dtype {str(dtype)[:20]}; allowed: {', '.join(DTYPES)}")
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise ValueError(f"{name} has no shape or no place")
    if last - first != math.prod(shape) * SIZES[DTYPES[dtype]]:
        raise ValueError(f"{name} has another size than its shape")
    return Entry(path, begin + first, DTYPES[dtype], tuple(shape))
