"""This repository's model: prefill as one pass, decoding through the real decode loop (generation.batch), and on a GPU
as a recorded step."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from generation.batch import generate
from generation.params import BeamParams, SamplingParams
from generation.sampling import Choice, Rules, Ruling
from generation.sequences import Sequences
from glm import inputs, spec
from glm.config import ModelConfig
from glm.families import FAMILIES
from glm.linear import linears, pack_linears
from glm.model import GLM
from glm.options import holds_int8_vocabulary
from kernels.cuda.graph import EAGER_RUNS
from kernels.vocabulary import pack
from planning.shapes import Format, Setup
from quantization.functional import Scheme
from runtime import parallel
from runtime.errors import UserError
from runtime.pages import LargePages, large_bytes
from tools.benchmarking.rates import Bandwidth, Steps, StepsBesideReading, repeat
from tools.benchmarking.results import Result, Shape, decode_result, prefill

ENGINE, RECORDED = "glm", "glm, CUDA graph"
WARM_UP = EAGER_RUNS + 2  # steps: by then they are recorded


def shape_of(config: ModelConfig) -> Shape:
    return Shape(config.num_layers, config.hidden_size, config.num_attention_heads, config.inner_hidden_size,
                 config.vocab_size, tuple(spec.linears(config).values()))


def random_model(config: ModelConfig, dtype: torch.dtype, device: str, scheme: Scheme | None = None) -> GLM:
    """A model of this shape whose activations stay finite; with a scheme, its layers hold packed weights and never
    others: GLM-130B in INT4 takes 67 GB from the first moment, not 257. They lie in memory as weights do that are
    copied while loading."""
    model, pages = GLM(config, dtype=dtype, device="meta"), LargePages()
    if scheme is not None:
        pack_linears(model, dict.fromkeys(filter(spec.is_packed, spec.expected(config)), scheme))
    model.to_empty(device=device).requires_grad_(False).eval()
    for name, parameter in model.named_parameters():
        if parameter.device.type == "cpu":
            parameter.data = pages.empty(parameter.shape, parameter.dtype)
        if parameter.dtype is torch.int8:
            parameter.random_(-128, 128)  # with 4 bits two values a byte, all of them as likely
        elif name.endswith("weight_scale"):
            parameter.fill_(0.035 / (2 ** (scheme.bits - 1) - 1))  # a standard deviation of 0.02
        elif parameter.dim() > 1:
            parameter.normal_(std=0.02)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return model


def ready_model(config: ModelConfig, dtype: torch.dtype, device: str, scheme: Scheme | None = None) -> GLM:
    """A random model that decodes as a loaded one does: with what loading adds to a quantised one."""
    model = random_model(config, dtype, device, scheme)
    if holds_int8_vocabulary(None, torch.device(device).type, scheme is not None, parallel.size(), False,
                            dtype.itemsize):
        model.vocabulary = pack(model.head_weight.detach())
    return model


def too_large(config: ModelConfig, precision: str, free: int) -> str | None:
    """Why a model of this shape is not measured unquantised where `free` bytes are left; None: it is."""
    needed = Setup(config, Format(precision)).source_bytes
    return f"its weights take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free" if needed > free else None


def in_large_pages(model: GLM, before: int | None) -> str:
    """How much of the weights lies in pages of 2 MB, in words. before: large_bytes() before there was the model."""
    weights, now = sum(parameter.nbytes for parameter in model.parameters()), large_bytes()
    weights += 0 if model.vocabulary is None else sum(tensor.nbytes for tensor in model.vocabulary)
    if before is None or now is None:
        return f"{weights / 1e6:.0f} MB of weights"
    share = max(0, min(1, (now - before) / weights))
    return f"{weights / 1e6:.0f} MB of weights, {100 * share:.0f}% of them in pages of 2 MB (files' own pages aside)"


def bytes_per_weight(model: GLM) -> float:
    """Mean over the weights that are read for a token: those of the layers' products, with their scales, and the
    vocabulary's."""
    read = model.head_weight.nbytes if model.vocabulary is None else model.vocabulary.weight.nbytes
    for _, linear in linears(model):
        read += linear.weight.nbytes + (0 if linear.scheme is None else linear.weight_scale.nbytes)
    return read / shape_of(model.config).parameters


def prefills(model: GLM, lengths: list[int], precision: str, device: str, repeats: int) -> Iterator[Result]:
    """One unmasked prompt of each length, logits at its last place, a fresh cache every time as in real use."""
    shape, dtype = shape_of(model.config), model.transformer.word_embeddings.weight.dtype
    for length in lengths:
        work = partial(read, model, torch.randint(model.config.vocab_size, (1, length), device=device))
        yield prefill(ENGINE, precision, shape, length, work, repeats, dtype, device, bytes_per_weight(model))


@torch.inference_mode()
def read(model: GLM, tokens: torch.Tensor) -> torch.Tensor:
    """A prompt (1, s) into a fresh cache -> logits (1, 1, v) at its last place."""
    places = torch.arange(tokens.shape[1], device=tokens.device)[None]
    positions = inputs.position_ids(model.config, places, torch.zeros_like(places))
    return model.head(model.hidden_states(tokens, positions, None, model.new_cache(*tokens.shape))[:, -1:])


def decodes(model: GLM, contexts: list[int], widths: list[int], precision: str, steps: int,
            bandwidth: Bandwidth) -> Iterator[Result]:
    """Greedy decoding (width 1) and beam search (others) behind a random context."""
    shape, size = shape_of(model.config), bytes_per_weight(model)
    for context in contexts:
        for width in widths:
            clock = StepsBesideReading(bandwidth, shape.parameters * size)
            decode(model, context, width, steps, clock)
            timing, ceiling = clock.result()
            yield decode_result(ENGINE, precision, shape, context, width, timing, ceiling, size)


def decode(model: GLM, context: int, width: int, steps: int, clock: Steps) -> None:
    """Steps of decoding behind `context` tokens, each told to the clock."""
    count = steps + Steps.SKIPPED
    end = model.config.vocab_size - 1
    if width == 1:
        params = SamplingParams(top_k=1, min_gen_length=count)
    else:
        params = BeamParams(num_beams=width, min_gen_length=count)
    ids = torch.randint(end, (context + 1,)).tolist()
    clock.start()
    generate(model, [ids], params, end_tokens=[end], limits=[count], on_step=lambda _: clock.done())


@torch.inference_mode()
def recorded_decodes(model: GLM, contexts: list[int], widths: list[int], precision: str, steps: int,
                     bandwidth: Bandwidth) -> Iterator[Result]:
    """Greedy decoding on a GPU by steps that are recorded as CUDA graphs, as generation does them, without its host's
    share: no token is read. Not run yet on a GPU."""
    for context in contexts:
        for width in widths:
            step = product_step(model, context, width, steps + WARM_UP)
            ceiling = bandwidth.measure()
            timing = repeat(step, steps, bandwidth.device, warm_up=WARM_UP)
            ceiling = max(ceiling, bandwidth.measure())
            yield decode_result(RECORDED, precision, shape_of(model.config), context, width, timing, ceiling,
                                bytes_per_weight(model))


def product_step(model: GLM, context: int, width: int, count: int) -> Callable[[], None]:
    """`width` rows behind `context` tokens -> a function that gives each its likeliest next token, `count` times."""
    ids = torch.randint(model.config.vocab_size, (context + 1,)).tolist()
    sequences = Sequences(model, width, context + count)
    sequences.read([ids] * width, [None] * width, [0] * width, [False] * width, False)

    rules = Rules(end_tokens=())
    choice = Choice(SamplingParams(top_k=1), rules, False, Ruling(rules, sequences.device))

    def step() -> None:
        if sequences.records_choices:
            sequences.chosen(choice, None)
        else:
            sequences.go_on(slice(0, width), sequences.logits().values.argmax(-1))

    return step


def check_counts(**flags: list[int]) -> None:
    """flags: the values of each, by its name. UserError for one below 1."""
    for name, values in flags.items():
        if any(value < 1 for value in values):
            raise UserError(f"--{name}: {min(values)} is not a whole number of at least 1")


def check_places(config: ModelConfig, prefill: list[int], contexts: list[int], steps: int) -> None:
    """Raises UserError where positions that are learned end before a measurement does."""
    most, is_learned = config.max_sequence_length, FAMILIES[config.family].rotary_parts(config) == 0
    for name, values, more in (("--prefill", prefill, 0), ("--contexts", contexts, steps)):
        if is_learned and values and max(values) + more > most:
            raise UserError(f"{name} {max(values)}: the model has learned {most} positions; give at most {most - more}")


def check_groups(size: int | None, shape: Shape) -> None:
    widths = sorted({k for _, k in shape.linears})
    if size is not None and (size < 1 or any(width % size for width in widths)):
        raise UserError(f"--group-size {size}: must divide the columns of the model's weights, {widths}")
