"""One rank's tensors out of a checkpoint that is split for another number of ranks.

Every rank maps all files and takes what is its own, so nothing has to be converted first. Rows of a single file can
stay in it; what is cut by columns, or comes from several files, is put together while it is converted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from glm.config import ModelConfig
from glm.shard import Shard
from glm.spec import Cut, axis_number, describe, slices_of


class Resplit(Shard):
    """A Shard of which no file exists. Its path is that of the first file; whole tensors are that file's, too."""

    def slices(self, name: str) -> list[Tensor]:
        return self.tensors.slices(name)


class _Tensors(Mapping[str, Tensor]):
    """Name -> tensor, which is put together anew each time that it is asked for."""

    def __init__(self, files: Sequence[Mapping[str, Tensor]], config: ModelConfig, degree: int, rank: int):
        self.files, self.config, self.degree, self.rank = files, config, degree, rank

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
        return [tensors[source].narrow(axis_number(name), start, stop - start) for source, start, stop in
                slices_of(name, self.config, len(tensors), self.degree, self.rank)]


def resplit(shards: Sequence[Shard], config: ModelConfig, degree: int, rank: int) -> Resplit:
    """The part of rank ``rank`` of ``degree``. shards: all files, compared with the model and not quantised."""
    return Resplit(shards[0].path, _Tensors([shard.tensors for shard in shards], config, degree, rank))
