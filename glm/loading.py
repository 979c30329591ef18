"""Composition root: configuration -> empty model -> weights of this rank's shard -> device, and the tokenizer."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import kernels
from glm import spec
from glm.adapters.files import base_of, put_on, read_adapter
from glm.checkpoint import (
    STREAMED,
    Checkpoint,
    open_checkpoint,
    read_config,
    wrong_degree,
)
from glm.config import ModelConfig
from glm.families import FAMILIES
from glm.linear import linears, pack_linears
from glm.model import GLM
from glm.options import ModelOptions, holds_int8_vocabulary
from glm.resplit import resplit, uncut
from glm.shard import Shard
from glm.stream import Offloaded, read_offloaded
from glm.tokenizers.interface import Tokenizer
from glm.weights import bytes_of, quantization_schemes, read_checked
from kernels.vocabulary import pack
from quantization import fitting_group_sizes
from quantization.functional import Scheme, check_scheme
from runtime import parallel
from runtime.errors import UserError
from runtime.mapped import MappedFile, explain_bus_errors, mapped_file
from runtime.parallel import agree
from runtime.resources import free_memory, local_ranks, unusable
from runtime.show import Progress, counted

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip
BMINF_SHARE = 0.5  # of what is free goes to the weights with --bminf; caches and activations need room, too
LARGE_BYTES = 10**9  # from here on loading shows a progress bar


def load(options: ModelOptions) -> tuple[GLM, Tokenizer]:
    """The model, ready to run and without gradients, and the tokenizer of a checkpoint folder.

    Every rank calls it. Raises UserError for every fault of the files or arguments, on all ranks if it happens on one.
    """
    options, config = resolved(options), read_config(options.path, options.model, **(options.shape or {}))
    tokenizer = FAMILIES[config.family].open_tokenizer(Path(options.path), options.tokenizer_path, config)
    check_vocabulary(tokenizer, config)
    _start_parallel(options)
    if len(options.adapter) > 1:
        raise UserError(f"{len(options.adapter)} adapters were named; a model has one, and the server alone "
                        "(scripts/serve.sh) any number, chosen by request")
    model = load_model(options, config)
    share_small_sums(options.device)
    for path in options.adapter:
        adapt(model, path, options.path, options.lora_alpha, options.lora_layout)
    return model, tokenizer


def share_small_sums(device: torch.device) -> None:
    """Every rank, once there is a group: ranks that see each other's memory add up tensors themselves; GPUs small ones,
    where that is asked for."""
    if device.type in parallel.small_sums:
        return
    parallel.small_sums[device.type] = kernels.small_sums(device, parallel.rank(), parallel.size(), parallel.exchange,
                                                          *parallel.patience)


def adapt(model: GLM, path: str | os.PathLike, base: str | os.PathLike, alpha: float | None = None,
          layout: str | None = None) -> None:
    """Put an adapter on a model that does not learn; every rank calls it. base: folder of the model's checkpoint."""
    def put() -> None:
        adapter = read_adapter(path, model.config.family, alpha, layout)
        put_on(model, adapter, base_of(base) if adapter.base else None)

    agree(put)
    if model.prefix is not None:
        model.prefix = model.prefix.flat()


def sharing(model: GLM) -> GLM:
    """Another model of the same weights, which are not copied; what is put on it leaves the first one as it is."""
    if model.stream is not None:
        raise UserError("several adapters and --offload-memory-limit do not go together: start a server for each")
    made = GLM(model.config, dtype=next(model.parameters()).dtype, device="meta")
    pack_linears(made, {f"{name}.weight": linear.scheme for name, linear in linears(model) if linear.scheme})
    for name, linear in linears(model):
        made.get_submodule(name).row_parts = linear.row_parts
    made.load_state_dict(model.state_dict(), strict=True, assign=True)
    made.mapped_files, made.vocabulary = model.mapped_files, model.vocabulary
    return made.requires_grad_(False).eval()


def load_without_tokenizer(options: ModelOptions) -> GLM:
    options, config = resolved(options), read_config(options.path, options.model, **(options.shape or {}))
    _start_parallel(options)
    return load_model(options, config)


def resolved(options: ModelOptions) -> ModelOptions:
    """With a torch.device and a torch.dtype. UserError for those that there are not."""
    return replace(options, device=_device(options.device), dtype=_dtype(options.dtype))


def load_model(options: ModelOptions, config: ModelConfig) -> GLM:
    """The model of a checkpoint whose configuration is known; runtime.parallel must have been started.

    options: with a torch.device and a torch.dtype.
    """
    path, device, dtype = options.path, options.device, options.dtype
    if fault := spec.fault_of_degree(config, parallel.size()):
        raise UserError(fault)
    model = GLM(config, dtype=dtype, device="meta")
    expected = spec.expected(config, parallel.size())
    limit = _offload_limit(options)

    def read() -> tuple[dict[str, Scheme], bool, Offloaded, list[MappedFile]]:
        checkpoint = open_checkpoint(path)
        shards = _shards(checkpoint, config)
        opened = sorted({entry.file for shard in shards for entry in shard.entries.values()})
        files = list(map(mapped_file, opened))
        explain_bus_errors(opened[0] if len(opened) == 1 else opened[0].parent)
        shard = shards[0] if checkpoint.parts == parallel.size() else _own_part(path, shards, config, limit)
        schemes, is_stored = _schemes(shard, expected, options)
        size = bytes_of(shard, expected)
        with Progress(size, shown=size >= LARGE_BYTES and parallel.is_first_process(), unit="B",
                      title="Loading weights") as progress:
            found = read_offloaded(shard, expected, dtype, device, schemes, limit, parallel.size(), progress.advance)
        is_read_later = found.streamed or any(
            shard.tensors.holds(tensor) for shard in shards for tensor in found.tensors.values())
        return schemes, is_stored, found, files if is_read_later else []

    schemes, is_stored, found, files = agree(read, options.sequential)
    pack_linears(model, schemes, 1 if is_stored else parallel.size())
    model.load_state_dict(found.tensors, strict=True, assign=True)
    model.mapped_files, model.stream = files, found.stream(model)
    if holds_int8_vocabulary(options.int8_vocabulary, device.type, bool(schemes), parallel.size(),
                             limit < math.inf, dtype.itemsize) and (device.type != "cpu" or kernels.compiled()):
        model.vocabulary = pack(model.head_weight.detach())
    return model.requires_grad_(False).eval()


def check_vocabulary(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """Raises UserError where the tokenizer's ids and the model's vocabulary cannot belong together."""
    used, size = tokenizer.num_tokens, config.vocab_size
    facts = (f"the vocabulary {tokenizer.vocabulary_file} with num_image_tokens {tokenizer.num_image_tokens} has ids "
             f"up to {used - 1}, the model's vocab_size is {size}")
    if used > size:
        raise UserError(f"{facts}: it belongs to another model, or num_image_tokens or vocab_size is wrong")
    images = 20000 - tokenizer.num_image_tokens  # GLM-130B's ids begin with 20000 image tokens
    if images > 0 and 0 <= size - used - images < 8192 <= size - used:
        raise UserError(f"{facts}: so many unused ids look like a model with num_image_tokens 20000; set it")


def _offload_limit(options: ModelOptions) -> float:
    """Bytes that a rank's weights may take on its device: of all ranks alike, for they record decoding steps together,
    which one that streams layers does not."""
    if (options.offload_memory_limit or options.bminf) and options.device.type not in kernels.BACKENDS:
        raise UserError(f"layers are streamed on cpu and cuda, not on {options.device}; leave --offload-memory-limit "
                        "and --bminf away")
    if options.offload_memory_limit is not None:
        return options.offload_memory_limit * 1e9
    if not options.bminf:
        return math.inf
    return min(parallel.exchange(BMINF_SHARE * free_memory(str(options.device)) / local_ranks()))


def _start_parallel(options: ModelOptions) -> None:
    """With the degree that was said, or else that of the shards, where the number of processes allows; a wrong number
    is reported later."""
    kernels.check_wish()
    if options.degree is not None:
        parallel.start(options.degree, device=options.device)
    if parallel.is_started():
        return
    world = (torch.distributed.get_world_size() if torch.distributed.is_initialized()
             else int(os.environ.get("WORLD_SIZE", "1")))
    parts = open_checkpoint(options.path).parts
    parallel.start(parts if world % parts == 0 else world, device=options.device)


def _shards(checkpoint: Checkpoint, config: ModelConfig) -> list[Shard]:
    """The parts of which this rank needs something, not read yet: its own, or all where they are not one a rank."""
    count = checkpoint.parts
    return read_checked(checkpoint, config, [parallel.rank()] if count == parallel.size() else range(count))


def _own_part(path: str | os.PathLike, shards: Sequence[Shard], config: ModelConfig, limit: float) -> Shard:
    """This rank's part of all files, which are not one a rank (glm.resplit)."""
    degree, count = parallel.size(), len(shards)
    if limit < math.inf:
        raise UserError(wrong_degree(path, count, degree, STREAMED))
    schemes = quantization_schemes(shards[0].tensors, spec.expected(config, count))
    if name := uncut(schemes, config, degree):
        raise UserError(f"{path}: {name} has {spec.columns_of(name, config, degree)} columns on each of {degree} "
                        f"tensor-parallel ranks, which would cut a byte of two 4-bit weights in two; start {count} (the"
                        f" scripts: MP_SIZE={count}), or another number that gives an even one")
    return resplit(shards, config, degree, parallel.rank(), schemes)


def _schemes(shard: Shard, expected: Mapping[str, spec.Part],
             options: ModelOptions) -> tuple[dict[str, Scheme], bool]:
    """How the model holds its linears' weights, and whether the file does so, too: otherwise it is not quantised, and
    they are as was asked for.

    Raises UserError where what was said of the file is wrong, or its weights cannot be quantised like this.
    """
    bits, group_size = options.bits, options.group_size
    if bits not in (None, 4, 8):
        raise UserError(f"quantisation to {bits} bits was asked for; allowed: 4, 8")
    if group_size is not None and bits is None:
        raise UserError(f"groups of {group_size} columns were asked for, but no quantisation; say how many bits, too "
                        "(--quantization-bit-width 8 or 4)")
    found = quantization_schemes(shard.tensors, expected)
    if found:
        for scheme in found.values():
            if bits not in (None, scheme.bits):
                raise UserError(f"{shard.path} is quantised to {scheme.bits} bits, but {bits} were asked for; leave "
                                f"--quantization-bit-width away or take the unquantised checkpoint")
            if group_size not in (None, scheme.group_size):
                groups = f"groups of {scheme.group_size} columns" if scheme.group_size else "whole rows"
                raise UserError(f"{shard.path} is quantised by {groups}, but groups of {group_size} were asked for; "
                                "leave --quantization-group-size away or take the unquantised checkpoint")
        return found, True
    if options.from_quantized:
        raise UserError(f"{shard.path} is not quantised; leave --from-quantized-checkpoint away"
                        + (f": it is quantised to {bits} bits while loading" if bits else ""))
    names = [name for name, part in expected.items() if part.packs] if bits else []
    columns = {name: expected[name].shape[1] for name in names}
    for name, count in columns.items():
        try:
            check_scheme(count, bits, group_size)
        except ValueError as error:
            allowed = "" if group_size is None else ("; --quantization-group-size: allowed here are "
                                                     + fitting_group_sizes(columns.values()))
            raise UserError(f"{name} on {counted(parallel.size(), 'tensor-parallel rank')}: "
                            f"{error}{allowed}") from None
    return {name: Scheme(bits, group_size) for name in names}, False


def _device(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}; allowed: cpu, cuda, cuda:N, and others that torch has (xpu, mps, "
                        "...)") from None
    if device.type not in kernels.BACKENDS and (why := unusable(str(device))):
        raise UserError(f"device {device} was asked for, but torch cannot use it: {why}; use --device cpu (in Python: "
                        "device='cpu')")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError("device cuda was asked for, but torch finds no usable GPU; use --device cpu (in "
                            "Python: device='cpu')")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
        if device.index >= torch.cuda.device_count():
            raise UserError(f"there is no GPU {device}; torch finds {torch.cuda.device_count()}")
    return device


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    if dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; allowed: {', '.join(DTYPES)}")
    return DTYPES[dtype]
