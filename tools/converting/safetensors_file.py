"""Safetensors files written front to back, with the tensors' bytes coming as a stream.

The format: glm/checkpoint/safetensors.py.
"""

import zlib
from collections.abc import Mapping

from glm.checkpoint import Region, safetensors
from runtime.errors import UserError
from tools.converting.torchfile import Output, Planned, Written, write_blocks


def write_safetensors(output: Output, tensors: Mapping[str, Planned]) -> Written:
    """Writes a file that holds the tensors; where everything lies.

    Numbers that take more bytes come first, so that all begin at multiples of their size. Raises UserError for a dtype
    that the format does not have.
    """
    table, order = _table(tensors)
    start, regions = output.write(table), []
    for name in order:
        file = _Checksum(output)
        write_blocks(output, file, tensors[name])
        if file.bytes != tensors[name].bytes:
            raise RuntimeError(f"{name}: {file.bytes} bytes, {tensors[name].bytes} planned")
        regions.append(Region(name, start, file.bytes, file.crc32))
        start += file.bytes
    return Written(regions, zlib.crc32(table))


def planned_bytes(tensors: Mapping[str, Planned]) -> int:
    """How large the file will be."""
    return len(_table(tensors)[0]) + sum(tensor.bytes for tensor in tensors.values())


def _table(tensors: Mapping[str, Planned]) -> tuple[bytes, list[str]]:
    """What stands before the numbers, filled up with blanks so that these can be mapped; the order of the numbers."""
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    described = {name: (_dtype(name, tensor), tensor.shape, tensor.bytes) for name, tensor in tensors.items()}
    return safetensors.table(described, order, {"format": "pt"}), order


def _dtype(name: str, tensor: Planned) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in safetensors.NAMES:
        raise UserError(f"{name} has the dtype {dtype}, which safetensors files cannot hold; they can: "
                        f"{', '.join(safetensors.NAMES)}")
    return safetensors.NAMES[dtype]


class _Checksum:
    """Passes on what is written, and keeps its size and CRC-32."""

    def __init__(self, output: Output):
        self._output, self.bytes, self.crc32 = output, 0, 0

    def write(self, data) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        self.bytes += len(data)
        return self._output.write(data)
