"""How much memory a run takes: arithmetic on shapes that follows what glm/, kernels/ and generation/ allocate.

Everything is bytes of one tensor-parallel rank. The constants hold what the formulas leave out; they were measured
(tools/check_plan.py measures how far a plan is off; docs/plan.md has the result).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from kernels import CHOICE_ROWS, FEW_ROWS, PANEL_BYTES, SIMPLE_ROWS, SPARE, UNPACKED_ROWS, scored_bytes
from planning.shapes import Setup, embedding, layer_bytes, linears, outside, weights

PROCESS = 244e6  # Python, torch (its build for CPUs), SAT and this package, before there is a model
RUNNING = 20e6  # more of torch's libraries, and its heap, once the model has run
TABLES = 90  # bytes of the tokenizer for every id of the vocabulary
# On a GPU: context and loaded kernels of CUDA and its libraries; buffers of NCCL where ranks talk.
CUDA_PROCESS, CUDA_CONTEXT, CUDA_PEERS = 1.2e9, 0.5e9, 0.3e9
FRAGMENTS = 0.02  # of caches and activations: what torch's allocator cannot use
COPIED_LOGITS = 3  # float32 copies of a step's logits while a token is chosen
QUANTISING = 12 << 20  # float32 values of the rows that are being quantised


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank. The first five lie on the device; on a CPU that is host memory."""

    weights: float
    cache: float
    activations: float  # of the largest pass, with its logits
    workspace: float  # unpacked weights, and layers on their way
    process: float  # Python and torch; on a GPU CUDA
    host_loading: float  # host memory at most while loading, pages of the mapped file included
    host_running: float  # the same later on
    mapped: float  # such pages, of both: the system takes them back when memory is short
    streamed: float = 0.0  # weights that come again for every pass

    @property
    def device(self) -> float:
        return self.weights + self.cache + self.activations + self.workspace + self.process

    @property
    def host(self) -> float:
        return max(self.host_loading, self.host_running)


def plan(setup: Setup) -> Memory:
    held, streamed, buffers = on_device(setup)
    cache, passing = cache_bytes(setup), activations(setup)
    expanded = workspace(setup) + buffers
    if setup.kind == "cuda":
        process = CUDA_CONTEXT + (CUDA_PEERS if setup.degree > 1 else 0) + FRAGMENTS * (cache + passing)
        largest = max(setup.source.bytes(weight) for weight in weights(setup))
        host = CUDA_PROCESS + TABLES * setup.config.vocab_size + largest + streamed
        return Memory(held, cache, passing, expanded, process, host, host, largest if setup.mapped else 0.0, streamed)
    process = PROCESS + RUNNING + TABLES * setup.config.vocab_size
    running = process + held + cache + passing + expanded
    mapped = 0.0 if streamed else sum(setup.run.bytes(weight) for weight in weights(setup)
                                      if setup.stays_in_file(weight))
    peak = loading_peak(setup) if not streamed else held + buffers
    return Memory(held, cache, passing, expanded, process, process - RUNNING + peak, running, mapped, streamed)


def on_device(setup: Setup) -> tuple[float, float, float]:
    """Bytes of weights that stay on the device, that are streamed in every pass, and of the buffers for these."""
    total = sum(map(setup.run.bytes, weights(setup)))
    if setup.offload_limit is None or total <= setup.offload_limit:
        return total + int8_vocabulary_bytes(setup), 0.0, 0.0
    least, one = least_offloaded(setup), layer_bytes(setup.run, setup)
    resident = max(0, int((setup.offload_limit - least) // one))
    held = total - (setup.config.num_layers - resident) * one
    return held, total - held, least - (total - setup.config.num_layers * one)


def int8_vocabulary_bytes(setup: Setup) -> float:
    """Of the vocabulary's matrix in INT8 beside the one that is counted among the weights, with its rows' scales and
    errors (kernels/vocabulary.py)."""
    matrix = embedding(setup)
    return float(matrix.count + 8 * matrix.rows) if setup.int8_vocabulary else 0.0


def least_offloaded(setup: Setup) -> float:
    """The least that a run with streamed layers keeps on the device (glm/stream.py): embeddings, final norm, head, two
    slots of a layer each, and on a CPU a layer as the file holds it where it must be converted."""
    rest = sum(map(setup.run.bytes, outside(setup)))
    is_ready = setup.kind == "cuda" or setup.source == setup.run
    raw = 0 if is_ready else layer_bytes(setup.source, setup)
    return rest + 2 * layer_bytes(setup.run, setup) + raw


def loading_peak(setup: Setup) -> float:
    """While the weights are read on a CPU: everything so far, and the tensor in the file that is being converted."""
    done = peak = 0.0
    for weight in weights(setup):
        done += setup.run.bytes(weight)
        quantises = weight.packs and setup.run.bits and not setup.source.bits
        source = 0 if setup.stays_in_file(weight) else setup.source.bytes(weight)
        peak = max(peak, done + source + (QUANTISING if quantises else 0))
    if setup.int8_vocabulary:  # the last thing that is made
        done += int8_vocabulary_bytes(setup)
        peak = max(peak, done + QUANTISING)
    return peak if setup.mapped else done + sum(map(setup.source.bytes, weights(setup)))


def cache_bytes(setup: Setup) -> float:
    """Keys and values of all rows, beams among them; generation alone has a cache."""
    if not setup.new_tokens:
        return 0.0
    return 2.0 * setup.config.num_layers * setup.cache_width * setup.element * setup.rows * setup.places


def activations(setup: Setup) -> float:
    """Of the largest pass: one layer at a time, the masks and angles that all layers share, and the logits."""
    tokens = setup.largest_pass
    layers = setup.element * tokens * layer_width(setup)
    angles = 4 * tokens * (4 * setup.config.head_size)
    rows = max(1, ceil(tokens / max(1, setup.context)))
    blocked = rows * setup.context**2 if rows > 1 or setup.scored else 0  # one context alone needs no mask
    if setup.kind == "cpu":  # whose thread keeps what layers were computed in (kernels/cpu/pass.h)
        return layers + max(angles + 3 * blocked, logits_bytes(setup))
    return max(layers + angles + (3 + setup.element) * blocked, logits_bytes(setup))


def layer_width(setup: Setup) -> float:
    """Most values that one token has at a time inside a layer (glm/model.py: Block)."""
    h, local, inner = setup.config.hidden_size, setup.heads_width, setup.inner
    mlp = 4 * h + 3 * inner  # hidden, a, update, m; both halves and their product
    if setup.kind == "cpu":  # the compiled attention keeps less (kernels/cpu/prefill.h)
        attention = 2 * h + 3 * local + local + (0 if setup.new_tokens else 2 * local)
    else:  # q and k times cosine, turned, and their sum, beside qkv
        attention = 2 * h + 3 * local + 6 * local
    return max(mlp, attention)


def logits_bytes(setup: Setup) -> float:
    """Over the whole vocabulary, which the ranks gather; as the run's precision computes them, and in float32."""
    one = setup.config.vocab_size * 4.0
    if not setup.scored:
        return setup.rows * one * COPIED_LOGITS + unseen_choice_bytes(setup)
    places = min(setup.scored, max(FEW_ROWS, scored_bytes(setup.kind) // one))
    return places * one * 2.5


def unseen_choice_bytes(setup: Setup) -> float:
    """On a GPU: of a choice by the vocabulary's INT8 copy, which may not look at numbers (vocabulary.refine_some_):
    ranks of logits, and the rows of the matrix that are computed again for each row of x."""
    if not setup.int8_vocabulary or setup.kind != "cuda":
        return 0.0
    rows = min(setup.rows, CHOICE_ROWS)
    return rows * (COPIED_LOGITS * setup.config.vocab_size * 4.0
                   + SPARE * (setup.config.hidden_size * setup.element + rows * 4.0))


def workspace(setup: Setup) -> float:
    """What products of many rows need: on a CPU their rows in another order, on a GPU packed weights expanded."""
    if setup.kind == "cuda":
        if not setup.run.bits or setup.largest_pass <= (SIMPLE_ROWS if setup.simple_gpu else UNPACKED_ROWS):
            return 0.0
        counts = [weight.count for weight in linears(setup)]  # by turns in two places (kernels/cuda/expansion.py)
        return float(setup.element) * (max(counts[::2]) + max(counts[1::2]))
    row = max(weight.columns for weight in linears(setup)) * (2.0 if setup.run.precision == "bf16" else 4.0)
    return min(setup.largest_pass * row, max(512 * row, PANEL_BYTES))
