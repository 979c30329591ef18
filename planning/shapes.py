"""What a plan is made from: the model's tensors on one rank, how a checkpoint holds them, and the run that is wanted.

Shape letters: b rows, s places, h hidden, i inner width, v vocabulary; the last three and the heads divided by the
tensor-parallel degree where a rank holds a part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

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
    mapped (files of torch 1.6 and later). kind: "cpu" or "cuda".
    rows: sequences decoded together, beams count; read_rows: those whose contexts are read (before beams are made).
    context, new_tokens: places of each row. pass_tokens: most tokens of one pass through the layers; None: all
    contexts at once. scored: places of a pass that logits are computed at (evaluation); 0: one of each row, as
    generation does. offload_limit: bytes of weights that may lie on the device.
    """

    config: ModelConfig
    run: Format
    kind: str = "cpu"
    degree: int = 1
    file: Format | None = None
    mapped: bool = True
    rows: int = 1
    read_rows: int = 1
    context: int = 1
    new_tokens: int = 0
    pass_tokens: int | None = None
    scored: int = 0
    offload_limit: float | None = None

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
        """Whether a weight is used where the mapped file holds it: on a CPU, where it needs no conversion."""
        if self.kind != "cpu" or not self.mapped:
            return False
        if weight.packs and (self.run.bits or self.source.bits):
            return self.source.bits is not None
        return self.source.precision == self.run.precision


def undivided(config: ModelConfig, degree: int) -> str | None:
    """The number of the shape that so many ranks do not divide; None: they divide all."""
    names = ("num_attention_heads", "hidden_size", "inner_hidden_size", "vocab_size")
    return next((name for name in names if getattr(config, name) % degree), None)


def weights(setup: Setup) -> Iterator[Weight]:
    """One rank's tensors, in the order in which they are loaded."""
    h, local, inner = setup.config.hidden_size, setup.heads_width, setup.inner
    yield embedding(setup)
    for _ in range(setup.config.num_layers):
        yield from layer(h, local, inner)
    yield from (Weight(1, h), Weight(1, h))


def embedding(setup: Setup) -> Weight:
    return Weight(setup.vocabulary, setup.config.hidden_size)


def linears(setup: Setup) -> list[Weight]:
    """The four of a layer: (n, k) of qkv, attention output, MLP in (both halves), MLP out."""
    return [weight for weight in layer(setup.config.hidden_size, setup.heads_width, setup.inner) if weight.packs]


def layer(h: int, local: int, inner: int) -> list[Weight]:
    norm = [Weight(1, h), Weight(1, h)]
    return [*norm, Weight(3 * local, h, True), Weight(1, 3 * local), Weight(h, local, True), Weight(1, h),
            *norm, Weight(2 * inner, h, True), Weight(1, 2 * inner), Weight(h, inner, True), Weight(1, h)]


def layer_bytes(held: Format, setup: Setup) -> int:
    """Of one of a rank's layers in this format."""
    return sum(map(held.bytes, layer(setup.config.hidden_size, setup.heads_width, setup.inner)))


def layer_weights(setup: Setup) -> int:
    """Weights of one layer's products on one rank."""
    return sum(weight.count for weight in linears(setup))
