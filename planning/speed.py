"""How long a run takes: what the machine allows at best (floor), and what this code makes of it (expected).

Reading contexts is bound by arithmetic: products (2 operations for every weight and token), and attention. Decoding is
bound by memory: every step reads all weights and the cache once. What comes on top is in the constants: measured on a
CPU (tools/check_plan.py), assumed for GPUs, on which this code has not been measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from planning.devices import Device
from planning.memory import Memory
from planning.shapes import ELEMENT, Setup, embedding, layer_weights, weights

START = 1.5  # seconds until Python, torch and this package are imported


@dataclass(frozen=True)
class Costs:
    """What one kind of device takes on top of the bounds."""

    step: float  # seconds of a decoding step beside its layers
    layer: float  # seconds of one layer's calls in a decoding step
    read_layer: float  # the same while contexts are read
    reading: float  # share of the device's bandwidth that is reached
    products: float  # share of its matrix rate that products reach
    attention: float  # share of its matrix rate that attention reaches
    between: float  # bytes moved between a layer's products for every value of its widths
    packed: float  # times that products of many rows take longer with packed weights
    convert: float  # bytes of the file a second
    quantise: float  # bytes of the file a second


CPU = Costs(step=2e-4, layer=1.2e-5, read_layer=2e-4, reading=1.0, products=1.0, attention=0.35, between=1.5,
            packed=1.12, convert=1.5e9, quantise=0.25e9)
CUDA = Costs(step=3e-4, layer=1.0e-4, read_layer=1.0e-4, reading=0.75, products=0.6, attention=0.4, between=1.5,
             packed=1.05, convert=8e9, quantise=4e9)
LOGIT_PASSES = 6  # times that float32 logits are written or read until they are log-probabilities
EXCHANGE = 2e-5  # seconds that one of a layer's two sums over tensor-parallel ranks takes at least


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
    costs = CPU if device.kind == "cpu" else CUDA
    return Speed(load_seconds(setup, device, disk, costs),
                 prefill_seconds(setup, memory, device, disk, None),
                 prefill_seconds(setup, memory, device, disk, costs),
                 token_seconds(setup, memory, device, disk, None), token_seconds(setup, memory, device, disk, costs))


def load_seconds(setup: Setup, device: Device, disk: float | None, costs: Costs) -> float | None:
    if disk is None:
        return None
    seconds = START
    for weight in weights(setup):
        stored = setup.source.bytes(weight)
        seconds += stored * setup.degree / disk
        if weight.packs and setup.run.bits and not setup.source.bits:
            seconds += stored / costs.quantise
        elif not setup.stays_in_file(weight):
            seconds += stored / costs.convert
    return seconds


def prefill_seconds(setup: Setup, memory: Memory, device: Device, disk: float | None, costs: Costs | None) -> float:
    tokens = setup.read_rows * setup.context
    passes = max(1, -(-tokens // (setup.pass_tokens or tokens)))
    rate = device.rate(setup.run.precision)
    layers = setup.config.num_layers
    products = 2.0 * tokens * layers * layer_weights(setup) / rate
    looked_at = 4.0 * tokens * setup.context * setup.heads_width * layers  # scores, and the sums of values
    if costs is None:
        return max(products + looked_at / rate, memory.weights / device.bandwidth, streaming(memory, device, disk))
    reached = 1.0 if device.reached else costs.products
    seconds = products / reached * (costs.packed if setup.run.bits else 1.0) + looked_at / (rate * costs.attention)
    h, inner = setup.config.hidden_size, setup.inner
    moved = tokens * layers * setup.element * (12 * h + 4 * setup.heads_width + 3 * inner)
    seconds += costs.between * moved / (device.bandwidth * costs.reading) + passes * layers * costs.read_layer
    seconds += passes * exchanges(setup, tokens // passes, device)
    return max(seconds, passes * streaming(memory, device, disk))


def token_seconds(setup: Setup, memory: Memory, device: Device, disk: float | None, costs: Costs | None) -> float:
    read = memory.weights + memory.streamed + cache_read(setup)
    products = 2.0 * setup.rows * (setup.config.num_layers * layer_weights(setup) + embedding(setup).count)
    rate = device.rate(setup.run.precision)
    if costs is None:
        return max(read / device.bandwidth, products / rate, streaming(memory, device, disk))
    bound = max(read / (device.bandwidth * costs.reading),
                products / (rate * (1.0 if device.reached else costs.products)))
    seconds = bound + costs.step + setup.config.num_layers * costs.layer + exchanges(setup, setup.rows, device)
    return max(seconds, streaming(memory, device, disk))


def head_seconds(setup: Setup, device: Device) -> float:
    """Logits of the scored places of a pass, and the reading of them."""
    operations = 2.0 * setup.scored * setup.config.hidden_size * setup.vocabulary
    reached = 1.0 if device.reached else CUDA.products
    return operations / (device.rate(setup.run.precision) * reached) + (
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
