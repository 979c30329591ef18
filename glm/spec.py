"""The tensors of a model: their names, shapes, how ranks share them, and which of them quantisation packs.

Every family has a table of its own (glm/families); what loads, streams, quantises, plans, converts or measures a model
reads it with the functions here. What all families share stands here: the names of a layer's linears, as SAT has them,
and how they are cut. No torch, so that a plan or a check can be made before torch is imported.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from glm.config import ModelConfig


class Cut(enum.Enum):
    """How the tensor-parallel ranks share a tensor."""

    WHOLE = "whole on every rank"
    ROWS = "by rows"
    COLUMNS = "by columns"


class Tensor(NamedTuple):
    """One tensor of the whole model."""

    name: str  # in full, or behind "transformer.layers.N."
    shape: tuple[str | tuple[str, ...], ...]  # keys of LENGTHS; a tuple of them: blocks, each of which is cut
    cut: Cut = Cut.WHOLE
    packs: bool = False  # whether quantisation packs it
    extra: bool = False  # published files may hold it; the model has no use for it


class Part(NamedTuple):
    """What one rank holds of a tensor."""

    shape: tuple[int, ...]
    packs: bool


class Piece(NamedTuple):
    """Places start ... stop of the split axis of the part ``source``."""

    source: int
    start: int
    stop: int


PREFIX = "transformer.layers."
SCALE = "_scale"  # NAME.weight_scale belongs to the quantised NAME.weight and is cut as it is
WORD_EMBEDDINGS = "transformer.word_embeddings.weight"
POSITION_EMBEDDINGS = "transformer.position_embeddings.weight"
BLOCK_POSITION_EMBEDDINGS = "transformer.block_position_embeddings.weight"
HEAD = "lm_head.weight"  # where the head is not tied to the word embeddings
FINAL_NORM = "transformer.final_layernorm"
NORMS = ("input_layernorm", "post_attention_layernorm")
QKV, DENSE, MLP_IN, MLP_OUT = (
    "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
INVERSE_FREQUENCIES = "attention.rotary_emb.inv_freq"  # in every layer of published files with rotary positions
CUTS = {QKV: Cut.ROWS, DENSE: Cut.COLUMNS, MLP_IN: Cut.ROWS, MLP_OUT: Cut.COLUMNS}  # of the linears' weights
LINEARS = tuple(CUTS)
DIVIDED = ("num_attention_heads", "inner_hidden_size", "vocab_size")  # what ranks share; the heads make the width

LENGTHS: dict[str, Callable[[ModelConfig], int]] = {
    "hidden": lambda config: config.hidden_size,
    "qkv": lambda config: 3 * config.hidden_size,
    "half head": lambda config: config.hidden_size // config.num_attention_heads // 2,
    "quarter head": lambda config: config.hidden_size // config.num_attention_heads // 4,
    "inner": lambda config: config.inner_hidden_size,
    "vocabulary": lambda config: config.vocab_size,
    "places": lambda config: config.max_sequence_length,
    "places and one": lambda config: config.max_sequence_length + 1,
    "keys": lambda config: config.key_value_heads * config.head_size,
}
# Of such lengths there are only so many shares: with more ranks several hold the same one.
SHARES: dict[str, Callable[[ModelConfig], int]] = {"keys": lambda config: config.key_value_heads}
_IN_LAYER = re.compile(re.escape(PREFIX) + r"(\d+)\.(.+)")


@dataclass(frozen=True, eq=False)
class Table:
    """All tensors of a model, in the order in which they are used."""

    before: tuple[Tensor, ...]  # the layers
    layer: tuple[Tensor, ...]  # of each layer
    behind: tuple[Tensor, ...]

    @cached_property
    def lines(self) -> dict[str, Tensor]:
        return {tensor.name: tensor for tensor in (*self.before, *self.layer, *self.behind)}


def norm(name: str, has_bias: bool = True) -> tuple[Tensor, ...]:
    """The lines of a layer norm, or of an RMS norm, which has no bias."""
    weight = Tensor(f"{name}.weight", ("hidden",))
    return (weight, Tensor(f"{name}.bias", ("hidden",))) if has_bias else (weight,)


def linear(name: str, rows: str | tuple[str, ...], columns: str, has_bias: bool = True) -> tuple[Tensor, ...]:
    """The lines of one of a layer's linears."""
    cut = CUTS[name]
    weight = Tensor(f"{name}.weight", (rows, columns), cut, packs=True)
    bias = Tensor(f"{name}.bias", (rows,), cut if cut is Cut.ROWS else Cut.WHOLE)
    return (weight, bias) if has_bias else (weight,)


def _keys(axis: str | tuple[str, ...]) -> tuple[str, ...]:
    return (axis,) if isinstance(axis, str) else axis


def _shares(key: str, config: ModelConfig, degree: int) -> int:
    """Into how many parts so many ranks cut a block."""
    return min(degree, SHARES[key](config)) if key in SHARES else degree


def part(tensor: Tensor, config: ModelConfig, degree: int = 1) -> Part:
    """One rank's part of a tensor; ``degree`` must divide the model (``undivided``)."""
    shape = []
    for number, axis in enumerate(tensor.shape):
        is_cut = tensor.cut is not Cut.WHOLE and number == (0 if tensor.cut is Cut.ROWS else 1)
        shape.append(sum(LENGTHS[key](config) // (_shares(key, config, degree) if is_cut else 1)
                         for key in _keys(axis)))
    return Part(tuple(shape), tensor.packs)


def _parts(tensors: tuple[Tensor, ...], config: ModelConfig, degree: int) -> dict[str, Part]:
    return {tensor.name: part(tensor, config, degree) for tensor in tensors if not tensor.extra}


def layer_parts(config: ModelConfig, degree: int = 1) -> dict[str, Part]:
    """What one rank holds of any layer, by the name within it."""
    return _parts(config.table.layer, config, degree)


def outside_parts(config: ModelConfig, degree: int = 1) -> dict[str, Part]:
    """What one rank holds beside the layers."""
    return _parts(config.table.before + config.table.behind, config, degree)


def linears(config: ModelConfig, degree: int = 1) -> dict[str, tuple[int, int]]:
    """(rows, columns) on one rank of the weights that a layer multiplies with, by the linear's name."""
    return {name.removesuffix(".weight"): found.shape for name, found in layer_parts(config, degree).items()
            if found.packs}


def expected(config: ModelConfig, degree: int = 1) -> dict[str, Part]:
    """Name -> part of everything that one rank's model holds, in the order of the layers."""
    table, layer = config.table, layer_parts(config, degree)
    layers = {in_layer(number, name): found for number in range(config.num_layers) for name, found in layer.items()}
    return _parts(table.before, config, degree) | layers | _parts(table.behind, config, degree)


def extras(config: ModelConfig, degree: int = 1) -> Iterator[dict[str, Part]]:
    """What one rank's file may hold beside it, kind by kind; a kind that is there is there for all layers."""
    table = config.table
    for tensor in table.layer:
        if tensor.extra:
            yield {in_layer(number, tensor.name): part(tensor, config, degree) for number in range(config.num_layers)}
    yield from ({tensor.name: part(tensor, config, degree)} for tensor in table.before + table.behind if tensor.extra)


def undivided(config: ModelConfig, degree: int) -> str | None:
    """The field of the configuration that so many ranks do not divide; None: they divide all."""
    groups = getattr(config, "num_key_value_groups", 0)
    if groups and groups % degree and degree % groups:
        return "num_key_value_groups"
    return next((name for name in DIVIDED if getattr(config, name) % degree), None)


def allowed_degrees(config: ModelConfig) -> list[int]:
    """Every tensor-parallel degree that divides what ranks share."""
    common = math.gcd(*(getattr(config, name) for name in DIVIDED))
    return [degree for degree in range(1, common + 1) if undivided(config, degree) is None]


def fault_of_degree(config: ModelConfig, degree: int, ranks: str = "tensor-parallel ranks") -> str | None:
    """Why so many ranks cannot share the model."""
    if (name := undivided(config, degree)) is None:
        return None
    allowed = ", ".join(map(str, allowed_degrees(config)))
    return f"{name} {getattr(config, name)} cannot be divided among {degree} {ranks}; allowed: {allowed}"


def in_layer(number: int, name: str) -> str:
    return f"{PREFIX}{number}.{name}"


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to."""
    match = _IN_LAYER.fullmatch(name)
    return int(match[1]) if match else None


def place_of(name: str) -> tuple[int, str]:
    """"transformer.layers.3.attention.dense.weight" -> (3, "attention.dense"); the name is that of a packed weight."""
    match = _IN_LAYER.fullmatch(name.removesuffix(".weight"))
    return int(match[1]), match[2]


def _inner(name: str) -> str:
    """A name within its layer, or in full."""
    match = _IN_LAYER.fullmatch(name)
    return match[2] if match else name


def describe(name: str, config: ModelConfig) -> Tensor | None:
    """The table's line for a tensor of this name; a scale has that of its weight. None: no such model has it."""
    lines, inner = config.table.lines, _inner(name)
    line = lines.get(inner)
    if line is None and inner.endswith(SCALE):
        line = lines.get(inner.removesuffix(SCALE))
        line = line if line is not None and line.packs else None
    return line if line is None or (line in config.table.layer) == (inner != name) else None


def cut_of(name: str) -> Cut:
    """How ranks share a tensor of this name, in every family; unknown ones are taken to be whole on each."""
    if name in (WORD_EMBEDDINGS, HEAD):
        return Cut.ROWS
    linear, _, kind = _inner(name).rpartition(".")
    known = layer_of(name) is not None and kind in ("weight", f"weight{SCALE}", "bias")
    cut = CUTS.get(linear, Cut.WHOLE) if known else Cut.WHOLE
    return Cut.WHOLE if kind == "bias" and cut is Cut.COLUMNS else cut


def axis_number(name: str) -> int:
    """Along which axis they do: 1 for columns, else 0."""
    return 1 if cut_of(name) is Cut.COLUMNS else 0


def is_packed(name: str) -> bool:
    """Whether a tensor of this name is a weight that quantisation packs."""
    linear, _, kind = _inner(name).rpartition(".")
    return kind == "weight" and linear in CUTS and layer_of(name) is not None


def columns_of(name: str, config: ModelConfig, degree: int = 1) -> int:
    """Columns of a packed weight on one of ``degree`` ranks, before packing."""
    return part(describe(name, config), config, degree).shape[1]


def axis_of(name: str, config: ModelConfig) -> int:
    """The length, in the whole model, of the axis along which ranks share a tensor."""
    return sum(LENGTHS[key](config) for key in _blocks(name, config))


def _blocks(name: str, config: ModelConfig) -> tuple[str, ...]:
    line = describe(name, config)
    return _keys(line.shape[0 if line.cut is Cut.ROWS else -1])


def pieces(size: int, sources: int, targets: int, rank: int) -> Iterator[Piece]:
    """Of an axis in ``sources`` equal parts, in order, what makes up part ``rank`` of ``targets`` equal parts.

    size: of the whole axis; both numbers divide it.
    """
    own, target = size // sources, size // targets
    begin, end = rank * target, (rank + 1) * target
    for source in range(begin // own, -(-end // own)):
        yield Piece(source, max(begin - source * own, 0), min(end - source * own, own))


def slices_of(name: str, config: ModelConfig, sources: int, targets: int, rank: int) -> list[Piece]:
    """What makes up part ``rank`` of ``targets`` of a tensor that is cut, out of ``sources`` parts, in order: block by
    block, places within the source's part along the axis that is cut."""
    found, begin = [], 0
    for key in _blocks(name, config):
        length = LENGTHS[key](config)
        held, wanted = _shares(key, config, sources), _shares(key, config, targets)
        found += [Piece(source * sources // held, begin + start, begin + stop)
                  for source, start, stop in pieces(length, held, wanted, rank * wanted // targets)]
        begin += length // held
    return found
