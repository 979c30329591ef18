"""The tensors of a GLM: their names, shapes, how ranks share them, and which of them quantisation packs.

The only list of them: what loads, streams, quantises, plans, converts or measures a model reads this one. No torch
here, so that a plan or a check can be made before torch is imported.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from glm.config import ModelConfig


class Cut(enum.Enum):
    """How the tensor-parallel ranks share a tensor."""

    WHOLE = "whole on every rank"
    ROWS = "by rows"
    COLUMNS = "by columns"


class Tensor(NamedTuple):
    """One tensor of the whole model."""

    name: str  # in full, or behind "transformer.layers.N."
    shape: tuple[str, ...]  # keys of LENGTHS
    cut: Cut = Cut.WHOLE
    blocks: int = 1  # rows are cut within each of so many equal blocks: GeGLU's two halves
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
POSITION_EMBEDDINGS = "transformer.position_embeddings.weight"  # SAT makes them; rotary models never use them
MLP_IN = "mlp.dense_h_to_4h.weight"  # its rows tell the inner width
INVERSE_FREQUENCIES = "attention.rotary_emb.inv_freq"  # in every layer of GLM-130B's files

LENGTHS: dict[str, Callable[[ModelConfig], int]] = {
    "hidden": lambda config: config.hidden_size,
    "qkv": lambda config: 3 * config.hidden_size,
    "half head": lambda config: config.hidden_size // config.num_attention_heads // 2,
    "inner": lambda config: config.inner_hidden_size,
    "gated": lambda config: 2 * config.inner_hidden_size,
    "vocabulary": lambda config: config.vocab_size,
    "places": lambda config: config.max_sequence_length,
}
LAYER = (
    Tensor("input_layernorm.weight", ("hidden",)),
    Tensor("input_layernorm.bias", ("hidden",)),
    Tensor("attention.query_key_value.weight", ("qkv", "hidden"), Cut.ROWS, packs=True),  # a head's q, k, v together
    Tensor("attention.query_key_value.bias", ("qkv",), Cut.ROWS),
    Tensor("attention.dense.weight", ("hidden", "hidden"), Cut.COLUMNS, packs=True),
    Tensor("attention.dense.bias", ("hidden",)),
    Tensor("post_attention_layernorm.weight", ("hidden",)),
    Tensor("post_attention_layernorm.bias", ("hidden",)),
    Tensor(MLP_IN, ("gated", "hidden"), Cut.ROWS, blocks=2, packs=True),
    Tensor("mlp.dense_h_to_4h.bias", ("gated",), Cut.ROWS, blocks=2),
    Tensor("mlp.dense_4h_to_h.weight", ("hidden", "inner"), Cut.COLUMNS, packs=True),
    Tensor("mlp.dense_4h_to_h.bias", ("hidden",)),
    Tensor(INVERSE_FREQUENCIES, ("half head",), extra=True),
)
OUTSIDE = (
    Tensor(WORD_EMBEDDINGS, ("vocabulary", "hidden"), Cut.ROWS),
    Tensor("transformer.final_layernorm.weight", ("hidden",)),
    Tensor("transformer.final_layernorm.bias", ("hidden",)),
    Tensor(POSITION_EMBEDDINGS, ("places", "hidden"), extra=True),
)
LINEARS = tuple(tensor.name.removesuffix(".weight") for tensor in LAYER if tensor.packs)
DIVIDED = ("num_attention_heads", "inner_hidden_size", "vocab_size")  # what the ranks share; the heads make the width
_IN_LAYER = re.compile(re.escape(PREFIX) + r"(\d+)\.(.+)")


def part(tensor: Tensor, config: ModelConfig, degree: int = 1) -> Part:
    """One rank's part of a tensor; ``degree`` must divide the model (``undivided``)."""
    shape = [LENGTHS[key](config) for key in tensor.shape]
    if tensor.cut is not Cut.WHOLE:
        shape[0 if tensor.cut is Cut.ROWS else -1] //= degree
    return Part(tuple(shape), tensor.packs)


def layer_parts(config: ModelConfig, degree: int = 1) -> dict[str, Part]:
    """What one rank holds of any layer, by the name within it."""
    return {tensor.name: part(tensor, config, degree) for tensor in LAYER if not tensor.extra}


def linears(config: ModelConfig, degree: int = 1) -> dict[str, tuple[int, int]]:
    """(rows, columns) on one rank of the weights that a layer multiplies with, by the linear's name."""
    return {name.removesuffix(".weight"): found.shape for name, found in layer_parts(config, degree).items()
            if found.packs}


def expected(config: ModelConfig, degree: int = 1) -> dict[str, Part]:
    """Name -> part of everything that one rank's model holds, in the order of the layers."""
    embedding, *rest = [(tensor.name, part(tensor, config, degree)) for tensor in OUTSIDE if not tensor.extra]
    layer = layer_parts(config, degree)
    layers = ((in_layer(number, name), found) for number in range(config.num_layers) for name, found in layer.items())
    return dict([embedding, *layers, *rest])


def extras(config: ModelConfig) -> Iterator[dict[str, Part]]:
    """What files may hold beside it, kind by kind; a kind that is there is there for all layers."""
    for tensor in LAYER:
        if tensor.extra:
            yield {in_layer(number, tensor.name): part(tensor, config) for number in range(config.num_layers)}
    yield from ({tensor.name: part(tensor, config)} for tensor in OUTSIDE if tensor.extra)


def undivided(config: ModelConfig, degree: int) -> str | None:
    """The field of the configuration that so many ranks do not divide; None: they divide all."""
    return next((name for name in DIVIDED if getattr(config, name) % degree), None)


def in_layer(number: int, name: str) -> str:
    return f"{PREFIX}{number}.{name}"


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to."""
    match = _IN_LAYER.fullmatch(name)
    return int(match[1]) if match else None


@lru_cache(maxsize=4096)
def describe(name: str) -> Tensor | None:
    """The table's line for a tensor of this name; a scale has that of its weight. None: no GLM has such a tensor."""
    match = _IN_LAYER.fullmatch(name)
    table, inner = (LAYER, match[2]) if match else (OUTSIDE, name)
    weight = inner.removesuffix(SCALE)
    return next((line for line in table if line.name == inner or (line.packs and line.name == weight)), None)


def cut_of(name: str) -> Cut:
    """How ranks share a tensor of this name; what no GLM has is taken to be whole on each."""
    line = describe(name)
    return Cut.WHOLE if line is None else line.cut


def is_packed(name: str) -> bool:
    """Whether a tensor of this name is a weight that quantisation packs."""
    line = describe(name)
    return line is not None and line.packs and not name.endswith(SCALE)


def columns_of(name: str, config: ModelConfig, degree: int = 1) -> int:
    """Columns of a packed weight on one of ``degree`` ranks, before packing."""
    return part(describe(name), config, degree).shape[1]


def axis_of(name: str, config: ModelConfig) -> int:
    """The length, in the whole model, of the axis along which ranks share a tensor: of one of its blocks."""
    line = describe(name)
    return LENGTHS[line.shape[0 if line.cut is Cut.ROWS else -1]](config) // line.blocks


def axis_number(name: str) -> int:
    """Which axis that is: 1 for columns, else 0."""
    return 1 if cut_of(name) is Cut.COLUMNS else 0


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
    length, blocks = axis_of(name, config), describe(name).blocks
    begins = [block * length // sources for block in range(blocks)]
    return [Piece(source, begin + start, begin + stop) for begin in begins
            for source, start, stop in pieces(length, sources, targets, rank)]


def place_of(name: str) -> tuple[int, str]:
    """"transformer.layers.3.attention.dense.weight" -> (3, "attention.dense"); the name is that of a packed weight."""
    match = _IN_LAYER.fullmatch(name.removesuffix(".weight"))
    return int(match[1]), match[2]
