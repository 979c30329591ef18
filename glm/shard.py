"""Tensors of a checkpoint's files in memory maps of these, and how files are written."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch

from glm.checkpoint import torch_file
from glm.checkpoint.entry import SIZES, Entry
from glm.checkpoint.folder import CONFIG_NAME, LATEST, shard_name
from glm.checkpoint.index import MODULE, Checkpoint, read_file, tensors_of
from glm.config import ModelConfig
from runtime.errors import UserError
from runtime.files import replacing, write_torch


class Shard(NamedTuple):
    """One rank's part of a checkpoint: a file, not read yet."""

    path: Path
    tensors: Mapping[str, torch.Tensor]
    entries: Mapping[str, Entry] = MappingProxyType({})  # where the tensors lie in the file; of a Resplit nowhere

    def slices(self, name: str) -> list[torch.Tensor]:
        """What makes up a tensor, in order: itself, but for a part that is put together (Resplit)."""
        return [self.tensors[name]]

    @property
    def others(self) -> dict[str, object]:
        """What the file holds beside its tensors."""
        try:
            return torch_file.others(self.path, MODULE)
        except Exception as error:
            raise UserError(f"{self.path}: what it holds beside its tensors cannot be read ({type(error).__name__}): "
                            "copy it again, or leave that away") from None


class MappedTensors(Mapping[str, torch.Tensor]):
    """Name -> tensor in a memory map of its file. Nothing is read before its numbers are used, and writing to a tensor
    does not change the file. Numbers that begin at no multiple of their size are copied instead."""

    def __init__(self, entries: Mapping[str, Entry]):
        """Raises UserError where a file cannot be mapped."""
        self.entries = entries
        mapped = {path: _mapped(path) for path in {entry.file for entry in entries.values()}}
        self._maps = {path: memory for path, (memory, _) in mapped.items()}
        self.inodes = {path: inode for path, (_, inode) in mapped.items()}  # of the files that are mapped

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor's numbers lie in one of the maps."""
        begins = {torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr(): len(memory)
                  for memory in self._maps.values()}
        return any(begin <= tensor.data_ptr() < begin + size for begin, size in begins.items())

    def __getitem__(self, name: str) -> torch.Tensor:
        return tensor_at(self._maps[self.entries[name].file], self.entries[name])


def tensor_at(memory: mmap.mmap, entry: Entry) -> torch.Tensor:
    """An entry's tensor in the map of its file."""
    dtype, size = getattr(torch, entry.dtype), entry.span
    if not size:
        return torch.empty(entry.shape, dtype=dtype)
    if entry.offset + size > len(memory):
        raise UserError(f"{entry.file} was cut short while it was read: copy it again from where the checkpoint came "
                        "from")
    if entry.offset % SIZES[entry.dtype]:
        numbers = torch.frombuffer(bytearray(memory[entry.offset:entry.offset + size]), dtype=dtype)
    else:
        numbers = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=entry.offset).view(dtype)
    return numbers.view(entry.shape) if entry.stride is None else numbers.as_strided(entry.shape, entry.stride)


def _mapped(path: Path) -> tuple[mmap.mmap, int]:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), os.fstat(file.fileno()).st_ino
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise UserError(f"{path} ({path.stat().st_size} bytes): no memory to map it; a limit on this process's "
                            "memory is too low (ulimit -v, ulimit -d)") from None
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None


def read_part(checkpoint: Checkpoint, rank: int, own_name: Callable[[str], str]) -> Shard:
    """One rank's part of a checkpoint of any layout, by our names (glm.families), not read yet."""
    entries = {own_name(name): entry for name, entry in checkpoint.part(rank).items()}
    path = checkpoint.folder if len(checkpoint.paths) > checkpoint.parts else checkpoint.paths[rank]
    return Shard(path, MappedTensors(entries), entries)


def read_shard(path: Path) -> Shard:
    """The tensors of one rank's file, mapped from disk and not read yet. No code in the file is ever run.

    Raises UserError for a file that is missing, cut off, no checkpoint, or that holds more than tensors.
    """
    entries = tensors_of(read_file(path), MODULE)
    return Shard(path, MappedTensors(entries), entries)


def save_shard(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write one file so that, whenever the process dies, it is there as a whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # torch.save writes a tensor's whole storage: a view would bring what it was cut from
    state = {name: tensor.detach().clone() if _is_view(tensor) else tensor.detach() for name, tensor in state.items()}
    write_torch(path, {"module": state})


def save_index(folder: str | os.PathLike, iteration: int | str, config: ModelConfig) -> None:
    """Write model_config.json and, last, ``latest``: call it once all shards of the iteration are written."""
    folder = Path(folder)
    with replacing(folder / CONFIG_NAME) as temporary:
        config.save(temporary)
    with replacing(folder / LATEST) as temporary:
        temporary.write_text(str(iteration), encoding="utf-8")


def save_checkpoint(folder: str | os.PathLike, iteration: int | str, state: Mapping[str, torch.Tensor],
                    config: ModelConfig, rank: int = 0, barrier: Callable[[], None] | None = None) -> None:
    """Write this rank's part of a checkpoint; every rank calls it.

    barrier: called with no arguments when this rank's shard is written, so that ``latest``, which the first rank
    writes last, never points to a checkpoint of which a part is missing. Not needed with one rank.
    """
    save_shard(Path(folder) / str(iteration) / shard_name(rank), state)
    if barrier is not None:
        barrier()
    if rank == 0:
        save_index(folder, iteration, config)


def _is_view(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
