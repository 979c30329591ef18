"""One rank's tensors out of a checkpoint that is split for another number of ranks.

Every rank maps all files and takes what is its own, so nothing has to be converted first. Rows of a single file can
stay in it; what is cut by columns, or comes from several files, is put together while it is converted.

A quantised weight is cut and joined as it is. Where it is cut by columns, neighbouring columns of the result may have
scales from several files: then these stand side by side, one for each group of columns, small enough that every cut
lies between two groups.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from glm.config import ModelConfig
from glm.shard import Shard
from glm.spec import SCALE, Cut, axis_number, axis_of, columns_of, cut_of, describe, slices_of
from quantization.functional import Scheme


class Resplit(Shard):
    """A Shard of which no file exists. Its path is that of the first file; whole tensors are that file's, too."""

    def slices(self, name: str) -> list[Tensor]:
        return self.tensors.slices(name)


class _Tensors(Mapping[str, Tensor]):
    """Name -> tensor, which is put together anew each time that it is asked for."""

    def __init__(self, files: Sequence[Mapping[str, Tensor]], config: ModelConfig, degree: int, rank: int,
                 schemes: Mapping[str, Scheme]):
        self.files, self.config, self.degree, self.rank, self.schemes = files, config, degree, rank, schemes

    def __iter__(self) -> Iterator[str]:
        return iter(self.files[0])

    def __len__(self) -> int:
        return len(self.files[0])

    def __contains__(self, name: object) -> bool:
        return name in self.files[0]

    def __getitem__(self, name: str) -> Tensor:
        found = self.slices(name)
        return found[0] if len(found) == 1 else torch.cat(found, dim=axis_number(name))

    def slices(self, name: str) -> list[Tensor]:
        line, tensors = describe(name, self.config), [file[name] for file in self.files]
        if line is None or line.cut is Cut.WHOLE:
            return tensors[:1]
        weight = name.removesuffix(SCALE)
        if weight != name and line.cut is Cut.COLUMNS:
            scheme = joined_scheme(weight, self.schemes[weight], tensors, self.config, self.degree)
            return [joined_scale(weight, self.schemes[weight], scheme, tensors, self.config, self.degree, self.rank)]
        in_one = columns_in_one(self.schemes.get(name)) if line.cut is Cut.COLUMNS else 1
        return [tensors[source].narrow(axis_number(weight), start // in_one, (stop - start) // in_one)
                for source, start, stop in slices_of(weight, self.config, len(tensors), self.degree, self.rank)]


def resplit(shards: Sequence[Shard], config: ModelConfig, degree: int, rank: int,
            schemes: Mapping[str, Scheme] | None = None) -> Resplit:
    """The part of rank ``rank`` of ``degree``. shards: all files, compared with the model. schemes: of what these hold
    quantised; no cut may go through a byte (uncut)."""
    tensors = _Tensors([shard.tensors for shard in shards], config, degree, rank, schemes or {})
    return Resplit(shards[0].path, tensors)


def columns_in_one(scheme: Scheme | None) -> int:
    """So many columns of a weight share a number of the file."""
    return 2 if scheme is not None and scheme.bits == 4 else 1


def uncut(schemes: Mapping[str, Scheme], config: ModelConfig, degree: int) -> str | None:
    """A weight of which a split for ``degree`` ranks would cut a byte of two columns in two; None: there is none."""
    return next((name for name, scheme in schemes.items() if columns_of(name, config, degree) % columns_in_one(scheme)),
                None)


def joined_scheme(name: str, scheme: Scheme, scales: Sequence[Tensor], config, degree: int) -> Scheme:
    """How a quantised weight is quantised once it is cut and joined exactly: the largest equal groups of columns that
    no cut divides.

    scales: of all files. config: any with the model's sizes. Neighbours with equal scales are one group: a weight that
    was cut and is joined again has the scale that it had.
    """
    if cut_of(name) is not Cut.COLUMNS or degree == len(scales):
        return scheme
    columns = columns_of(name, config, degree)
    old_size = scheme.group_size or columns_of(name, config, len(scales))
    size = math.gcd(old_size, columns)
    grouped = [scale.reshape(scale.shape[0], -1) for scale in scales]
    places = torch.arange(0, axis_of(name, config), size) // old_size  # the old group of each new one
    larger = [candidate for candidate in range(2 * size, columns + 1, size) if columns % candidate == 0]
    for rows in (1, scales[0].shape[0]):  # the first row rules out most
        if larger:
            side_by_side = torch.cat([scale[:rows] for scale in grouped], dim=1)[:, places]
            larger = [candidate for candidate in larger if _are_equal(side_by_side, candidate // size)]
    size = max(larger, default=size)
    return Scheme(scheme.bits, None if size == columns else size)


def joined_scale(name: str, scheme: Scheme, joined: Scheme, scales: Sequence[Tensor], config, degree: int,
                 rank: int) -> Tensor:
    """The scale of a weight that is cut by columns, (rows,) or (rows, groups), on one rank. joined: joined_scheme."""
    columns, own = columns_of(name, config, degree), columns_of(name, config, len(scales))
    step, old_step = joined.group_size or columns, scheme.group_size or own
    begins = range(rank * columns, (rank + 1) * columns, step)
    side_by_side = torch.stack([scales[begin // own].reshape(len(scales[0]), -1)[:, begin % own // old_step]
                                for begin in begins], dim=1)
    return side_by_side if joined.group_size else side_by_side[:, 0].contiguous()


def _are_equal(scales: Tensor, count: int) -> bool:
    """Whether every ``count`` neighbours in a row are the same."""
    groups = scales.view(scales.shape[0], -1, count)
    return bool((groups == groups[..., :1]).all())
