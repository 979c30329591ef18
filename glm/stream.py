"""Models that are larger than the memory they may take: which layers stay, and how the others come and go.

    for every layer: stream.at_hand(number), then use it;  stream.leave() behind the last

Embedding and final norm stay, then as many layers as fit beside the slots of the streamed ones. While the layer in one
slot is used, the next ones are on their way into the others; behind the last comes the first one again, for the next
pass. Streamed and resident layers alternate as evenly as can be, so that reading never waits for computing.
"""

from __future__ import annotations

import math
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import cycle, dropwhile
from typing import NamedTuple

import torch

from glm.checkpoint import convert_command
from glm.fetch import (
    Converted,
    Fetch,
    FromFile,
    LayerFiles,
    ReadAndUploaded,
    Uploaded,
    aligned_bytes,
    file_layout,
    packed_layout,
    pinned_bytes,
    views,
)
from glm.shard import Shard
from glm.spec import SCALE, Part, layer_of
from glm.weights import convert_shard
from kernels import CACHE_LINE
from quantization.functional import Scheme
from runtime.errors import UserError
from runtime.resources import free_host_memory, local_ranks

SLOTS = 2  # one layer is used, one is on its way
HOST_SHARE = 0.8  # of free host memory that pinned layers may take
REST = -1  # the number of what belongs to no layer, where layers go by their numbers
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
Tensors = dict[str, torch.Tensor]


class Choice(NamedTuple):
    """Numbers of layers; both together are all."""

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
    """What a model with streamed layers is made of. Where all layers fit none is streamed, as without a limit."""

    tensors: Tensors  # by name; those of streamed layers on "meta"
    streamed: tuple[int, ...] = ()
    fetch: Fetch | None = None  # brings them

    def stream(self, model: torch.nn.Module) -> Stream | None:
        """To be called when the model has these tensors."""
        return Stream(model, self.streamed, self.fetch) if self.streamed else None


def read_offloaded(shard: Shard, expected: Mapping[str, Part], dtype: torch.dtype, device: torch.device,
                   schemes: Mapping[str, Scheme], limit: float, degree: int,
                   progress: Callable[[int], None] | None = None) -> Offloaded:
    """A checked shard as convert_shard reads it, but with weights of at most `limit` bytes on the device.

    degree: of tensor parallelism. Raises UserError below the least limit, and where a file cannot be streamed.
    """
    def convert(names: Iterable[str]) -> Tensors:
        return convert_shard(shard, [name for name in names if name in expected], dtype, device, schemes, progress)

    def least_in_bf16() -> int:
        source = Source(shard, _units(shard, expected, torch.bfloat16, schemes))
        return least(*source.sizes, source.raw_bytes)

    units = _units(shard, expected, dtype, schemes)
    rest, *layers = [packed_layout(unit).size for unit in units.values()]
    if rest + sum(layers) <= limit:
        return Offloaded(convert(expected))
    if device.type == "cpu":
        _check_quantised(shard, schemes, degree)
        source = Source(shard, units)
        rest, layers = source.sizes
        choice = choose(layers, rest, limit, source.raw_bytes, least_in_bf16 if dtype is torch.float32 else None)
        fetch = source.fetch(choice.streamed, SLOTS)
        kept = [source.read(unit, progress) for unit in (REST, *choice.resident)]
    else:
        choice = choose(layers, rest, limit)
        fetch = _uploads(shard, units, choice.streamed, schemes, convert, device, degree)
        kept = [convert(units[unit]) for unit in (REST, *choice.resident)]
    absent = {name: torch.empty(shape, dtype=of, device="meta") for layer in choice.streamed
              for name, (shape, of) in units[layer].items()}
    return Offloaded(dict(ChainMap(absent, *kept)), choice.streamed, fetch)


def _units(shard: Shard, expected: Mapping[str, Part], dtype: torch.dtype,
           schemes: Mapping[str, Scheme]) -> dict[int, Shapes]:
    """What the model holds: first all that belongs to no layer, then layer by layer."""
    units: dict[int, Shapes] = {REST: {}}
    for name, part in expected.items():
        layer = layer_of(name)
        unit = units.setdefault(REST if layer is None else layer, {})
        if name not in schemes:
            unit[name] = part.shape, dtype
            continue
        (rows, columns), (bits, group), scale = part.shape, schemes[name], shard.entries.get(name + SCALE)
        unit[name] = (rows, columns * bits // 8), torch.int8
        unit[name + SCALE] = (((rows, columns // group) if group else (rows,), torch.float16) if scale is None else
                              (scale.shape, getattr(torch, scale.dtype)))
    return {number: units[number] for number in sorted(units)}


def _check_quantised(shard: Shard, schemes: Mapping[str, Scheme], degree: int) -> None:
    """Raises UserError where weights would have to be quantised each time that they are read."""
    name, (bits, group) = next(iter(schemes.items()), (None, (None, None)))
    if name is not None and name + SCALE not in shard.tensors:
        flags = ("--quantization-bit-width", str(bits)) + (("--quantization-group-size", str(group)) if group else ())
        raise UserError(f"{shard.path} is not quantised, and layers that are read while the model runs cannot be "
                        "quantised on the way; do it once: "
                        + convert_command(shard.path.parent.parent, f"int{bits}", degree, *flags))


def _uploads(shard: Shard, units: Mapping[int, Shapes], streamed: Sequence[int], schemes: Mapping[str, Scheme],
             convert: Callable[[Iterable[str]], Tensors], device: torch.device, degree: int) -> Fetch:
    """For a GPU: the layers converted once into pinned host memory where there is room, else from the file."""
    def slots(size: int) -> list[torch.Tensor]:
        return [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(SLOTS)]

    layouts = {layer: packed_layout(units[layer]) for layer in streamed}
    sizes = [layout.size for layout in layouts.values()]
    if sum(map(pinned_bytes, sizes)) <= HOST_SHARE * free_host_memory() / local_ranks():
        host = {layer: aligned_bytes(layout.size, pinned=True) for layer, layout in layouts.items()}
        for layer, layout in layouts.items():
            places = views(host[layer], layout.tensors)
            for name, tensor in convert(units[layer]).items():
                places[name].copy_(tensor)
        return Uploaded(layouts, slots(max(sizes)), host, device)
    _check_quantised(shard, schemes, degree)
    near = Source(shard, units).fetch(streamed, 1, pinned=True)
    return ReadAndUploaded(near, slots(near.buffers[0].numel()), device)


class Source:
    """The units of a model as they lie in files, and as the model wants them."""

    def __init__(self, shard: Shard, units: Mapping[int, Shapes]):
        self._files = LayerFiles(shard.tensors.inodes)
        self._in_file = {number: file_layout({name: shard.entries[name] for name in unit})
                         for number, unit in units.items()}
        self._is_ready = all(at.dtype is unit[name][1] and at.place % CACHE_LINE == 0 for number, unit in units.items()
                             for name, at in self._in_file[number].tensors.items())
        self.layouts = self._in_file if self._is_ready else {each: packed_layout(units[each]) for each in units}
        rest, *layers = [layout.size for layout in self.layouts.values()]
        self.sizes = rest, layers  # bytes of memory that they take
        # memory for a layer as it is in the file, where it has to be converted
        self.raw_bytes = 0 if self._is_ready else max(self._in_file[each].size for each in units if each != REST)

    def read(self, unit: int, progress: Callable[[int], None] | None = None) -> Tensors:
        """A unit's tensors, in memory of their own."""
        fetch = self.fetch([unit], 1)
        fetch.start(unit, 0)()
        if progress is not None:
            progress(self._in_file[unit].size)
        return fetch.weights(unit, 0)

    def fetch(self, units: Sequence[int], slots: int, pinned: bool = False) -> Fetch:
        """Brings these units into so many slots in host memory, again and again."""
        buffers = [aligned_bytes(max(self.layouts[each].size for each in units), pinned) for _ in range(slots)]
        if self._is_ready:
            return FromFile(self._files, self.layouts, buffers)
        raw = aligned_bytes(max(self._in_file[each].size for each in units))
        return Converted(FromFile(self._files, self._in_file, [raw]), self.layouts, buffers)


class _Coming(NamedTuple):
    layer: int
    slot: int
    wait: Callable[[], None]


class Stream:
    """Binds the parameters of a model's streamed layers while they are at hand; at other times they are on "meta"."""

    def __init__(self, model: torch.nn.Module, order: Sequence[int], fetch: Fetch):
        """order: the streamed layers in the order of their use. They must have parameters on "meta" now."""
        self.order, self._fetch = tuple(order), fetch
        self.bytes = sum(buffer.nbytes for buffer in fetch.buffers)  # of the device
        self._absent = {layer: _bindings(model, fetch.weights(layer, 0)) for layer in order}
        self._present = {
            (layer, slot): [(place, name, torch.nn.Parameter(tensor, requires_grad=False))
                            for (place, name, _), tensor in zip(self._absent[layer],
                                                                fetch.weights(layer, slot).values(), strict=True)]
            for layer in order for slot in range(len(fetch.buffers))}
        self._coming: deque[_Coming] = deque()
        self._next: Iterator[int] = cycle(order)
        self._held: tuple[int, int] | None = None  # layer and slot

    def at_hand(self, layer: int) -> bool:
        """From here on this layer is used, and none before it. Whether it is a streamed one, with new addresses.

        Raises UserError where it cannot be read; the next call begins anew.
        """
        if self._held is not None and self._held[0] == layer:
            return True
        self.leave()
        if layer not in self._absent:
            return False
        if not self._coming or self._coming[0].layer != layer:
            self._begin_at(layer)
        try:
            self._coming[0].wait()
        except BaseException:  # an interrupt, too
            self._drop()
            raise
        slot = self._coming.popleft().slot
        _bind(self._present[layer, slot])
        self._held = layer, slot
        return True

    def leave(self) -> None:
        """The layer at hand is not used any more."""
        if self._held is None:
            return
        (layer, slot), self._held = self._held, None
        _bind(self._absent[layer])
        self._fetch.release(slot)
        self._begin(slot)

    def _begin(self, slot: int) -> None:
        layer = next(self._next)
        self._coming.append(_Coming(layer, slot, self._fetch.start(layer, slot)))

    def _begin_at(self, layer: int) -> None:
        """Another layer than the expected one: at the start, and after a pass that was given up."""
        self._drop()
        self._next = dropwhile(lambda other: other != layer, cycle(self.order))
        for slot in range(len(self._fetch.buffers)):
            self._begin(slot)

    def _drop(self) -> None:
        for coming in self._coming:
            with suppress(Exception):  # whoever needs this layer will hear of it
                coming.wait()  # nothing may be written to a slot that another layer is read into
        self._coming.clear()


def _bindings(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> list[tuple[dict, str, torch.nn.Parameter]]:
    """For each tensor the dictionary of its module's parameters, its name there and what is there now."""
    found = []
    for name in weights:
        path, _, attribute = name.rpartition(".")
        parameters = model.get_submodule(path)._parameters
        found.append((parameters, attribute, parameters[attribute]))
    return found


def _bind(bindings: list[tuple[dict, str, torch.nn.Parameter]]) -> None:
    for parameters, name, parameter in bindings:
        parameters[name] = parameter
