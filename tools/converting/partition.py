"""Which part of a tensor belongs to which tensor-parallel rank: arithmetic on names and sizes, no data.

    word embeddings, query_key_value     by rows: of the vocabulary, of heads (a head's q, k, v stay together)
    dense_h_to_4h                        by rows within each of the two halves of GeGLU
    attention.dense, dense_4h_to_h       their weights by columns; the biases are whole on every rank
    everything else                      whole on every rank

The scale of a quantised weight follows its weight; where the weight is cut by columns, so are its groups.
"""

import enum
import re
from collections.abc import Iterator
from typing import NamedTuple


class Rule(enum.Enum):
    ROWS = "by rows"
    HALVES = "by rows within each half"
    COLUMNS = "by columns"
    WHOLE = "whole on every rank"


class Cut(NamedTuple):
    """Places start ... stop of the split axis of one input rank's part."""

    rank: int
    start: int
    stop: int


WORD_EMBEDDINGS = "transformer.word_embeddings.weight"
SCALE = "_scale"
_IN_LAYER = re.compile(r"transformer\.layers\.(\d+)\.(.+)")
_RULES = {
    "attention.query_key_value": Rule.ROWS,
    "mlp.dense_h_to_4h": Rule.HALVES,
    "attention.dense": Rule.COLUMNS,
    "mlp.dense_4h_to_h": Rule.COLUMNS,
}
_REPLICATED = {
    "input_layernorm.weight", "input_layernorm.bias", "post_attention_layernorm.weight",
    "post_attention_layernorm.bias", "attention.rotary_emb.inv_freq", "attention.dense.bias", "mlp.dense_4h_to_h.bias",
}  # fmt: skip
_REPLICATED_OUTSIDE = {"transformer.final_layernorm.weight", "transformer.final_layernorm.bias",
                       "transformer.position_embeddings.weight"}


def layer_of(name: str) -> int | None:
    match = _IN_LAYER.fullmatch(name)
    return int(match[1]) if match else None


def linear_of(name: str) -> str | None:
    """"mlp.dense_h_to_4h" of a tensor of this linear in any layer; None where it belongs to none of the four."""
    match = _IN_LAYER.fullmatch(name)
    linear = match[2].rpartition(".")[0] if match else None
    return linear if linear in _RULES else None


def is_linear_weight(name: str) -> bool:
    return linear_of(name) is not None and name.endswith(".weight")


def rule_of(name: str) -> Rule:
    if name == WORD_EMBEDDINGS:
        return Rule.ROWS
    linear = linear_of(name)
    if linear is None:
        return Rule.WHOLE
    kind = name.rpartition(".")[2]
    if kind in ("weight", "weight" + SCALE) or (kind == "bias" and _RULES[linear] is not Rule.COLUMNS):
        return _RULES[linear]
    return Rule.WHOLE


def is_known(name: str) -> bool:
    """Whether a GLM has a tensor of this name; others are extras, whose rule is a guess."""
    match = _IN_LAYER.fullmatch(name)
    return rule_of(name) is not Rule.WHOLE or name in _REPLICATED_OUTSIDE or bool(match and match[2] in _REPLICATED)


def cuts(size: int, inputs: int, outputs: int, rank: int) -> Iterator[Cut]:
    """The pieces of ``inputs`` equal parts of an axis that make up part ``rank`` of ``outputs`` equal parts, in order.

    size: of the whole axis; both numbers divide it.
    """
    own, target = size // inputs, size // outputs
    begin, end = rank * target, (rank + 1) * target
    for source in range(begin // own, -(-end // own)):
        yield Cut(source, max(begin - source * own, 0), min(end - source * own, own))
