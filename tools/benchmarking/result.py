"""One measured line, whoever was measured, and the shape that everybody is measured at."""

from dataclasses import asdict, dataclass

from tools.benchmarking.timing import Timing


@dataclass(frozen=True)
class Shape:
    """A decoder with gated MLPs and tied embeddings, the same for every engine."""

    layers: int
    hidden: int
    heads: int
    inner: int
    vocabulary: int
    linears: tuple[tuple[int, int], ...]  # (n, k) of one layer's products: qkv, attention output, MLP in, MLP out

    @property
    def layer_parameters(self) -> int:
        """Weights of all layers' products, which every token of a prompt goes through."""
        return self.layers * sum(n * k for n, k in self.linears)

    @property
    def parameters(self) -> int:
        """Weights read per decoded token: the layers and the vocabulary's projection."""
        return self.layer_parameters + self.vocabulary * self.hidden

    def prefill_flops(self, tokens: int) -> float:
        """Of the products of a prompt; logits are needed at one place only, and attention is left out."""
        return 2.0 * (tokens * self.layer_parameters + self.vocabulary * self.hidden)


@dataclass(frozen=True)
class Result:
    """kind "prefill": `tokens` in one pass. kind "decode": one token for each of `width` rows after `tokens` others."""

    engine: str
    precision: str
    kind: str
    tokens: int
    width: int
    timing: Timing
    weight_bytes: float  # read once per pass
    flops: float
    ceiling: float  # bytes/s (decode) or FLOP/s (prefill) of the machine, measured beside it

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens if self.kind == "prefill" else self.width) / self.timing.median

    @property
    def rate(self) -> float:
        """Bytes of weights per second (decode), or FLOP per second (prefill)."""
        return (self.flops if self.kind == "prefill" else self.weight_bytes) / self.timing.median

    @property
    def share(self) -> float:
        """Of the ceiling, 0 .. 1."""
        return self.rate / self.ceiling

    def as_dict(self) -> dict:
        values = asdict(self)
        timing = values.pop("timing")
        return values | {f"seconds_{name}": timing[name] for name in ("median", "best")} | {
            "repeats": timing["repeats"], "tokens_per_second": self.tokens_per_second, "rate": self.rate,
            "share_of_ceiling": self.share}


def prefill_result(engine: str, precision: str, shape: Shape, tokens: int, timing: Timing, ceiling: float,
                   bytes_per_weight: float) -> Result:
    return Result(engine, precision, "prefill", tokens, 1, timing, bytes_per_weight * shape.parameters,
                  shape.prefill_flops(tokens), ceiling)


def decode_result(engine: str, precision: str, shape: Shape, context: int, width: int, timing: Timing, ceiling: float,
                  bytes_per_weight: float) -> Result:
    return Result(engine, precision, "decode", context, width, timing, bytes_per_weight * shape.parameters,
                  2.0 * width * shape.parameters, ceiling)
