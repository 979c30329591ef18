"""How long a run takes: what the machine allows at best (floor), and what this code makes of it (expected).

Reading contexts is bound by arithmetic: products (2 operations for every weight and token), and attention. Decoding is
bound by memory: every step reads all weights and the cache once. What this code makes of it is put together from some
layers that were timed on this machine's processor (planning/trial.py); for GPUs, on which it has not been measured, it
is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

from kernels import CHOICE_ROWS
from planning.devices import Device
from planning.memory import Memory
from planning.shapes import ELEMENT, Setup, embedding, layer_weights, linears, weights
from planning.trial import Trial

START = 1.5  # seconds until Python, torch and this package are imported
STEP, CHOICE = 1.5e-4, 1e-5  # seconds of the host, for a decoding step and for each of its rows
PASS = 5e-4  # the same for a pass that reads
LOGIT_PASSES = 6  # times that float32 logits are written or read until they are log-probabilities
EXCHANGE = 2e-5  # seconds that one of a layer's two sums over tensor-parallel ranks takes at least


@dataclass(frozen=True)
class Costs:
    """What a GPU takes on top of the bounds."""

    step: float  # seconds of a decoding step beside its layers
    layer: float  # seconds of one layer's calls in a pass
    reading: float  # share of the device's bandwidth that is reached
    products: float  # share of its matrix rate that products reach
    attention: float  # share of its matrix rate that attention reaches
    between: float  # bytes moved between a layer's products for every value of its widths
    packed: float  # times that products of many rows take longer with packed weights


CUDA = Costs(step=3e-4, layer=1.0e-4, reading=0.75, products=0.6, attention=0.4, between=1.5, packed=1.05)
# bytes of the file a second that are converted to another precision, and quantised
CONVERTED = {"cpu": 1.5e9, "cuda": 8e9}
QUANTISED = {"cpu": 0.25e9, "cuda": 4e9}


@dataclass(frozen=True)
class Speed:
    """Seconds. The floors are what the device allows at best."""

    load: float | None  # until a model is ready, the program's start included; None: the disk's rate is not known
    prefill_floor: float
    prefill: float  # reading all contexts
    token_floor: float
    token: float  # one decoding step, which gives every row a token


def plan(setup: Setup, memory: Memory, device: Device, disk: float | None) -> Speed:
    """disk: bytes a second from where the checkpoint lies; all ranks of a host share it."""
    streamed = streaming(memory, device, disk)
    if device.trial is not None:
        prefill, token = reading(setup, device.trial), step(setup, device.trial)
    else:
        prefill, token = reading_on_gpu(setup, device, CUDA), step_on_gpu(setup, memory, device, CUDA)
    return Speed(load_seconds(setup, device, disk), prefill_floor(setup, memory, device, streamed),
                 max(prefill, passes(setup) * streamed), token_floor(setup, memory, device, streamed),
                 max(token, streamed))


def load_seconds(setup: Setup, device: Device, disk: float | None) -> float | None:
    if disk is None:
        return None
    seconds = START
    for weight in weights(setup):
        stored = setup.source.bytes(weight)
        seconds += stored * setup.degree / disk
        if weight.packs and setup.run.bits and not setup.source.bits:
            seconds += stored / QUANTISED[device.kind]
        elif not setup.stays_in_file(weight):
            seconds += stored / CONVERTED[device.kind]
    return seconds


def passes(setup: Setup) -> int:
    """In which the contexts are read."""
    tokens = setup.read_rows * setup.context
    return max(1, -(-tokens // (setup.pass_tokens or tokens)))


def reading(setup: Setup, trial: Trial) -> float:
    """All contexts, by what some layers took. Behind its keys and values the last layer computes the wanted places
    alone."""
    tokens, count = setup.read_rows * setup.context, passes(setup)
    first, *others = (weight.count for weight in linears(setup))
    wanted = min(1.0, setup.scored / tokens)
    last = (first + wanted * sum(others)) / (first + sum(others))
    layers = setup.config.num_layers - 1
    return (count * (PASS + (layers + last) * trial.read(tokens / count))
            + (layers + wanted) * trial.pair * tokens * setup.context)


def step(setup: Setup, trial: Trial) -> float:
    """A token of every row, by what some layers took."""
    layer = trial.step(setup.rows) + trial.seen(setup.rows) * setup.context
    return setup.config.num_layers * layer + trial.choice(setup.rows) + STEP + CHOICE * setup.rows


def prefill_floor(setup: Setup, memory: Memory, device: Device, streamed: float) -> float:
    products, attention = operations(setup)
    return max((products + attention) / device.rate(setup.run.precision), memory.weights / device.bandwidth, streamed)


def token_floor(setup: Setup, memory: Memory, device: Device, streamed: float) -> float:
    read = step_read(setup, memory)
    return max(read / device.bandwidth, step_operations(setup) / device.rate(setup.run.precision), streamed)


def operations(setup: Setup) -> tuple[float, float]:
    """Of the products of a reading, and of its attention: scores, and the sums of values."""
    tokens, layers = setup.read_rows * setup.context, setup.config.num_layers
    return 2.0 * tokens * layers * layer_weights(setup), 4.0 * tokens * setup.context * setup.heads_width * layers


def step_read(setup: Setup, memory: Memory) -> float:
    """Bytes of weights, keys and values: of the vocabulary's matrix the copy in INT8, where there is one."""
    copied = setup.run.bytes(embedding(setup)) if setup.int8_vocabulary and setup.rows <= CHOICE_ROWS else 0
    return memory.weights - copied + memory.streamed + cache_read(setup)


def step_operations(setup: Setup) -> float:
    return 2.0 * setup.rows * (setup.config.num_layers * layer_weights(setup) + embedding(setup).count)


def reading_on_gpu(setup: Setup, device: Device, costs: Costs) -> float:
    rate, layers = device.rate(setup.run.precision), setup.config.num_layers
    products, attention = operations(setup)
    seconds = products / (rate * costs.products) * (costs.packed if setup.run.bits else 1.0)
    seconds += attention / (rate * costs.attention)
    widths = 12 * setup.config.hidden_size + 4 * setup.heads_width + 3 * setup.inner
    moved = setup.read_rows * setup.context * layers * setup.element * widths
    seconds += costs.between * moved / (device.bandwidth * costs.reading)
    tokens = setup.read_rows * setup.context
    return seconds + passes(setup) * (layers * costs.layer + exchanges(setup, tokens // passes(setup), device))


def step_on_gpu(setup: Setup, memory: Memory, device: Device, costs: Costs) -> float:
    read = step_read(setup, memory)
    bound = max(read / (device.bandwidth * costs.reading),
                step_operations(setup) / (device.rate(setup.run.precision) * costs.products))
    return bound + costs.step + setup.config.num_layers * costs.layer + exchanges(setup, setup.rows, device)


def head_seconds(setup: Setup, device: Device) -> float:
    """Log-probabilities at the scored places of a pass."""
    if device.trial is not None:
        return device.trial.scores(setup.scored)
    operations = 2.0 * setup.scored * setup.config.hidden_size * setup.vocabulary
    return operations / (device.rate(setup.run.precision) * CUDA.products) + (
        setup.scored * setup.config.vocab_size * 4.0 * LOGIT_PASSES / device.bandwidth)


def cache_read(setup: Setup) -> float:
    """Bytes of keys and values behind the context, for all rows of one rank."""
    return 2.0 * setup.config.num_layers * setup.cache_width * setup.element * setup.rows * setup.context


def exchanges(setup: Setup, tokens: int, device: Device) -> float:
    """Two sums over the ranks in every layer."""
    if setup.degree == 1:
        return 0.0
    size = tokens * setup.config.hidden_size * ELEMENT[setup.run.precision]
    ring = 2.0 * size * (setup.degree - 1) / setup.degree / device.peer
    return 2 * setup.config.num_layers * (EXCHANGE + ring)


def streaming(memory: Memory, device: Device, disk: float | None) -> float:
    """Seconds that the streamed layers of one pass take to come: over the link, or on a CPU from the disk."""
    if not memory.streamed:
        return 0.0
    return memory.streamed / (device.link if device.kind == "cuda" else disk or device.link)
