"""What a plan is made from: the model's tensors on one rank, how a checkpoint holds them, and the run that is wanted.

Shape letters: b rows, s places, h hidden, i inner width, v vocabulary; the last three and the heads divided by the
tensor-parallel degree where a rank holds a part.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from glm import spec
from glm.config import ModelConfig

ELEMENT = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes
SCALE_BYTES = 2  # of a packed weight's scale, float16


class Weight(NamedTuple):
    """A tensor of one rank. packs: whether quantisation packs it (the layers' four linears)."""

    rows: int
    columns: int
    packs: bool = False

    @property
    def count(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Format:
    """How weights are held, in a file or in memory. bits, group_size: of the packed linears; None: a whole row shares
    a scale."""

    precision: str
    bits: int | None = None
    group_size: int | None = None

    def bytes(self, weight: Weight) -> int:
        if not (weight.packs and self.bits):
            return weight.count * ELEMENT[self.precision]
        groups = weight.columns // self.group_size if self.group_size else 1
        return weight.count * self.bits // 8 + weight.rows * groups * SCALE_BYTES


@dataclass(frozen=True)
class Setup:
    """A run to be planned.

    file: how the checkpoint holds the weights, None: as they are run (already converted). mapped: whether it can be
    mapped (files of torch 1.6 and later). parts: in how many files it is; None: one a rank. kind: "cpu" or "cuda".
    rows: sequences decoded together, beams count; read_rows: those whose contexts are read (before beams are made).
    context, new_tokens: places of each row. pass_tokens: most tokens of one pass through the layers; None: all
    contexts at once. scored: places of a pass that logits are computed at (evaluation); 0: one of each row, as
    generation does. offload_limit: bytes of weights that may lie on the device. int8_vocabulary: whether the
    vocabulary's matrix is held in INT8, too. simple_gpu: of a compute capability before 8.0.
    """

    config: ModelConfig
    run: Format
    kind: str = "cpu"
    degree: int = 1
    file: Format | None = None
    mapped: bool = True
    parts: int | None = None
    rows: int = 1
    read_rows: int = 1
    context: int = 1
    new_tokens: int = 0
    pass_tokens: int | None = None
    scored: int = 0
    offload_limit: float | None = None
    int8_vocabulary: bool = False
    simple_gpu: bool = False

    @property
    def source(self) -> Format:
        return self.file or self.run

    @property
    def source_bytes(self) -> int:
        """Of this rank's part of the checkpoint."""
        return sum(map(self.source.bytes, weights(self)))

    @property
    def element(self) -> int:
        return ELEMENT[self.run.precision]

    @property
    def heads_width(self) -> int:
        """Width of this rank's heads together."""
        return self.config.hidden_size // self.degree

    @property
    def cache_width(self) -> int:
        """Width of the keys of this rank's heads together; several heads, and ranks, may share one."""
        return max(1, self.config.key_value_heads // self.degree) * self.config.head_size

    @property
    def inner(self) -> int:
        return self.config.inner_hidden_size // self.degree

    @property
    def vocabulary(self) -> int:
        return self.config.vocab_size // self.degree

    @property
    def places(self) -> int:
        """Of a row in the cache."""
        return self.context + self.new_tokens

    @property
    def largest_pass(self) -> int:
        tokens = self.read_rows * self.context
        return max(self.rows, tokens if self.pass_tokens is None else min(tokens, self.pass_tokens))

    def stays_in_file(self, weight: Weight) -> bool:
        """Whether a weight is used where the mapped file holds it: on a CPU, where it needs no conversion. Of
        files that are not one a rank, rows of one do, but most weights are put together."""
        if self.kind != "cpu" or not self.mapped or self.parts not in (None, self.degree):
            return False
        if weight.packs and (self.run.bits or self.source.bits):
            return self.source.bits is not None
        return self.source.precision == self.run.precision


def weights(setup: Setup) -> list[Weight]:
    """One rank's tensors, in the order in which they are loaded."""
    return [_weight(part) for part in spec.expected(setup.config, setup.degree).values()]


def embedding(setup: Setup) -> Weight:
    """What hidden states are multiplied with for logits; in most models the word embeddings."""
    name = spec.WORD_EMBEDDINGS if setup.config.tie_word_embeddings else spec.HEAD
    return _weight(spec.outside_parts(setup.config, setup.degree)[name])


def outside(setup: Setup) -> list[Weight]:
    """One rank's tensors that belong to no layer."""
    return [_weight(part) for part in spec.outside_parts(setup.config, setup.degree).values()]


def linears(setup: Setup) -> list[Weight]:
    """Those of a layer: (n, k) of qkv, attention output, MLP in (both halves), MLP out."""
    return [Weight(*shape, packs=True) for shape in spec.linears(setup.config, setup.degree).values()]


def layer_bytes(held: Format, setup: Setup) -> int:
    """Of one of a rank's layers in this format."""
    return sum(map(held.bytes, _layer(setup)))


def _layer(setup: Setup) -> list[Weight]:
    return [_weight(part) for part in spec.layer_parts(setup.config, setup.degree).values()]


def _weight(part: spec.Part) -> Weight:
    rows, columns = part.shape if len(part.shape) == 2 else (1, *part.shape)
    return Weight(rows, columns, part.packs)


def layer_weights(setup: Setup) -> int:
    """Weights of one layer's products on one rank."""
    return sum(weight.count for weight in linears(setup))
