"""The checkpoint that is converted: its shards compared with one another, its sizes found out from its tensors.

Everything that is wrong is said in one line before anything is written.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from glm.checkpoint import Checkpoint, missing_shard, open_checkpoint, shard_name
from glm.config import ModelConfig
from glm.families import glm130b
from glm.shard import Shard, read_part
from glm.spec import (
    INVERSE_FREQUENCIES,
    MLP_IN,
    SCALE,
    WORD_EMBEDDINGS,
    Cut,
    Table,
    axis_of,
    columns_of,
    cut_of,
    describe,
    in_layer,
    is_packed,
    layer_of,
)
from glm.weights import read_checked
from quantization.functional import Scheme
from runtime.errors import UserError

FIRST_ITERATION = "0"  # where no folder has the name of one, as in Hugging Face's layout
SIZES = ("num_layers", "hidden_size", "num_attention_heads", "inner_hidden_size", "vocab_size")


class Sizes(NamedTuple):
    """Of a whole model of GLM-130B's family, as glm.config names them."""

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    inner_hidden_size: int
    vocab_size: int

    @property
    def table(self) -> Table:
        return glm130b.tensors(self)


class Source(NamedTuple):
    """A checkpoint of any layout and family, by our names for its tensors."""

    checkpoint: Checkpoint
    shards: Sequence[Shard]
    sizes: Sizes | ModelConfig
    schemes: Mapping[str, Scheme]  # of the quantised weights
    extras: Sequence[str]  # tensors that no GLM has
    differing: Sequence[str]  # whole tensors that are not the same on all ranks; the first rank's counts

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def iteration(self) -> str:
        return self.checkpoint.iteration or FIRST_ITERATION

    @property
    def degree(self) -> int:
        return len(self.shards)

    def tensor(self, rank: int, name: str) -> torch.Tensor:
        return self.shards[rank].tensors[name]

    @property
    def bits(self) -> int | None:
        return next(iter(self.schemes.values())).bits if self.schemes else None

    @property
    def others(self) -> Mapping[str, object]:
        """What the first file holds beside its tensors."""
        return self.shards[0].others if self.checkpoint.weight_map is None else {}


def open_source(folder: str | os.PathLike, given: Mapping[str, object], heads_needed: bool = True) -> Source:
    """given: fields of ModelConfig that the folder, a preset or flags say (glm.checkpoint.read_values). Of GLM-130B's
    family those not given are found out; other families need all.
    heads_needed: False where the checkpoint is only looked at; their number is then one a shard if nothing says it.

    Raises UserError, one line, for whatever is wrong with the files or does not fit ``given``.
    """
    checkpoint = open_checkpoint(folder)
    default_heads = None if heads_needed else checkpoint.parts
    is_found_out = given.get("family", glm130b.NAME) == glm130b.NAME
    if is_found_out:
        shards = [read_part(checkpoint, rank, glm130b.own_name) for rank in range(checkpoint.parts)]
    else:
        heads = {} if default_heads is None else {"num_attention_heads": default_heads}
        sizes = ModelConfig.from_values(heads | given, str(checkpoint.config_path or folder))
        shards = read_checked(checkpoint, sizes, range(checkpoint.parts))
    _check_names(shards)
    _check_shapes(shards)
    if is_found_out:
        sizes = _sizes(shards, given, default_heads)
    schemes = {name: _scheme(shards, name, sizes) for name in shards[0].tensors
               if is_packed(name) and name + SCALE in shards[0].tensors}
    if is_found_out:
        _check_split(shards, sizes, schemes)
    extras = [name for name in shards[0].tensors if describe(name, sizes) is None]
    return Source(checkpoint, shards, sizes, schemes, extras, _differing(shards))


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors of one shape and dtype are the same bit for bit (NaN is then NaN)."""
    return torch.equal(one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8))


def _check_names(shards: Sequence[Shard]) -> None:
    first = shards[0]
    for shard in shards[1:]:
        for here, there in ((first, shard), (shard, first)):
            if missing := [name for name in here.tensors if name not in there.tensors]:
                raise UserError(f"{there.path} lacks {missing[0]}, which {here.path.name} has: the shards are not of "
                                "one checkpoint; copy the file again")
    if WORD_EMBEDDINGS not in first.tensors:
        found = ", ".join(list(first.tensors)[:3]) or "nothing"
        raise UserError(f"{first.path} is no GLM: it lacks {WORD_EMBEDDINGS} (it holds {found} ...)")


def _check_shapes(shards: Sequence[Shard]) -> None:
    for name, tensor in shards[0].tensors.items():
        for shard in shards:
            found = shard.tensors[name]
            if found.shape != tensor.shape or found.dtype != tensor.dtype:
                raise UserError(f"{shard.path}: {name} is {_described(found)}, in {shards[0].path.name} it is "
                                f"{_described(tensor)}: the shards are not of one checkpoint; copy the file again")
            if found.layout != torch.strided:
                raise UserError(f"{shard.path}: {name} has the layout {found.layout}; only dense tensors are served")
        needed = {Cut.COLUMNS: (2,), Cut.ROWS: (1, 2)}.get(cut_of(name))
        if name.endswith(SCALE) and needed:
            needed = (1, 2)
        if needed and (tensor.is_complex() or tensor.dtype == torch.bool):
            raise UserError(f"{shards[0].path}: {name} is {_described(tensor)}, which no weight of a GLM is")
        if needed and (tensor.dim() not in needed or not tensor.numel()):
            raise UserError(f"{shards[0].path}: {name} has the shape {tuple(tensor.shape)}, which cannot be split")
        if name.endswith(SCALE) and needed and name.removesuffix(SCALE) not in shards[0].tensors:
            raise UserError(f"{shards[0].path} holds {name} but no {name.removesuffix(SCALE)}; copy the file again")


def _sizes(shards: Sequence[Shard], given: Mapping[str, int], default_heads: int | None) -> Sizes:
    """What the tensors say, which must be what is said about them; the number of heads may have to be said."""
    tensors, path, degree = shards[0].tensors, shards[0].path, len(shards)
    table = tensors[WORD_EMBEDDINGS]
    found: dict[str, int] = {"hidden_size": table.shape[1], "vocab_size": table.shape[0] * degree}
    layers = {layer_of(name) for name in tensors} - {None}
    found["num_layers"] = len(layers)
    if not layers or layers != set(range(len(layers))):
        gap = next((layer for layer in range(len(layers) + 1) if layer not in layers), 0)
        raise UserError(f"{path} lacks the tensors of layer {gap}")
    needed = in_layer(0, f"{MLP_IN}.weight")
    if needed not in tensors:
        raise UserError(f"{path} is no GLM: it lacks {needed}")
    found["inner_hidden_size"] = tensors[needed].shape[0] // 2 * degree  # GeGLU's two halves
    for name in ("num_layers", "hidden_size"):
        _compare(name, found[name], given, path)
    for name in ("vocab_size", "inner_hidden_size"):
        if name in given and given[name] != found[name]:
            if given[name] * degree % found[name] == 0 and given[name] > found[name]:
                parts = given[name] * degree // found[name]
                raise UserError(missing_shard(path.with_name(shard_name(degree))) + f" ({parts} belong together)")
            if given[name] < found[name] and given[name] * degree % found[name] == 0:
                parts = given[name] * degree // found[name]
                raise UserError(f"{path.parent} holds {degree} shards, but {parts} of their size are the model's "
                                f"{name} {given[name]}: move those away that are not of it")
            _compare(name, found[name], given, path)
    frequencies = tensors.get(in_layer(0, INVERSE_FREQUENCIES))
    if frequencies is not None and frequencies.numel() and found["hidden_size"] % (2 * frequencies.numel()) == 0:
        found["num_attention_heads"] = found["hidden_size"] // (2 * frequencies.numel())  # one for two of a head
        _compare("num_attention_heads", found["num_attention_heads"], given, path)
    elif "num_attention_heads" in given:
        found["num_attention_heads"] = given["num_attention_heads"]
    elif default_heads is not None:
        found["num_attention_heads"] = default_heads
    else:
        raise UserError(f"{path.parent.parent}: num_attention_heads is not in the files; add a model_config.json, name "
                        "a preset (--model NAME) or say --num-attention-heads N")
    return Sizes(**found)


def _compare(name: str, found: int, given: Mapping[str, int], path: Path) -> None:
    if given.get(name, found) != found:
        raise UserError(f"{path}: its tensors are of a model with {name} {found}, but {name} {given[name]} was said "
                        "(in model_config.json, by --model or by a flag)")


def _scheme(shards: Sequence[Shard], name: str, sizes: Sizes) -> Scheme:
    weight, scale, path = shards[0].tensors[name], shards[0].tensors[name + SCALE], shards[0].path
    columns = columns_of(name, sizes, len(shards))
    bits = 8 * weight.shape[1] / columns
    if weight.dtype != torch.int8 or bits not in (4, 8):
        raise UserError(f"{path}: {name} has a scale but is {_described(weight)}; a quantised weight of {columns} "
                        f"columns is int8 with {columns} columns (8 bits) or {columns / 2:g} (4 bits)")
    groups = scale.shape[1] if scale.dim() == 2 else 1
    if scale.shape[0] != weight.shape[0] or not groups or columns % groups:
        raise UserError(f"{path}: {name + SCALE} has the shape {tuple(scale.shape)}; a weight of {weight.shape[0]} "
                        f"rows and {columns} columns needs ({weight.shape[0]},) or ({weight.shape[0]}, groups)")
    return Scheme(int(bits), columns // groups if scale.dim() == 2 else None)


def _check_split(shards: Sequence[Shard], sizes: Sizes, schemes: Mapping[str, Scheme]) -> None:
    """Every tensor must be the part of the whole model that so many shards give it."""
    degree, path = len(shards), shards[0].path
    if len({scheme.bits for scheme in schemes.values()}) > 1:
        raise UserError(f"{path} holds weights of 4 and of 8 bits; only one of them in a checkpoint is served")
    tensors = shards[0].tensors
    for name in sorted(tensors, key=lambda name: cut_of(name) is not Cut.COLUMNS):  # these tell the number of shards
        tensor, cut = tensors[name], cut_of(name)
        if cut is Cut.WHOLE or name.endswith(SCALE):
            continue
        axis = 1 if cut is Cut.COLUMNS else 0
        size = tensor.shape[axis] * degree * (2 if axis == 1 and name in schemes and schemes[name].bits == 4 else 1)
        whole = axis_of(name, sizes)
        if size < whole and whole % size == 0 and cut is Cut.COLUMNS:
            raise UserError(missing_shard(path.with_name(shard_name(degree)))
                            + f" ({whole * degree // size} belong together)")
        if size != whole:
            raise UserError(f"{path}: {name} has the shape {tuple(tensor.shape)}; {degree} such parts are not the "
                            f"{whole} {'columns' if axis else 'rows'} of the whole; are all shards there, and of one "
                            "model?")
    heads = sizes.num_attention_heads
    if sizes.hidden_size % heads or heads % degree:
        raise UserError(f"{path}: num_attention_heads {heads} does not fit a hidden_size of {sizes.hidden_size} in "
                        f"{degree} shards")


def _differing(shards: Sequence[Shard]) -> list[str]:
    return [name for name, tensor in shards[0].tensors.items() if cut_of(name) is Cut.WHOLE
            and not all(same_bytes(tensor, shard.tensors[name]) for shard in shards[1:])]


def _described(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
