"""Composition root: configuration -> empty model -> weights of this rank's shard -> device, and the tokenizer."""

import inspect
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

import kernels
from glm import spec
from glm.checkpoint import (
    OLD_FORMAT,
    QUANTISED,
    STREAMED,
    Shard,
    find_shards,
    missing_shard,
    read_config,
    read_shard,
    shard_name,
    wrong_degree,
)
from glm.config import FIELDS, ModelConfig, nearest
from glm.linear import pack_linears
from glm.model import GLM
from glm.offload import Offloaded, read_offloaded
from glm.resplit import resplit
from glm.tokenizers.icetk import IcetkTokenizer, find_vocabulary
from glm.weights import bytes_of, check_shard, count_parts, quantization_schemes
from quantization import fitting_group_sizes
from quantization.functional import Scheme, check_scheme
from runtime import parallel
from runtime.errors import UserError
from runtime.mapped import MappedFile, explain_bus_errors, mapped_file
from runtime.parallel import agree
from runtime.show import Progress, counted

DTYPES = {
    "float32": torch.float32, "fp32": torch.float32,
    "bfloat16": torch.bfloat16, "bf16": torch.bfloat16,
    "float16": torch.float16, "fp16": torch.float16,
}  # fmt: skip
LARGE_BYTES = 10**9  # from here on loading shows a progress bar


def load(
    path: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    tokenizer_path: str | os.PathLike | None = None,
    bits: int | None = None,
    *,
    model: str | None = None,
    sequential: bool = False,
    group_size: int | None = None,
    from_quantized: bool = False,
    offload_memory_limit: float | None = None,
    **config_overrides,
) -> tuple[GLM, IcetkTokenizer]:
    """The model, ready to run and without gradients, and the tokenizer of a checkpoint folder.

    device: "cpu", "cuda" (this rank's GPU on its host) or "cuda:N".
    dtype: of the weights and the arithmetic, whatever the file holds: a key of DTYPES or a torch.dtype.
    tokenizer_path: vocabulary file or its folder, where it does not lie beside the checkpoint.
    bits: 8 or 4 quantises the linear layers while loading; files that are quantised are recognised without it.
    model: name of a preset; its shapes win over the checkpoint's model_config.json.
    sequential: ranks read their files one after another, where a host's memory or disk cannot serve all at once.
    group_size: with bits: so many neighbouring columns of a weight share a scale, instead of a whole row.
    from_quantized: the file is said to be quantised; an error if it is not.
    offload_memory_limit: GB (10^9 bytes) that this rank's weights may take on the device; None: all stay there.
    config_overrides: fields of ModelConfig; they win over both.

    Under torchrun every rank calls it; the tensor-parallel degree is that of runtime.parallel.start, or else the number
    of shards. Raises UserError for every fault of the files or arguments, on all ranks if it happens on one.
    """
    _check_overrides(config_overrides)
    device, dtype = _device(device), _dtype(dtype)
    config = read_config(path, model, **config_overrides)
    tokenizer = IcetkTokenizer(find_vocabulary(path, tokenizer_path), config.num_image_tokens)
    check_vocabulary(tokenizer, config)
    _start_parallel(path)
    return load_model(path, config, device, dtype, bits, sequential, group_size, from_quantized,
                      offload_memory_limit), tokenizer


def _check_overrides(overrides: Iterable[str]) -> None:
    named = [name for name in inspect.signature(load).parameters if name != "config_overrides"]
    for name in overrides:
        if name not in FIELDS:
            raise UserError(f"glm.load has no argument {name!r}{nearest(name, (*named, *FIELDS))}; there are "
                            f"{', '.join(named)}, and of the model's shape {', '.join(FIELDS)}")


def load_model(path: str | os.PathLike, config: ModelConfig, device: torch.device, dtype: torch.dtype,
               bits: int | None = None, sequential: bool = False, group_size: int | None = None,
               from_quantized: bool = False, offload_memory_limit: float | None = None) -> GLM:
    """The model of a checkpoint whose configuration is known; runtime.parallel must have been started."""
    agree(lambda: _check_divisible(config, parallel.size()))
    model = GLM(config, dtype=dtype, device="meta")
    expected = spec.expected(config, parallel.size())
    limit = math.inf if offload_memory_limit is None else offload_memory_limit * 1e9

    def read() -> tuple[dict[str, Scheme], Offloaded, list[MappedFile]]:
        paths = find_shards(path)
        shards = _shards(paths, config)
        files = [mapped_file(shard.path) for shard in shards]
        explain_bus_errors(shards[0].path if len(shards) == 1 else shards[0].path.parent)
        shard = shards[0] if len(paths) == parallel.size() else _own_part(path, shards, config, limit)
        schemes = _schemes(shard, expected, bits, group_size, from_quantized)
        size = bytes_of(shard, expected)
        with Progress(size, shown=size >= LARGE_BYTES and parallel.is_first_process(), unit="B",
                      title="Loading weights") as progress:
            found = read_offloaded(shard, expected, dtype, device, schemes, limit, parallel.size(), progress.advance)
        is_read_later = found.streamed or (shard.mapped and _share_memory(shards, found.tensors))
        return schemes, found, files if is_read_later else []

    schemes, found, files = agree(read, sequential)
    pack_linears(model, schemes)
    model.load_state_dict(found.tensors, strict=True, assign=True)
    model.mapped_files, model.stream = files, found.stream(model)
    return model.requires_grad_(False).eval()


def check_vocabulary(tokenizer: IcetkTokenizer, config: ModelConfig) -> None:
    """Raises UserError where the tokenizer's ids and the model's vocabulary cannot belong together."""
    used, size = tokenizer.num_tokens, config.vocab_size
    facts = (f"the vocabulary {tokenizer.vocabulary_file} with num_image_tokens {tokenizer.num_image_tokens} has ids "
             f"up to {used - 1}, the model's vocab_size is {size}")
    if used > size:
        raise UserError(f"{facts}: it belongs to another model, or num_image_tokens or vocab_size is wrong")
    images = 20000 - tokenizer.num_image_tokens  # GLM-130B's ids begin with 20000 image tokens
    if images > 0 and 0 <= size - used - images < 8192 <= size - used:
        raise UserError(f"{facts}: so many unused ids look like a model with num_image_tokens 20000; set it")


def _start_parallel(path: str | os.PathLike) -> None:
    """With the degree of the shards, where the number of processes allows; a wrong number is reported later."""
    if parallel.is_started():
        return
    world = (torch.distributed.get_world_size() if torch.distributed.is_initialized()
             else int(os.environ.get("WORLD_SIZE", "1")))
    shards = len(find_shards(path))
    parallel.start(shards if world % shards == 0 else world)


def _shards(paths: Sequence[Path], config: ModelConfig) -> list[Shard]:
    """The files of which this rank needs something, not read yet: its own, or all where they are not one a rank."""
    mine = [paths[parallel.rank()]] if len(paths) == parallel.size() else paths
    shards = [read_shard(path) for path in mine]
    parts = count_parts(shards[0].tensors, config) or len(paths)
    if len(paths) < parts:
        raise UserError(missing_shard(paths[0].with_name(shard_name(len(paths)))) + f" ({parts} belong together)")
    for shard in shards:
        check_shard(shard, spec.expected(config, len(paths)), config)
    return shards


def _own_part(path: str | os.PathLike, shards: Sequence[Shard], config: ModelConfig, limit: float) -> Shard:
    """This rank's part of all files, which are not one a rank (glm.resplit)."""
    degree, count = parallel.size(), len(shards)
    if quantization_schemes(shards[0].tensors, spec.expected(config, count)):
        raise UserError(wrong_degree(path, count, degree, QUANTISED))
    if not all(shard.mapped for shard in shards):
        raise UserError(wrong_degree(path, count, degree, OLD_FORMAT))
    if limit < math.inf:
        raise UserError(wrong_degree(path, count, degree, STREAMED))
    return resplit(shards, config, degree, parallel.rank())


def _share_memory(shards: Sequence[Shard], tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether any of the model's tensors stayed in the files."""
    in_file = {tensor.untyped_storage().data_ptr() for shard in shards for tensor in shard.tensors.values()}
    return any(tensor.untyped_storage().data_ptr() in in_file for tensor in tensors.values())


def _check_divisible(config: ModelConfig, degree: int) -> None:
    if name := spec.undivided(config, degree):
        raise UserError(f"{name} {getattr(config, name)} cannot be divided among {degree} tensor-parallel ranks")


def _schemes(shard: Shard, expected: Mapping[str, spec.Part], bits: int | None, group_size: int | None,
             from_quantized: bool) -> dict[str, Scheme]:
    """How the model holds its linears' weights: as the file does, or as is asked for where the file is not quantised.

    Raises UserError where what was said of the file is wrong, or its weights cannot be quantised like this.
    """
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
        return found
    if from_quantized:
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
    return {name: Scheme(bits, group_size) for name in names}


def _device(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
    except RuntimeError:
        raise UserError(f"unknown device {device!r}; allowed: cpu, cuda, cuda:N") from None
    if device.type not in kernels.BACKENDS:
        raise UserError(f"device {str(device)!r} is not served; allowed: {', '.join(kernels.BACKENDS)}, cuda:N")
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
