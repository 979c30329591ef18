"""What a training is, for those who count its memory and time before it begins: values out of flags and headers of
files, without torch.

    job_of(...)    from what was asked for
    sizes_of(...)  how large the parts of its steps are, read from the samples themselves
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from glm import spec
from glm.checkpoint import read_config
from planning import stored
from planning.check import check_divisible
from planning.shapes import Format, Setup, outside, weights
from planning.stored import PRECISIONS
from runtime.errors import UserError
from tuning.data.sample import Sample
from tuning.deepspeed_config import HOST, OFFLOADS, DeepSpeed, device_of
from tuning.packing import Size, cut, size_of, together

if TYPE_CHECKING:
    from glm.config import ModelConfig
    from tuning.options import CheckpointOptions, PartsOptions, PromptOptions, Settings
    from tuning.train_options import TrainOptions
    from tuning.training_data import TrainingData

MOST_STEPS = 20_000  # that are looked at
DRAWN_STEPS = 4  # of pretraining, whose samples are made for it
SHORT = {name: short for name, short in PRECISIONS.items()} | {short: short for short in PRECISIONS.values()}


class LowRank(NamedTuple):
    """LoRA of a linear."""

    linear: str  # of spec.LINEARS
    rank: int  # of a pair
    pairs: int = 1
    has_dropout: bool = False


@dataclass(frozen=True)
class Learned:
    """Which parameters learn."""

    layers: int  # of the model's, from the first on
    is_whole: bool = True  # embeddings and the final norm do, too
    beside: int = 0  # parameters of a head, a prompt encoder, a prefix; float32
    low_rank: tuple[LowRank, ...] = ()  # LoRA in every layer
    prefix: int = 0  # tokens that stand in front of every layer's own


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed's ZeRO divides among the data-parallel ranks."""

    stage: int = 0  # 1: optimiser; 2: gradients, too; 3: weights, too
    offloads_optimizer: bool = False  # to host memory
    offloads_weights: bool = False

    @classmethod
    def of(cls, deepspeed: DeepSpeed) -> Zero:
        return cls(deepspeed.stage, *(device_of(deepspeed.zero, part) == HOST for part in OFFLOADS))


@dataclass(frozen=True)
class Job:
    setup: Setup  # the model, how its file holds it and how it runs
    learned: Learned
    sizes: tuple[Size, ...]  # of the parts that one rank computes at a time, of every step that is looked at
    steps: int  # of the whole training
    of_epoch: float  # steps; those of the whole training where there are no epochs
    parts: int = 1  # of a step, on each rank
    ranks: int = 1  # data-parallel
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    is_checkpointed: bool = False
    zero: Zero = Zero()
    optimizer: str = "adam"  # train_options.OPTIMIZERS
    saved: str = "fp32"  # precision of the saved checkpoint
    held_tokens: int = 0  # of all samples, in memory


def job_of(checkpoint: CheckpointOptions, parts: PartsOptions, settings: Settings, options: TrainOptions,
           data: TrainingData | None, ranks: int | None = None, zero: Zero = Zero(),
           optimizer: str = "adam") -> Job:
    """data: None for rows of --seq-length tokens, all of which are scored. ranks: data-parallel; None: as many as were
    started. Raises UserError for what cannot be a training."""
    config = read_config(checkpoint.load, checkpoint.model, **(checkpoint.shape or {}))
    found = stored.look(checkpoint.load, config)
    if checkpoint.dtype not in SHORT:
        raise UserError(f"unknown dtype {checkpoint.dtype!r}; allowed: {', '.join(SHORT)}")
    precision, file = SHORT[checkpoint.dtype], found.format
    bits, group_size = (file.bits, file.group_size) if file.bits else (checkpoint.bits, checkpoint.group_size)
    degree = checkpoint.degree or found.parts
    check_divisible(config, degree)
    if ranks is None:
        ranks = max(1, int(os.environ.get("WORLD_SIZE", "1")) // degree)
    kind = "cpu" if checkpoint.device == "cpu" else "cuda"
    setup = Setup(config, Format(precision, bits, group_size), kind, degree, file, mapped=found.is_mapped,
                  parts=found.parts)
    count = options.gradient_accumulation_steps
    sizes, held = sizes_of(data, settings, ranks * count) if data is not None else ([], 0)
    if not sizes:
        rows = -(-options.batch_size // count)
        width = min(settings.data.seq_length, config.max_sequence_length)
        sizes = [Size(rows, width, rows * width)]
    steps = len(data.steps) if data is not None else options.train_iters or 1
    learned = learned_of(config, parts, settings.prompt, 0 if data is None else data.labels)
    return Job(setup, learned, tuple(sizes), steps, getattr(data and data.steps, "of_epoch", steps), count, ranks,
               options.hidden_dropout, options.attention_dropout, options.checkpoint_activations,
               saved=SHORT[options.save_dtype or checkpoint.dtype], held_tokens=held, zero=zero,
               optimizer=optimizer)


def sizes_of(data: TrainingData, settings: Settings, parts: int) -> tuple[list[Size], int]:
    """Of the parts of the steps; and how many tokens all samples have, which stay in memory."""
    pool = settings.cloze.pool_token
    if not data.rows:
        drawn = [data.samples_of(work) for work in islice(iter(data.steps), DRAWN_STEPS)]
        return [size_of(part, pool) for samples in drawn for _, part in cut(samples, parts) if part], 0
    known = [size_of([row], pool) if isinstance(row, Sample) else None for row in data.rows]
    works = (data.steps[step] for step in range(min(len(data.steps), MOST_STEPS)))
    sizes = [together(part) for work in works for _, part in cut([known[row] for row in work.rows], parts)
             if part]
    return sizes, sum(len(row.input_ids) for sample in data.rows if isinstance(sample, Sample) for row in sample.rows)


def learned_of(config: ModelConfig, parts: PartsOptions, prompt: PromptOptions, labels: int) -> Learned:
    """labels: outputs of a classification head; 0: there is none. A file of adapters counts as it lies on the disk."""
    width, beside = config.hidden_size, 0
    if labels:
        beside += width * (width + 1) + labels * (width + 1)
    count = prompt.num_prompt_tokens + prompt.prefix_prompt
    if prompt.continuous_prompt and count:
        beside += count * width + prompt_parameters(prompt.prompt_func, width)
    if parts.pre_seq_len:
        beside += prefix_parameters(config, parts.pre_seq_len, parts.prefix_projection)
    files = [file for path in (parts.adapter, None if parts.pre_seq_len else parts.prefix_encoder) if path is not None
             for file in ([path] if path.is_file() else path.glob("*")) if file.is_file()]
    beside += sum(file.stat().st_size for file in files) // 4
    low_rank: tuple[LowRank, ...] = ()
    if parts.lora_rank is not None:
        wanted = parts.lora_linears.split(",")
        low_rank = tuple(LowRank(name, parts.lora_rank, 3 if name == spec.QKV and parts.lora_split_qkv else 1,
                                 bool(parts.lora_dropout)) for name in spec.linears(config)
                         if name in wanted or name.rpartition(".")[2] in wanted)
    is_whole = not (prompt.freeze_transformer or low_rank or files or parts.pre_seq_len)
    layers = config.num_layers if is_whole else min(config.num_layers, prompt.tune_prefix_layers or 0)
    return Learned(layers, is_whole, beside, low_rank, parts.pre_seq_len)


def prefix_parameters(config: ModelConfig, length: int, has_projection: bool) -> int:
    size, width = 2 * config.num_layers * config.key_value_heads * config.head_size, config.hidden_size
    return length * width + (width + 1) * (width + size) if has_projection else length * size


def prompt_parameters(kind: str, width: int) -> int:
    """Of a prompt encoder (tuning.model.PromptEncoder), beside its embeddings."""
    lstm = 8 * width * (2 * width + 2) + 8 * width * (3 * width + 2)  # two layers, both directions
    mlp = width * ((2 if kind == "lstm" else 1) * width + 1) + width * (width + 1)
    return 0 if kind == "none" else mlp + (lstm if kind == "lstm" else 0)


def low_rank_parameters(job: Job) -> int:
    """Of all layers; every tensor-parallel rank holds whole matrices."""
    shapes = spec.linears(job.setup.config)
    return job.setup.config.num_layers * sum(each.rank * (shapes[each.linear][0] + each.pairs * shapes[each.linear][1])
                                             for each in job.learned.low_rank)


def model_parameters(job: Job) -> int:
    """Of this rank's model, that learn."""
    setup, learned = job.setup, job.learned
    packs = setup.run.bits is not None
    layer = sum(weight.count for weight in weights(setup) if not (packs and weight.packs)) - outside_parameters(setup)
    return (outside_parameters(setup) if learned.is_whole else 0) + layer * learned.layers // setup.config.num_layers


def learned_parameters(job: Job) -> int:
    """Of this rank's model, and of what is beside it."""
    return model_parameters(job) + job.learned.beside + low_rank_parameters(job)


def outside_parameters(setup: Setup) -> int:
    return sum(weight.count for weight in outside(setup))
