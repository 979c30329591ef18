"""Source and wish -> the tensors of every output file, as entries whose bytes come when they are written."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from glm.resplit import columns_in_one, joined_scale, joined_scheme
from glm.spec import SCALE, Cut, columns_of, cut_of, fault_of_degree, is_packed, slices_of
from quantization import fitting_group_sizes
from quantization.functional import Scheme
from runtime.errors import UserError
from runtime.show import counted
from tools.converting.blocks import Band, Slice, quantized_blocks, read_blocks
from tools.converting.source import Source
from tools.converting.torchfile import Block, Planned


class Wish(NamedTuple):
    """What the output is to be. bits, group_size: of the linears' weights; None: as they are."""

    degree: int
    bits: int | None = None
    group_size: int | None = None
    requantize: bool = False
    format: str = "sat"  # the layout of the folder (tools.converting.layouts)
    tokenizer: Path | None = None  # folder, or vocabulary file in it, of the tokenizer; None: the checkpoint's


class Plan(NamedTuple):
    """What is made of a source."""

    source: Source
    wish: Wish
    carried: Mapping[str, Scheme]  # how the quantised weights are quantised once they are cut and joined
    others: Mapping[str, object]  # what the first file holds beside its tensors


def make_plan(source: Source, wish: Wish) -> Plan:
    """Raises UserError, one line, where this source cannot be converted like this."""
    _check_wish(source, wish)
    return Plan(source, wish, {
        name: joined_scheme(name, scheme, _scales(source, name), source.sizes, wish.degree)
        for name, scheme in source.schemes.items()}, source.others)


def _check_wish(source: Source, wish: Wish) -> None:
    sizes, degree, bits = source.sizes, wish.degree, source.bits
    if degree < 1:
        raise UserError(f"--target-tp {degree}: must be at least 1")
    if fault := fault_of_degree(sizes, degree, "ranks"):
        raise UserError(f"--target-tp {degree}: {fault}")
    if wish.requantize and bits is None:
        raise UserError(f"--requantize: {source.folder} is not quantised; leave it away, --quantization-bit-width 8 or "
                        "4 alone quantises")
    if wish.group_size is not None and wish.bits is None and bits is None:
        raise UserError("--quantization-group-size says how weights are quantised; "
                        "--quantization-bit-width 8 or 4 is needed with it")
    if bits is not None and not wish.requantize:
        if wish.bits not in (None, bits):
            raise UserError(f"{source.folder} is quantised to {bits} bits already, but {wish.bits} were asked for; "
                            "convert from the unquantised checkpoint, or quantise the quantised weights again: "
                            "--requantize")
        if wish.group_size is not None:
            raise UserError(f"{source.folder} is quantised already, so --quantization-group-size {wish.group_size} has "
                            "nothing to quantise; convert from the unquantised checkpoint, or say --requantize")
    columns = {name: columns_of(name, source.sizes, degree) for name in source.shards[0].tensors if is_packed(name)}
    for name, count in columns.items():
        if (wish.bits or bits) == 4 and count % 2:
            raise UserError(f"--target-tp {degree}: {name} would have {count} columns on a rank, which would cut "
                            "a byte of two 4-bit weights in two; choose a degree that gives an even number")
        if wish.group_size is not None and count % wish.group_size:
            raise UserError(f"--quantization-group-size {wish.group_size} does not divide the {count} columns of "
                            f"{name} on {counted(degree, 'rank')}; allowed there: "
                            f"{fitting_group_sizes(columns.values())}")


def rank_content(plan: Plan, rank: int) -> dict[str, object]:
    """What output file ``rank`` holds, in the order of the source's tensors: entries, and what was beside 'module'."""
    source = plan.source
    module: dict[str, Planned] = {}
    for name in source.shards[0].tensors:
        if name.endswith(SCALE) and name.removesuffix(SCALE) in source.schemes:
            continue  # comes with its weight
        if is_packed(name):
            module |= _weight(plan, rank, name)
        else:
            module[name] = _plain(plan, rank, name)
    return {"module": module} | {key: _kept(value) for key, value in plan.others.items()}


def _target_scheme(plan: Plan, name: str) -> Scheme | None:
    """How the weight is quantised in the output; None: it is not."""
    source, wish = plan.source, plan.wish
    bits = wish.bits or source.bits
    if bits is None:
        return None
    if source.bits is None or wish.requantize:
        return Scheme(bits, wish.group_size)
    return plan.carried.get(name)


def _weight(plan: Plan, rank: int, name: str) -> Iterable[tuple[str, Planned]]:
    """The weight of a linear and, where it is quantised, its scale."""
    source, degree = plan.source, plan.wish.degree
    current, target = source.schemes.get(name), _target_scheme(plan, name)
    if target is None or (current is None and source.bits is not None):
        return ((name, _plain(plan, rank, name)),)
    if plan.carried.get(name) == target:
        return (name, _plain(plan, rank, name)), (name + SCALE, _scale(plan, rank, name))
    bands = _bands(source, degree, rank, name)
    rows, columns = _rows(bands), columns_of(name, source.sizes, degree)
    kept: list[Tensor] = []
    scale_of = (lambda: _whole(_scale(plan, rank, name))) if current is not None else None
    weight = Planned(torch.int8, (rows, columns * target.bits // 8),
                   lambda: quantized_blocks(bands, target, kept.append, current, scale_of))
    groups = () if target.group_size is None else (columns // target.group_size,)
    return (name, weight), (name + SCALE, Planned(torch.float16, (rows, *groups), lambda: (Block(kept.pop()),)))


def _plain(plan: Plan, rank: int, name: str) -> Planned:
    """A tensor that is cut and joined and otherwise left as it is."""
    first, bands = plan.source.tensor(0, name), _bands(plan.source, plan.wish.degree, rank, name)
    if not first.dim():
        return _kept(first)
    cut = bands[0][0].columns is not None
    columns = (sum(piece.columns[1] - piece.columns[0] for piece in bands[0]),) if cut else first.shape[1:]
    return Planned(first.dtype, (_rows(bands), *columns), lambda: read_blocks(bands))


def _scale(plan: Plan, rank: int, name: str) -> Planned:
    """The scale of a weight that stays quantised as it is."""
    if cut_of(name) is not Cut.COLUMNS:
        return _plain(plan, rank, name + SCALE)
    source, degree, target = plan.source, plan.wish.degree, plan.carried[name]
    scales = _scales(source, name)
    groups = (columns_of(name, source.sizes, degree) // target.group_size,) if target.group_size else ()
    return Planned(scales[0].dtype, (scales[0].shape[0], *groups), lambda: (Block(joined_scale(
        name, source.schemes[name], target, scales, source.sizes, degree, rank)),))


def _scales(source: Source, name: str) -> list[Tensor]:
    return [source.tensor(rank, name + SCALE) for rank in range(source.degree)]


def _bands(source: Source, degree: int, rank: int, name: str) -> list[Band]:
    cut, tensors = cut_of(name), [shard.tensors[name] for shard in source.shards]
    if cut is Cut.WHOLE:
        rows = tensors[0].shape[0] if tensors[0].dim() else 1
        return [[Slice(tensors[0], (0, rows))]]
    parts = slices_of(name, source.sizes, source.degree, degree, rank)
    if cut is Cut.COLUMNS:
        packed = columns_in_one(source.schemes.get(name))
        rows = (0, tensors[0].shape[0])
        return [[Slice(tensors[part], rows, (start // packed, stop // packed)) for part, start, stop in parts]]
    return [[Slice(tensors[part], (start, stop))] for part, start, stop in parts]


def _rows(bands: list[Band]) -> int:
    return sum(band[0].rows[1] - band[0].rows[0] for band in bands)


def _whole(entry: Planned) -> Tensor:
    """A small entry in memory."""
    return torch.cat([block.tensor for block in entry.blocks()]).reshape(entry.shape)


def _kept(value: object):
    """What is neither cut nor joined: tensors as entries, in dictionaries too, everything else as it is."""
    if isinstance(value, Tensor):
        return Planned(value.dtype, tuple(value.shape), lambda: (Block(value.contiguous()),))
    if isinstance(value, Mapping):
        return {key: _kept(inner) for key, inner in value.items()}
    return value
