"""Models that are larger than the memory they may take: which layers stay, and how the others come.

Everything but the layers stays (embedding, final norm), then as many layers as fit beside the slots of the streamed
ones. Streamed and resident layers alternate as evenly as can be, so that reading never waits for computing.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from glm.checkpoint import convert_command
from glm.fetch import Converted, Fetch, FromFile, ReadAndUploaded, Uploaded
from glm.layer_file import LayerFile, aligned_bytes, file_layout, packed_layout, views
from glm.shard import Shard
from glm.spec import SCALE, Part, layer_of
from glm.stream import Stream
from glm.weights import convert_shard
from kernels import CACHE_LINE
from quantization.functional import Scheme
from runtime.errors import UserError
from runtime.resources import free_host_memory, local_ranks

SLOTS = 2  # one layer is used, one is on its way
HOST_SHARE = 0.8  # of free host memory that pinned layers may take
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
Tensors = dict[str, torch.Tensor]


class Choice(NamedTuple):
    """resident, streamed: numbers of layers; both together are all."""

    resident: tuple[int, ...]
    streamed: tuple[int, ...]


def least(rest: int, layers: Sequence[int], raw: int = 0) -> int:
    """Bytes that the weights take at the least: what always stays, and two slots and `raw` beside them, or all."""
    return rest + min(SLOTS * max(layers) + raw, sum(layers))


def choose(layers: Sequence[int], rest: int, limit: float, raw: int = 0,
           least_in_bf16: Callable[[], int] | None = None) -> Choice:
    """Which layers are streamed. All in bytes: `layers` one after another, `rest` of what always stays, `raw` needed
    beside the slots where anything is streamed. Raises UserError, naming the least limit, below it; and --bf16, where
    the run could be in it and would then fit."""
    count = len(layers)
    if rest + sum(layers) <= limit:
        return Choice(tuple(range(count)), ())
    largest = max(layers)
    needed = least(rest, layers, raw)
    if limit < needed:
        halved = least_in_bf16() if least_in_bf16 is not None else limit + 1
        raise UserError(f"--offload-memory-limit {limit / 1e9:g}: this model needs at least {_up(needed)} GB on each "
                        f"rank, for the embedding and {SLOTS} of {count} layers"
                        + (f", in --bf16 {_up(halved)}" if halved <= limit else "")
                        + f"; with {_up(rest + sum(layers))} all layers fit (in Python: offload_memory_limit"
                        + (", dtype='bfloat16')" if halved <= limit else ")"))
    streamed = count - min(count, int((limit - needed) // largest))
    # for every streamed one as many resident ones before it; the last layer is streamed, and is gone during the head
    places = tuple((number + 1) * count // streamed - 1 for number in range(streamed))
    return Choice(tuple(sorted(set(range(count)) - set(places))), places)


def _up(size: int) -> str:
    """Bytes as GB with four digits, never less than they are."""
    step = 10 ** max(0, len(str(size)) - 4)
    return f"{math.ceil(size / step) * step / 1e9:g}"


class Offloaded(NamedTuple):
    """What a model with streamed layers is made of: tensors by name (those of streamed layers on "meta"), and how the
    streamed ones come. Where all layers fit none is streamed, and `tensors` are as without a limit."""

    tensors: dict[str, torch.Tensor]
    streamed: tuple[int, ...] = ()
    fetch: Fetch | None = None

    def stream(self, model: torch.nn.Module) -> Stream | None:
        """To be called when the model has these tensors."""
        return Stream(model, self.streamed, self.fetch) if self.streamed else None


def read_offloaded(shard: Shard, expected: Mapping[str, Part], dtype: torch.dtype, device: torch.device,
                   schemes: Mapping[str, Scheme], limit: float, degree: int,
                   progress: Callable[[int], None] | None = None) -> Offloaded:
    """A checked shard as convert_shard reads it, but with weights of at most `limit` bytes on the device.

    degree: of tensor parallelism. Raises UserError below the least limit, and where a file cannot be streamed.
    """
    units = _units(shard, expected, dtype, schemes)
    rest, *layers = [packed_layout(shapes)[1] for shapes in units]

    def convert(shapes: Iterable[str]) -> Tensors:
        return convert_shard(shard, [name for name in shapes if name in expected], dtype, device, schemes, progress)

    def least_in_bf16() -> int:
        source = Source(shard, _units(shard, expected, torch.bfloat16, schemes))
        rest, *layers = source.sizes
        return least(rest, layers, source.raw_bytes)

    if rest + sum(layers) <= limit:
        return Offloaded(convert(expected))
    if device.type == "cpu":
        _check_quantised(shard, schemes, degree)
        source = Source(shard, units)
        rest, *layers = source.sizes
        choice = choose(layers, rest, limit, source.raw_bytes, least_in_bf16 if dtype is torch.float32 else None)
        fetch = source.fetch(choice.streamed, SLOTS)
        kept = [source.read(unit, progress) for unit in (0, *(number + 1 for number in choice.resident))]
    else:
        choice = choose(layers, rest, limit)
        fetch = _uploads(shard, units, choice.streamed, schemes, convert, device, degree)
        kept = [convert(units[unit]) for unit in (0, *(number + 1 for number in choice.resident))]
    tensors = {name: torch.empty(shape, dtype=of, device="meta") for number in choice.streamed
               for name, (shape, of) in units[number + 1].items()}
    return Offloaded(dict(ChainMap(tensors, *kept)), choice.streamed, fetch)


def _units(shard: Shard, expected: Mapping[str, Part], dtype: torch.dtype,
           schemes: Mapping[str, Scheme]) -> list[Shapes]:
    """What the model holds, by name: first all that belongs to no layer, then layer by layer."""
    units: dict[int, Shapes] = {-1: {}}
    for name, part in expected.items():
        layer = layer_of(name)
        unit = units.setdefault(-1 if layer is None else layer, {})
        rows, *columns = shape = part.shape
        scale = shard.tensors.get(name + SCALE)
        if name not in schemes:
            unit[name] = shape, dtype
        else:
            bits, group = schemes[name]
            unit[name] = (rows, columns[0] * bits // 8), torch.int8
            unit[name + SCALE] = ((rows, columns[0] // group) if group else (rows,), torch.float16) if scale is None \
                else (tuple(scale.shape), scale.dtype)
    return [units[number] for number in sorted(units)]


def _check_quantised(shard: Shard, schemes: Mapping[str, Scheme], degree: int) -> None:
    """Raises UserError where weights would have to be quantised each time that they are read."""
    name, (bits, group) = next(iter(schemes.items()), (None, (None, None)))
    if name is not None and name + SCALE not in shard.tensors:
        flags = ("--quantization-bit-width", str(bits)) + (("--quantization-group-size", str(group)) if group else ())
        raise UserError(f"{shard.path} is not quantised, and layers that are read while the model runs cannot be "
                        "quantised on the way; do it once: "
                        + convert_command(shard.path.parent.parent, f"int{bits}", degree, *flags))


def _uploads(shard: Shard, units: Sequence[Shapes], streamed: Sequence[int], schemes: Mapping[str, Scheme],
             convert: Callable[[Iterable[str]], Tensors], device: torch.device, degree: int) -> Fetch:
    """For a GPU: the layers converted once into pinned host memory where there is room, else from the file."""
    layouts = {number: packed_layout(units[number + 1]) for number in streamed}
    if sum(size for _, size in layouts.values()) <= HOST_SHARE * free_host_memory() / local_ranks():
        host = {}
        for number, (layout, size) in layouts.items():
            host[number] = aligned_bytes(size, pinned=True)
            for name, tensor in convert(units[number + 1]).items():
                views(host[number], {name: layout[name]})[name].copy_(tensor)
        return Uploaded({number: layout for number, (layout, _) in layouts.items()},
                        _device_slots(max(size for _, size in layouts.values()), device), host, device)
    _check_quantised(shard, schemes, degree)
    near = Source(shard, units).fetch(streamed, 1, pinned=True)
    return ReadAndUploaded(near, _device_slots(near.buffers[0].numel(), device), device)


def _device_slots(size: int, device: torch.device) -> list[torch.Tensor]:
    return [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(SLOTS)]


class Source:
    """The units of a model as they lie in a file, and as the model wants them."""

    def __init__(self, shard: Shard, units: Sequence[Shapes]):
        self._file = LayerFile(shard.path)
        self._in_file = [file_layout({name: self._place(shard, name) for name in unit}) for unit in units]
        self._wanted = [packed_layout(unit) for unit in units]
        self._is_ready = all(
            found.tensors[name].dtype is dtype and found.tensors[name].place % CACHE_LINE == 0
            for found, unit in zip(self._in_file, units, strict=True) for name, (_, dtype) in unit.items())

    def _place(self, shard: Shard, name: str) -> tuple[int, tuple[int, ...], torch.dtype]:
        entry = shard.entries[name]
        if entry.stride is not None:
            raise UserError(f"{shard.path}: the numbers of {name} do not lie one after another, so its layer cannot be "
                            "read while the model runs; save it contiguous, or leave --offload-memory-limit away")
        return entry.offset, entry.shape, getattr(torch, entry.dtype)

    @property
    def sizes(self) -> list[int]:
        """Bytes of memory that each unit takes."""
        return [found.size if self._is_ready else size
                for found, (_, size) in zip(self._in_file, self._wanted, strict=True)]

    @property
    def raw_bytes(self) -> int:
        """Memory for a layer as it is in the file, where it has to be converted."""
        return 0 if self._is_ready else max(found.size for found in self._in_file[1:])

    def read(self, unit: int, progress: Callable[[int], None] | None = None) -> Tensors:
        """A unit's tensors, in memory of their own."""
        found, (wanted, size) = self._in_file[unit], self._wanted[unit]
        raw = aligned_bytes(found.size)
        self._file.start(found, raw)()
        if progress is not None:
            progress(found.size)
        if self._is_ready:
            return views(raw, found.tensors)
        sources, tensors = views(raw, found.tensors), views(aligned_bytes(size), wanted)
        for name, tensor in tensors.items():
            tensor.copy_(sources[name])
        return tensors

    def fetch(self, layers: Sequence[int], slots: int, pinned: bool = False) -> Fetch:
        """Brings these layers into so many slots in host memory, again and again."""
        buffers = [aligned_bytes(max(self.sizes[number + 1] for number in layers), pinned) for _ in range(slots)]
        layouts = {number: self._in_file[number + 1] for number in layers}
        if self._is_ready:
            return FromFile(self._file, layouts, buffers)
        return Converted(self._file, layouts, aligned_bytes(self.raw_bytes),
                         {number: self._wanted[number + 1][0] for number in layers}, buffers)
