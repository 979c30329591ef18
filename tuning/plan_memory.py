"""How much memory a training takes: arithmetic on shapes, which follows what glm/, kernels/reference.py and tuning/ do.

Everything is bytes of one rank. A step's memory rises and falls: activations grow layer by layer and then make way for
gradients. Letters: h hidden, w the width of this rank's heads, i inner, b rows, s places of a row, n heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from glm import spec
from glm.families import chatglm, chatglm2, glm130b
from kernels import HEAD_BYTES
from planning import memory
from planning.shapes import ELEMENT, embedding, weights
from tuning.packing import Size
from tuning.plan import Job, Learned, LowRank, learned_parameters, low_rank_parameters, model_parameters

PROCESS = 24e6  # what training imports, beside what all programs do (planning.memory.PROCESS)
TOKEN = 100  # bytes of a token of a sample: its number, places, target and mask, as Python holds them
FLOAT = 4
MOMENTS = 2  # AdamW's, float32
RANDOM = 2  # values of a probability at a time, while some are dropped
LOGITS = 3  # float32 copies of logits at a time, while their gradient is made
HEAP_BLOCK = 32 << 20  # bytes; smaller blocks share the C library's heap, in which gaps stay
GAPS, GAPS_TWICE = 0.4, 1.45  # bytes of them for every byte of activations in such blocks; computed twice
GRADIENT_GAPS = 0.5  # the same of gradients, which take the places of few of the activations
POST_NORM = (glm130b.NAME, chatglm.NAME)
PASSING = (5, 5)  # values of h and of i at a time, of every token, in the layer whose gradients are made


@dataclass(frozen=True)
class Needs:
    """Bytes of one rank. The first six lie on the device; on a CPU that is host memory."""

    weights: float  # float32 masters of what is half precision, too
    gradients: float
    moments: float
    activations: float  # of the largest part of a step, with its logits, at the moment at which most is held
    samples: float  # on a GPU none
    process: float  # Python and torch; on a GPU CUDA
    saving: float  # copies of the weights while the checkpoint is saved
    host: float  # host memory at most
    size: Size  # of that part

    @property
    def device(self) -> float:
        return self.weights + self.gradients + self.moments + self.activations + self.samples + self.process


def needs(job: Job) -> Needs:
    setup, zero, ranks = job.setup, job.zero, job.ranks
    size = max(set(job.sizes), key=lambda each: peak(job, each))
    is_half, learned = setup.element < FLOAT, model_parameters(job)
    beside = job.learned.beside + low_rank_parameters(job)
    model = sum(map(setup.run.bytes, weights(setup))) / (ranks if zero.stage == 3 else 1) + FLOAT * beside
    masters = FLOAT * learned * (is_half or zero.stage > 0) / (ranks if zero.stage else 1)  # DeepSpeed copies float32
    moments = MOMENTS * FLOAT * (learned + beside) * (job.optimizer == "adam") / (ranks if zero.stage else 1)
    gradients = gradient_bytes(job)
    held = peak(job, size)
    samples = TOKEN * job.held_tokens
    copies = 0.0 if not (learned or job.learned.is_whole) else sum(
        weight.count * ELEMENT[job.saved] for weight in weights(setup))
    if setup.kind == "cuda":
        process = memory.CUDA_CONTEXT + (memory.CUDA_PEERS if setup.degree * ranks > 1 else 0) \
            + memory.FRAGMENTS * held
        host = memory.CUDA_PROCESS + memory.TABLES * setup.config.vocab_size + samples + copies
        if zero.offloads_optimizer:
            host, masters, moments = host + masters + moments, 0.0, 0.0
        if zero.offloads_weights:
            host, model = host + model, 0.0
        return Needs(model + masters, gradients, moments, held - gradients, 0.0, process, copies, host, size)
    process = memory.PROCESS + memory.RUNNING + PROCESS + memory.TABLES * setup.config.vocab_size
    held += ((GAPS_TWICE if job.is_checkpointed else GAPS) * small_bytes(job, size)
             + GRADIENT_GAPS * small_gradients(job))
    resident = model + masters + moments + samples + process
    loading = process + samples + memory.loading_peak(setup) + own_copies(job)
    host = max(resident + held, resident + copies, loading)
    return Needs(model + masters, gradients, moments, held - gradients, samples, process, copies, host, size)


def own_copies(job: Job) -> float:
    """Of mapped weights, while those that learn get memory of their own."""
    setup = job.setup
    if not all(map(setup.stays_in_file, weights(setup))):
        return 0.0
    return model_parameters(job) * setup.element


def gradient_bytes(job: Job) -> float:
    """As they are while the optimiser moves the weights: float32."""
    share = job.ranks if job.zero.stage >= 2 else 1
    return FLOAT * learned_parameters(job) / share


def peak(job: Job, size: Size) -> float:
    """Activations and gradients together, at the moment at which they are most."""
    setup, learned = job.setup, job.learned
    layers = setup.config.num_layers
    whole = model_parameters(job) * setup.element + FLOAT * (learned.beside + low_rank_parameters(job))
    before = whole if job.parts > 1 else 0.0  # gradients of the parts before
    head = embedding(setup).count * setup.element if learned.is_whole else 0
    kept = of_layers(job, partial(layer_bytes, job, size))
    held = [setup.element * size.tokens * setup.config.hidden_size] * layers if job.is_checkpointed else kept
    passing = of_layers(job, lambda layer: layer_passing(job, size, layer) + kept[layer] * job.is_checkpointed)
    shared = shared_bytes(job, size)
    most = shared + sum(held) + before + logit_bytes(job, size) + head * (2 if before else 1)
    grown = max(before, head)
    step = (whole - head) / max(1, layers)
    for layer in reversed(range(layers)):
        most = max(most, shared + sum(held[:layer + 1]) + grown + passing[layer])
        grown = max(before, min(whole, grown + step))
    most = max(most, whole + head)  # a tied embedding's gradient comes from two places
    return max(most, gradient_bytes(job))


def layer_bytes(job: Job, size: Size, layer: int) -> float:
    return sum(layer_blocks(job, size, layer))


def of_layers(job: Job, of_one: Callable[[int], float]) -> list[float]:
    """of_one(layer) of each, computed once for layers that are alike."""
    layers, found = job.setup.config.num_layers, {}
    kinds = [(layer == layers - 1, layer < job.learned.layers) for layer in range(layers)]
    for layer, kind in enumerate(kinds):
        if kind not in found:
            found[kind] = of_one(layer)
    return [found[kind] for kind in kinds]


def layer_blocks(job: Job, size: Size, layer: int) -> list[float]:
    """What autograd keeps of a layer's pass for its gradients, tensor by tensor. The last layer computes the wanted
    places alone behind its attention."""
    setup, config, learned = job.setup, job.setup.config, job.learned
    places = size.wanted if layer == config.num_layers - 1 else size.tokens
    e, h, w, i = setup.element, config.hidden_size, setup.heads_width, setup.inner
    low = {each.linear: each for each in learned.low_rank}
    inputs = {name for name, each in low.items() if not each.has_dropout}  # linears whose inputs are kept
    if layer < learned.layers and not setup.run.bits:
        inputs |= set(spec.LINEARS)
    if not job.is_checkpointed:  # made again (glm.sat.Step.product); behind a residual a norm's result is not
        inputs -= {spec.QKV, spec.MLP_OUT} | ({spec.MLP_IN} if config.family not in POST_NORM else set())
    own = is_compiled(job)
    has_bias = f"{spec.FINAL_NORM}.bias" in config.table.lines
    norm = [h] if own or has_bias or layer >= learned.layers else [h, h]  # torch keeps the result of an RMS norm, too
    inner = zip(spec.LINEARS, (h, w, h, i), strict=True)
    low_rank = {name: _low_rank(low.get(name), width, e) for name, width in inner}
    before = [*norm, *[h] * (spec.QKV in inputs), *low_rank[spec.QKV]]
    rows, _ = spec.linears(config, setup.degree)[spec.MLP_IN]
    is_swiglu = rows == 2 * i and config.family == chatglm2.NAME and not own  # torch keeps the gate's
    context = [w] * (spec.DENSE in inputs and not keeps_result(job))
    behind = [*norm, *context, *[h] * (spec.MLP_IN in inputs), *[i] * (spec.MLP_OUT in inputs), rows,
              *[i] * is_swiglu, *[h / e, h / e] * bool(job.hidden_dropout),
              *(width for name in (spec.DENSE, spec.MLP_IN, spec.MLP_OUT) for width in low_rank[name])]
    shapes = spec.linears(config, setup.degree)
    matrices = [e * each.rank * each.pairs * sum(shapes[each.linear]) for each in learned.low_rank]
    return ([e * size.tokens * width for width in before] + [e * places * width for width in behind]
            + attention_blocks(job, size) + matrices)


def _low_rank(pair: LowRank | None, width: int, element: int) -> list[float]:
    """Values of a token; with dropout, for each pair, the input less what is dropped, and a byte each that says so."""
    if pair is None:
        return []
    return [pair.rank * pair.pairs, *[width, width / element] * (pair.pairs if pair.has_dropout else 0)]


def is_compiled(job: Job) -> bool:
    """Whether gradients are those of kernels/cpu/training.py."""
    return job.setup.kind == "cpu" and job.setup.element == FLOAT


def is_attention_compiled(job: Job) -> bool:
    return is_compiled(job) and job.setup.config.family != chatglm2.NAME and not job.learned.prefix


def keeps_result(job: Job) -> bool:
    """Whether attention itself keeps what it gives."""
    return not job.attention_dropout and not is_attention_compiled(job)


def attention_blocks(job: Job, size: Size) -> list[float]:
    """Between the products: with dropout the probabilities, a byte each that says what is dropped, and the rest;
    without it queries, keys and values (turned in pairs, the ones before that, too), the result and the mask as
    numbers; of the compiled one queries, keys and values alone, with dropout that byte of each pair, too."""
    setup, e, tokens, s = job.setup, job.setup.element, size.tokens, size.width + job.learned.prefix
    w, keys = setup.heads_width, setup.cache_width
    heads = setup.config.num_attention_heads // setup.degree
    in_pairs = setup.config.family == chatglm2.NAME
    angles = [tokens * setup.config.head_size * e] * 2 if in_pairs and e < FLOAT else []  # rounded for each layer
    pairs = tokens * heads * s
    if is_attention_compiled(job):
        return [tokens * (w + 2 * keys) * e, *[pairs] * bool(job.attention_dropout)]
    if job.attention_dropout:
        return [*angles, *[tokens * w * e] * 3, pairs * FLOAT, pairs, pairs * e, tokens * s]
    before = [tokens * w * e, tokens * (w + keys) * e] if in_pairs else []
    return [*angles, *before, tokens * w * e, tokens * (w + 2 * keys) * e, tokens * heads * FLOAT, tokens * s * e]


def layer_passing(job: Job, size: Size, layer: int) -> float:
    """What comes and goes while a layer's gradients are made."""
    setup, config = job.setup, job.setup.config
    places = size.wanted if layer == config.num_layers - 1 else size.tokens
    mlp = places * (PASSING[0] * config.hidden_size + PASSING[1] * setup.inner) * setup.element
    attention = size.tokens * PASSING[0] * config.hidden_size * setup.element + attention_passing(job, size)
    largest = max(weight.count for weight in weights(setup) if weight.packs)
    unpacked = largest * setup.element if setup.run.bits or job.parts > 1 else 0
    return max(mlp, attention) + unpacked


def attention_passing(job: Job, size: Size) -> float:
    """While some probabilities are dropped: numbers of them all, or, of the compiled attention, those that are drawn
    for a row, and a byte each before the rows are one tensor."""
    if not job.attention_dropout:
        return 0.0
    heads = job.setup.config.num_attention_heads
    pairs = size.tokens * size.width * heads // job.setup.degree
    return FLOAT * heads * size.width**2 + pairs if is_attention_compiled(job) else RANDOM * FLOAT * pairs


def small_bytes(job: Job, size: Size) -> float:
    """Of the activations that are held at a time, those in blocks of the heap."""
    layers = of_layers(job, lambda layer: sum(block for block in layer_blocks(job, size, layer) if block < HEAP_BLOCK))
    hidden = job.setup.element * size.tokens * job.setup.config.hidden_size
    widest = hidden * job.setup.inner / job.setup.config.hidden_size
    passing = shared_bytes(job, size) + (layer_passing(job, size, 0) if widest < HEAP_BLOCK else 0.0)
    if not job.is_checkpointed:
        return sum(layers) + passing
    return max(layers) + passing + (len(layers) * hidden if hidden < HEAP_BLOCK else 0)


def small_gradients(job: Job) -> float:
    """Of the gradients, those in blocks of the heap."""
    return min(gradient_bytes(job), sum(FLOAT * weight.count for weight in weights(job.setup)
                                        if FLOAT * weight.count < HEAP_BLOCK))


def shared_bytes(job: Job, size: Size) -> float:
    """Of all layers together: the mask, cosine and sine, the embedding and what is dropped of it."""
    config = job.setup.config
    angles = 2 * FLOAT * config.head_size
    hidden = (job.setup.element + bool(job.hidden_dropout)) * config.hidden_size
    return size.tokens * (size.width + angles + hidden)


def logit_bytes(job: Job, size: Size) -> float:
    """Logits with what comes and goes while their gradient is made. Where they are many, a part of them at a time."""
    one = FLOAT * job.setup.config.vocab_size
    places = min(size.wanted, max(1, HEAD_BYTES // one))
    return places * one * (1 + LOGITS)


def learned_parts(learned: Learned) -> Iterator[str]:
    """What learns, in words."""
    if learned.is_whole:
        yield "the whole model"
    elif learned.layers:
        yield f"the first {learned.layers} layers"
    if learned.low_rank:
        yield f"LoRA of rank {learned.low_rank[0].rank}"
    if learned.beside:
        yield f"{learned.beside:,} parameters beside it"
