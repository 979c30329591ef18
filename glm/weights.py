"""From a shard's tensors to the tensors a model takes: strict comparison, quantisation, precision, device."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from glm import spec
from glm.checkpoint import Checkpoint, missing_shard, shard_name
from glm.config import ModelConfig
from glm.families import FAMILIES
from glm.inputs import inverse_frequencies
from glm.shard import Shard, read_part
from glm.spec import INVERSE_FREQUENCIES, SCALE, WORD_EMBEDDINGS, Part, axis_number, extras
from glm.upload import Upload
from kernels import CACHE_LINE
from quantization.functional import Scheme, quantize
from runtime import resources
from runtime.errors import UserError
from runtime.pages import LargePages

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
SHOWN = 3  # so many names in one message
TRIMMED = 8  # weights that are quantised until freed memory goes back, of which each leaves half a megabyte


def count_parts(tensors: Mapping[str, torch.Tensor], config: ModelConfig) -> int | None:
    """Into how many tensor-parallel parts the model was split, by the rows of the word embeddings; None: no telling."""
    table = tensors.get(WORD_EMBEDDINGS)
    if table is None or table.dim() != 2 or not table.shape[0] or config.vocab_size % table.shape[0]:
        return None
    return config.vocab_size // table.shape[0]


def quantized_bits(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, Part]) -> int | None:
    """8 or 4 where the layers' linears are quantised, None where they are not."""
    for name, part in expected.items():
        if name + SCALE in tensors and name in tensors and tensors[name].dim() == 2:
            return 4 if tensors[name].shape[1] * 2 == part.shape[1] else 8
    return None


def quantization_schemes(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, Part]) -> dict[str, Scheme]:
    """Name -> scheme of every weight that the file holds quantised; empty where it holds none.

    expected: of the unquantised model (glm.spec); the file has been compared with it (check_shard).
    """
    bits = quantized_bits(tensors, expected)
    if bits is None:
        return {}
    groups = {name: tensors[name + SCALE].shape[1:] for name, part in expected.items() if part.packs}
    return {name: Scheme(bits, expected[name].shape[1] // shape[0] if shape else None)
            for name, shape in groups.items()}


def read_checked(checkpoint: Checkpoint, config: ModelConfig, ranks: Iterable[int]) -> list[Shard]:
    """These ranks' parts of a checkpoint of any layout, by our names, compared with the model and not read yet.

    Raises UserError for files that are missing or damaged, or of another model.
    """
    own_name, count = FAMILIES[config.family].own_name, checkpoint.parts
    shards = [read_part(checkpoint, rank, own_name) for rank in ranks]
    parts = count_parts(shards[0].tensors, config) or count
    if count < parts and checkpoint.weight_map is None:
        raise UserError(missing_shard(checkpoint.paths[0].with_name(shard_name(count))) + f" ({parts} belong together)")
    for shard in shards:
        check_shard(shard, spec.expected(config, count), config)
    return shards


def check_shard(shard: Shard, expected: Mapping[str, Part], config: ModelConfig) -> None:
    """Compare names, shapes and dtypes with what this rank's model holds (glm.spec); weights are not read.

    Raises UserError naming the file and the tensors that are missing, too many, of a wrong shape or dtype.
    """
    path, tensors = shard.path, shard.tensors
    rules = _rules(tensors, expected, config)
    if missing := [name for name in rules if name not in tensors]:
        raise UserError(f"{path} lacks {_names(missing)}; copy the file again, or check the model's shape "
                        f"({_sizes(config)})")
    if extra := [name for name in tensors if name not in rules]:
        raise UserError(f"{path} holds {_names(extra)}, which the model does not have; "
                        f"check the model's shape ({_sizes(config)})")
    for name, (shape, dtypes) in rules.items():
        found = tensors[name]
        if not _fits(found, shape, grouped=name.endswith(SCALE), columns=_columns(expected, name)):
            raise UserError(f"{path}: {name} has the shape {tuple(found.shape)}, the model needs {shape}; "
                            f"check the model's shape ({_sizes(config)})")
        if found.dtype not in dtypes:
            raise UserError(f"{path}: {name} has the dtype {_short(found.dtype)}; "
                            f"allowed: {', '.join(map(_short, dtypes))}")
    for name in tensors:
        if name.endswith(INVERSE_FREQUENCIES):
            _check_inverse_frequencies(tensors[name], name, config, path)


def convert_shard(shard: Shard, expected: Iterable[str], dtype: torch.dtype, device: torch.device,
                  schemes: Mapping[str, Scheme], progress: Callable[[int], None] | None = None,
                  ) -> dict[str, torch.Tensor]:
    """A checked shard's tensors as the model takes them: ``dtype``, on ``device``, contiguous, in memory.

    expected: names of what is wanted.
    schemes: the weights that the model holds quantised; those that the file does not are quantised here, from the
    file's own dtype, one after another. Packed weights and their scales stay as they are in the file.
    What is already right stays in the mapped file: its pages are brought in here, nothing is copied
    (docs/checkpoints.md has the measurement). Everything else is copied tensor by tensor and its pages are given back
    at once. Either way host memory holds the result and little more; copies share pages of 2 MB. On a GPU it holds no
    more than some pieces on their way (glm.upload). progress: called with the bytes of each tensor.
    """
    converted, pages, upload = {}, LargePages(), Upload.to(device)
    on_host, count = torch.device(device).type == "cpu", 0
    for name in expected:
        if name + SCALE in shard.tensors:
            converted[name] = _placed(shard, name, torch.int8, device, pages, upload)
            converted[name + SCALE] = shard.tensors[name + SCALE].to(device, copy=True).contiguous()
        elif name in schemes:
            weight = shard.tensors[name]
            weight = weight.to(device) if upload is None else upload.copied(weight)
            # At once where they stay: what is kept between the pieces that come and go would leave holes of their size.
            converted[name], converted[name + SCALE] = quantize(weight, *schemes[name], empty=pages.empty)
            _let_go(shard.slices(name))
            count += 1
            if on_host and count % TRIMMED == 0:
                resources.give_back_freed()
        else:
            converted[name] = _placed(shard, name, dtype, device, pages, upload)
        if progress is not None:
            progress(_bytes(shard, name))
    return converted


def bytes_of(shard: Shard, expected: Iterable[str]) -> int:
    """What there is to be read."""
    return sum(_bytes(shard, name) for name in expected)


def _bytes(shard: Shard, name: str) -> int:
    return sum(part.numel() * part.element_size() for part in shard.slices(name))


def _placed(shard: Shard, name: str, dtype: torch.dtype, device: torch.device, pages: LargePages,
            upload: Upload | None) -> torch.Tensor:
    first, *others = parts = shard.slices(name)
    if not others and _is_ready(first, dtype, device):
        resources.read_now(first)
        return first
    axis, shape = axis_number(name), list(first.shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    copy = pages.empty(shape, dtype, device)
    for part, place in zip(parts, copy.split([part.shape[axis] for part in parts], dim=axis), strict=True):
        if upload is None:
            place.copy_(part)
        else:
            upload.copy(part, place)
    _let_go(parts)
    return copy


def _let_go(parts: Sequence[torch.Tensor]) -> None:
    for part in parts:
        resources.let_go(part)


Rules = dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]


def _rules(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, Part], config: ModelConfig) -> Rules:
    """Name -> shape and allowed dtypes of everything that must be in the file, given what kind of file it is."""
    rules: Rules = {name: (part.shape, FLOATS) for name, part in expected.items()}
    bits = quantized_bits(tensors, expected)
    if bits is not None:
        for name in [name for name, part in expected.items() if part.packs]:
            rows, columns = expected[name].shape
            rules[name] = ((rows, columns * bits // 8), (torch.int8,))
            rules[name + SCALE] = ((rows,), FLOATS)
    degree = config.vocab_size // expected[WORD_EMBEDDINGS].shape[0]
    for names in extras(config, degree):  # all layers of a kind, or none
        if any(name in tensors for name in names):
            rules |= {name: (part.shape, FLOATS) for name, part in names.items()}
    return rules


def _columns(expected: Mapping[str, Part], name: str) -> int:
    weight = expected.get(name.removesuffix(SCALE))
    return 0 if weight is None else weight.shape[-1]


def _fits(found: torch.Tensor, shape: tuple[int, ...], grouped: bool, columns: int) -> bool:
    """The right shape; a scale may also have one column for each group of the weight's columns."""
    if tuple(found.shape) == shape:
        return True
    return (grouped and found.dim() == 2 and found.shape[0] == shape[0] and found.shape[1] > 0
            and columns % found.shape[1] == 0)


def _check_inverse_frequencies(found: torch.Tensor, name: str, config: ModelConfig, path: Path) -> None:
    """GLM-130B's files hold 1 / 10000^(2i / head size) in FP16, also for models with 2D positions.

    The model's own table is never taken from the file; a file with other values was made for another model.
    """
    needed = inverse_frequencies(2 * found.numel(), "half_inv_freq")
    tolerance = max(torch.finfo(found.dtype).eps, torch.finfo(torch.float16).eps)  # one step of the coarser rounding
    if not torch.allclose(found.float(), needed, rtol=tolerance, atol=1e-7):
        raise UserError(f"{path}: {name} is not 1 / 10000^(2i / {config.head_size}), the rotary frequencies of head "
                        f"size {config.head_size}; check num_attention_heads ({config.num_attention_heads}), or the "
                        "file belongs to another kind of model")


def _is_ready(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> bool:
    return (tensor.dtype == dtype and device.type == "cpu" and tensor.is_contiguous()
            and tensor.data_ptr() % CACHE_LINE == 0)


def _names(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest


def _sizes(config: ModelConfig) -> str:
    names = ("num_layers", "hidden_size", "num_attention_heads", "inner_hidden_size", "vocab_size")
    return ", ".join(f"{name} {getattr(config, name)}" for name in names)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
