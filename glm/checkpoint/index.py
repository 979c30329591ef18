"""One index of a checkpoint's files, whatever their format: name -> where the tensor lies. Only headers are read.

    index = open_checkpoint(folder).index
    index.parts[rank][WORD_EMBEDDINGS]   Entry(file, offset, dtype, shape, ...)

A format of files is a module of FORMATS: is_one(first bytes) says whether a file is of it, read(path) gives its index.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from glm.checkpoint import safetensors, torch_file
from glm.checkpoint.entry import Entry, FileIndex
from glm.checkpoint.folder import (
    CONFIG_NAME,
    CONVERTING,
    checkpoint_folder,
    foreign_file,
    missing_shard,
    rank_files,
    unfinished,
)
from glm.checkpoint.pickles import Refused
from glm.spec import WORD_EMBEDDINGS
from runtime.errors import UserError
from runtime.reading import LARGE, START, NoSuchFile, open_file, read_json, recognised

FORMATS = (torch_file, safetensors)
MODULE = "module"  # under which files of tensor-parallel ranks hold their tensors
HUGGING_FACE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin",
                        "pytorch_model.bin.index.json")  # the first that is there is taken
HUGGING_FACE_CONFIG = "config.json"
SAMPLE = 4096  # bytes of each tensor by which files without checksums are told apart


class Index(NamedTuple):
    """Where a checkpoint's tensors lie."""

    parts: tuple[Mapping[str, Entry], ...]  # what each tensor-parallel rank holds, by the names in its files
    files: tuple[FileIndex, ...]

    @property
    def identity(self) -> str:
        """Tells checkpoints of unlike contents apart."""
        return "".join(map(identity_of, self.files))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder of any layout. Raises UserError for a file that is damaged when its index is asked for."""

    folder: Path
    paths: tuple[Path, ...]  # its files: of the ranks in their order; or those between which the tensors are divided
    config_path: Path | None  # the model's shapes, where a file has them
    weight_map: Mapping[str, str] | None = None  # name -> file; None: each file is a rank's part

    @cached_property
    def index(self) -> Index:
        files = tuple(map(read_file, self.paths))
        if self.weight_map is None:
            return Index(tuple(tensors_of(file, MODULE) for file in files), files)
        return Index((_joined(self.folder, files, self.weight_map),), files)

    @property
    def parts(self) -> int:
        """Of how many tensor-parallel ranks its files are."""
        return len(self.paths) if self.weight_map is None else 1

    @property
    def iteration(self) -> str:
        """The name of the folder of the files; Hugging Face's have none."""
        return self.paths[0].parent.name if self.weight_map is None else ""

    def part(self, rank: int) -> Mapping[str, Entry]:
        """What a rank holds, of whose files alone the headers are read."""
        if self.weight_map is not None:
            return self.index.parts[0]
        return tensors_of(read_file(self.paths[rank]), MODULE)

    @property
    def kind(self) -> str:
        """"huggingface"; of those that have a file a rank, "sat" or "megatron" by the name of the word embeddings."""
        if self.weight_map is not None:
            return "huggingface"
        return "sat" if WORD_EMBEDDINGS in self.index.parts[0] else "megatron"


def open_checkpoint(folder: str | os.PathLike) -> Checkpoint:
    """The checkpoint that lies in a folder: SAT's, Megatron's or Hugging Face's. No tensor is read.

    Raises UserError where there is none, or a file is missing.
    """
    folder = checkpoint_folder(folder)
    config = next((folder / name for name in (CONFIG_NAME, HUGGING_FACE_CONFIG) if (folder / name).is_file()), None)
    name = next((name for name in HUGGING_FACE_WEIGHTS if (folder / name).is_file()), None)
    if name is None and (found := foreign_file(folder)):
        if (folder / CONVERTING).is_dir():
            raise UserError(unfinished(folder))
        raise UserError(f"{folder} is a checkpoint of Hugging Face's (it holds {found}), but has none of "
                        f"{', '.join(HUGGING_FACE_WEIGHTS)}; copy it again")
    if name is None:
        return Checkpoint(folder, tuple(rank_files(folder)), config)
    if not name.endswith(".json"):
        return Checkpoint(folder, (folder / name,), config, {})
    weight_map = _weight_map(folder / name)
    return Checkpoint(folder, tuple(folder / file for file in dict.fromkeys(weight_map.values())), config, weight_map)


def _weight_map(path: Path) -> dict[str, str]:
    content = read_json(path, LARGE)
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise UserError(f"{path}: must hold an object 'weight_map', from the names of the tensors to those of files")
    for file in found.values():
        if file in ("", ".", "..") or Path(file).name != file:
            raise UserError(f"{path}: names {json.dumps(file[:80])}, which is no file of its folder")
    return found


def _joined(folder: Path, files: tuple[FileIndex, ...], weight_map: Mapping[str, str]) -> dict[str, Entry]:
    """Tensors of several files, each from the file that the map says; of a single file without a map all."""
    by_name = {file.path.name: tensors_of(file) for file in files}
    if not weight_map:
        return next(iter(by_name.values()))
    for name, file in weight_map.items():
        if name not in by_name[file]:
            raise UserError(f"{folder / file} lacks {name[:80]}, which the index says to be there; copy the file again")
    return {name: by_name[file][name] for name, file in weight_map.items()}


def read_file(path: Path) -> FileIndex:
    """Raises UserError for a file that is missing, cut off, damaged, of no known format, or that asks for more than
    tensors."""
    try:
        with open_file(path, f"cannot read {path}") as file:
            start = file.read(START)
    except NoSuchFile:
        raise UserError(missing_shard(path)) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    form = next((form for form in FORMATS if form.is_one(start)), None)
    if form is None:
        kind = recognised(start) or "no checkpoint: it was not written by torch.save; nothing in it was run"
        raise UserError(f"{path} ({path.stat().st_size} bytes) is {kind}")
    try:
        return form.read(path)
    except UserError:
        raise
    except Refused as refused:
        raise UserError(f"{path} holds more than tensors ({refused}): refused, none of it was run") from None
    except Exception:  # damage can end in any of them
        raise UserError(f"{path} ({path.stat().st_size} bytes) is truncated or damaged: copy it again from where the "
                        "checkpoint came from") from None


def tensors_of(file: FileIndex, key: str | None = None) -> Mapping[str, Entry]:
    """The tensors that a file holds under a key, or as a whole. Raises UserError where anything else is there."""
    path, content = file.path, file.content
    if not isinstance(content, dict) or (key is not None and not isinstance(content.get(key), dict)):
        found = ", ".join(map(_named, list(content)[:5])) or "no key" if isinstance(content, dict) else _kind(content)
        raise UserError(f"{path} is no SAT checkpoint: it must hold a dictionary with the key {key!r}, found {found}"
                        if key is not None else f"{path} is no checkpoint: it must hold a dictionary, found {found}")
    tensors = content if key is None else content[key]
    for name, entry in tensors.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: a tensor's name is no text but {_named(name)}")
        if entry is torch_file.NOT_DENSE:
            raise UserError(f"{path}: {name} is no dense tensor of numbers; save the checkpoint with plain ones")
        if not isinstance(entry, Entry):
            raise UserError(f"{path}: {name} is no tensor but {_kind(entry)}")
    return tensors


def identity_of(file: FileIndex) -> str:
    """What the file says of its contents, or its size and some bytes from the middle of every tensor: weights of unlike
    models differ in nearly all of these."""
    if file.identity:
        return file.identity
    digest = hashlib.sha256()
    with file.path.open("rb") as opened:
        for region in file.regions:
            opened.seek(region.start + max(0, region.bytes - SAMPLE) // 2)
            digest.update(f"{region.name} {region.bytes} ".encode() + opened.read(min(region.bytes, SAMPLE)))
    return f"{file.path.stat().st_size} {digest.hexdigest()}\n"


def _named(key: object) -> str:
    """A key of a file for a message: whatever else than text it is, it may be endless."""
    return key[:80] if isinstance(key, str) else f"a key of the type {type(key).__name__}"


def _kind(value: object) -> str:
    return value.kind if isinstance(value, torch_file.Foreign) else type(value).__name__
