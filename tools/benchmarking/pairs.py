"""This model and another engine in turn, round by round: on a shared machine only such pairs can be compared."""

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from statistics import geometric_mean, median
from types import SimpleNamespace
from typing import Any

import torch

from glm.config import ModelConfig
from glm.loading import DTYPES
from quantization.functional import Scheme
from runtime.errors import UserError
from tools.benchmarking import own
from tools.benchmarking.peers import Missing, decode, engines_of
from tools.benchmarking.rates import Steps, clock
from tools.benchmarking.results import Shape

PACKED = {"Q8_0": (Scheme(8), Scheme(8, 32)), "Q4_0": (Scheme(4), Scheme(4, 32)),  # what meets them here
          "INT8": (Scheme(8),), "INT4": (Scheme(4),)}
PLAIN = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}  # llama.cpp's names


@dataclass(frozen=True)
class Pair:
    """The same work done by both, in turn."""

    precision: str  # ours
    other: str
    work: str  # "prefill 512", "decode 1": a token behind so many
    own_mb: float  # of weights, read in one pass
    other_mb: float
    rates: tuple[tuple[float, float], ...]  # tokens a second of each round: ours, theirs

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in self.rates]

    @property
    def ratio(self) -> float:
        return median(self.ratios)


def measure(arguments, config: ModelConfig) -> Iterator[Pair]:
    """All models of the engine `against`, each beside ours of its precision. arguments: dtype (the first is of x beside
    packed weights), prefill, contexts, steps, rounds. Raises UserError where it cannot be measured."""
    own.check_counts(prefill=arguments.prefill, contexts=arguments.contexts, steps=[arguments.steps],
                     rounds=[arguments.rounds])
    with Elsewhere(answer, SimpleNamespace(**vars(arguments), device="cpu"), own.shape_of(config)) as other:
        try:
            while (kind := other.ask("next")) is not None:
                yield from beside(other, *kind, arguments, config)
        except Missing as reason:
            raise UserError(f"{arguments.against}: {reason}") from None


def beside(other: "Elsewhere", precision: str, megabytes: float, arguments, config: ModelConfig) -> Iterator[Pair]:
    shape, steps, rounds = own.shape_of(config), arguments.steps, arguments.rounds
    for scheme in PACKED.get(precision, (None,)):
        if scheme and scheme.group_size and any(k % scheme.group_size for _, k in shape.linears):
            continue
        plain = PLAIN.get(precision, precision)
        model = own.ready_model(config, DTYPES[arguments.dtype[0] if scheme else plain], "cpu", scheme)
        name = plain if scheme is None else f"INT{scheme.bits}, " + (
            f"groups of {scheme.group_size}" if scheme.group_size else "rows")
        sizes = own.bytes_per_weight(model) * shape.parameters / 1e6, megabytes
        for length in arguments.prefill:
            yield Pair(name, precision, f"prefill {length}", *sizes, in_turn(
                partial(read_rate, partial(own.read, model), shape, length), partial(other.ask, "read", length),
                rounds))
        for context in arguments.contexts:
            yield Pair(name, precision, f"decode {context}", *sizes, in_turn(
                partial(step_rate, own.decode, model, context, 1, steps), partial(other.ask, "steps", context, steps),
                rounds))


class Elsewhere:
    """An engine in a process of its own, whose memory is its, and whose threads share nothing with ours: registers of
    matrix tiles are set up once a thread by some programs, and anew by others."""

    def __init__(self, answer: Callable[..., None], *given: Any) -> None:
        """answer: answers what it is asked, in that process; called with the pipe's other end and `given`."""
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=answer, args=(theirs, *given), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, *question: Any) -> Any:
        try:
            self.pipe.send(question)
            found = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            raise Missing(f"its process ended with {self.process.exitcode}") from None
        if isinstance(found, Exception):
            raise found
        return found

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def answer(pipe: Connection, arguments: SimpleNamespace, shape: Shape) -> None:
    """What stands at the other end, until nobody asks."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    engines, engine = engines_of(arguments.against, arguments, shape), None
    while True:
        try:
            what, *of = pipe.recv()
        except EOFError:
            return
        try:
            if what == "next":
                engine = next(engines, None)
                found = engine and (engine.precision, engine.bytes_per_weight * engine.shape.parameters / 1e6)
            else:
                found = read_rate(engine.read, shape, *of) if what == "read" else step_rate(decode, engine, *of)
        except Missing as reason:
            found = reason
        pipe.send(found)


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[tuple[float, float], ...]:
    """Who begins changes from round to round. A round before does not count."""
    found = []
    for number in range(rounds + 1):
        if number % 2:
            found.append((ours(), theirs()))
        else:
            found.append(tuple(reversed((theirs(), ours()))))
    return tuple(found[1:])


def read_rate(read: Callable[[torch.Tensor], None], shape: Shape, length: int) -> float:
    tokens = torch.randint(shape.vocabulary, (1, length))
    began = clock()
    read(tokens)
    return length / (clock() - began)


def step_rate(decode: Callable[..., None], *of: Any) -> float:
    """Tokens a second by the median step."""
    steps = Steps()
    decode(*of, steps)
    return 1 / steps.timing().median


def row(pair: Pair) -> list[str]:
    """Medians over the rounds; the ratio is that of the rounds' ratios, with the least and the most."""
    ours, theirs = (median(side) for side in zip(*pair.rates, strict=True))
    return [pair.precision, pair.work, f"{ours:.1f}", f"{pair.own_mb:.0f}", pair.other, f"{theirs:.1f}",
            f"{pair.other_mb:.0f}", f"{pair.ratio:.2f}", f"{min(pair.ratios):.2f} - {max(pair.ratios):.2f}"]


def table(pairs: list[Pair]) -> tuple[list[str], list[list[str]]]:
    rows = [row(pair) for pair in pairs]
    for kind in ("decode", "prefill"):
        if ratios := [pair.ratio for pair in pairs if pair.work.startswith(kind)]:
            rows.append(["", f"{kind}, geometric mean", *[""] * 5, f"{geometric_mean(ratios):.2f}",
                         f"{min(ratios):.2f} - {max(ratios):.2f}"])
    return ["weights", "work", "tokens/s", "MB", "the other's", "tokens/s", "MB", "ratio", "least - most"], rows
