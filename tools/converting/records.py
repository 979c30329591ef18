"""torch's file format read as bytes: where each tensor lies, and the checksum that the zip archive has of it.

Nothing in the file is run: the pickle is walked with stand-ins for everything that it names.
"""

import io
import pickle
import struct
from pathlib import Path

from glm.archive import read_pickle, records
from glm.pickles import check_pickle
from tools.converting.torchfile import Region

DAMAGED = (pickle.UnpicklingError, struct.error, OSError, EOFError, LookupError, ValueError,
           TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError, StopIteration)


class _StandIn:
    """For whatever a pickle names: takes everything, does nothing, remembers what it was made of."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def __call__(self, *arguments):
        return _StandIn(*arguments)

    def __setstate__(self, state):
        """Nothing to restore."""

    def __setitem__(self, key, value):
        """Items of an OrderedDict."""


class _Storage(str):
    """The key of a tensor's data."""


class _Walker(pickle.Unpickler):
    def find_class(self, module, name):
        return dict if (module, name) == ("collections", "OrderedDict") else _StandIn()

    def persistent_load(self, identifier):
        return _Storage(identifier[2])


def tensor_regions(path: Path) -> list[Region]:
    """Where the file's tensors lie, by their names in the state dict. Raises one of DAMAGED.

    crc32: as the archive says. A tensor that shares its data with one before it is not named.
    """
    found = records(path)
    text = io.BytesIO(read_pickle(path, found))
    check_pickle(text)
    text.seek(0)
    content, by_name = _Walker(text).load(), {record.name: record for record in found}
    regions: dict[str, Region] = {}
    for name, key in _storages(content):
        record = by_name[f"data/{key}"]
        regions.setdefault(key, Region(name, record.start, record.bytes, record.crc32))
    return sorted(regions.values(), key=lambda region: region.start)


def _storages(value, prefix: str = ""):
    """(name, key) of every tensor in nested dictionaries."""
    if isinstance(value, dict):
        for key, inner in value.items():
            hidden = key == "module" and not prefix
            yield from _storages(inner, prefix if hidden else f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, _StandIn):
        for argument in value.arguments:
            if isinstance(argument, _Storage):
                yield prefix, str(argument)
            elif isinstance(argument, _StandIn):  # a parameter: a tensor inside
                yield from _storages(argument, prefix)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _storages(inner, f"{prefix}.{place}" if prefix else str(place))
