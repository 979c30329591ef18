"""A checkpoint against its manifest, or by itself: what is missing, cut off, added or changed, by file and tensor."""

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from glm.checkpoint import (
    CONFIG_NAME,
    HUGGING_FACE_CONFIG,
    HUGGING_FACE_WEIGHTS,
    LATEST,
    MODULE,
    OF_MEGATRON,
    Checkpoint,
    FileIndex,
    Region,
    open_checkpoint,
    read_file,
    read_values,
    tensors_of,
)
from glm.config import ModelConfig
from glm.shard import MappedTensors
from glm.spec import WORD_EMBEDDINGS
from glm.tokenizers.opening import FILES as TOKENIZER_FILES
from runtime.errors import UserError
from runtime.hashing import BUFFER_BYTES, DEFAULT_HASH, HASHES, blocks_of, hash_file, in_threads, new_hash
from runtime.show import Progress
from tools.converting.blocks import one_torch_thread
from tools.converting.manifest import NAME as MANIFEST
from tools.converting.manifest import FileFacts, Manifest
from tools.converting.source import open_source, same_bytes

SHOWN = 5  # so many tensors of a file are named
# Files beside the iteration's folder, or beside Hugging Face's shards, that loading looks at.
BESIDE = (LATEST, CONFIG_NAME, *TOKENIZER_FILES, HUGGING_FACE_CONFIG, OF_MEGATRON,
          *(name for name in HUGGING_FACE_WEIGHTS if name.endswith(".json")))


class Report(NamedTuple):
    """problems: one line each; empty where everything is as it should be."""

    problems: list[str]
    files: int
    bytes: int


def against_manifest(folder: Path, manifest: Manifest) -> Report:
    """Every file of the manifest, and files that would be loaded with them but are not of it."""
    present = {name: folder / name for name in manifest.files if (folder / name).is_file()}
    total = sum(path.stat().st_size for path in present.values())
    with Progress(total, unit="B", title="Verifying") as progress:
        found = in_threads(lambda name: _read_problems(present[name], name, manifest.files[name], progress.advance),
                           list(present))
    problems = [f"{name} is missing{_tensors(facts)}" for name, facts in manifest.files.items() if name not in present]
    problems += [line for lines in found for line in lines]
    problems += [f"{name} was added: it is not in the manifest" for name in _added(folder, manifest.files)]
    return Report(problems, len(manifest.files), total)


def alone(folder: Path) -> Report:
    """What can be known without a manifest: all shards are there, fit one another, are as their own checksums say, and
    hold finite numbers only."""
    try:
        checkpoint = open_checkpoint(folder)
    except UserError as error:
        return Report([str(error)], 0, 0)
    paths = checkpoint.paths
    if missing := [path for path in paths if not path.is_file()]:
        return Report([f"{path.relative_to(folder).as_posix()} is missing" for path in missing], 0, 0)
    total = sum(path.stat().st_size for path in paths)
    with Progress(2 * total, unit="B", title="Verifying") as progress, one_torch_thread():
        found = in_threads(lambda path: _shard_problems(path, checkpoint, progress.advance), paths)
    problems = [line for lines in found for line in lines]
    if not problems:
        problems = _fit_problems(folder)
    return Report(problems, len(paths), total)


def make_manifest(folder: Path, kind: str) -> Manifest:
    """Of a checkpoint as it is now. Raises UserError where a shard cannot be read."""
    checkpoint = open_checkpoint(folder)
    paths = [*checkpoint.paths, *(folder / name for name in BESIDE if (folder / name).is_file())]
    with Progress(sum(path.stat().st_size for path in paths), unit="B", title="Hashing") as progress:
        facts = in_threads(lambda path: _facts(path, checkpoint, kind, progress.advance), paths)
    return Manifest({path.relative_to(folder).as_posix(): fact for path, fact in zip(paths, facts, strict=True)})


def _facts(path: Path, checkpoint: Checkpoint, kind: str, advance: Callable[[int], None]) -> FileFacts:
    if path.name in BESIDE:
        return FileFacts(path.stat().st_size, hash_file(path, kind, advance))
    index = read_file(path)
    _entries(index, checkpoint)  # refuses what is no checkpoint
    digest, found, structure = checksums(path, index.regions, kind, advance)
    regions = [region._replace(crc32=checksum) for region, checksum in zip(index.regions, found, strict=True)]
    return FileFacts(path.stat().st_size, digest, regions, structure)


def checksums(path: Path, regions: Sequence[Region], kind: str = DEFAULT_HASH,
              advance: Callable[[int], None] = lambda count: None) -> tuple[str, list[int], int]:
    """In one pass over a file: its hash, the CRC-32 of each region, and that of everything between them, in order.

    regions: by their places, which may lie beyond the file's end; nothing else of them is looked at.
    """
    digest, found, structure, place = new_hash(kind), [], 0, 0
    for region in regions:
        for start, size, is_region in ((place, region.start - place, False), (region.start, region.bytes, True)):
            checksum = 0 if is_region else structure
            for block in blocks_of(path, start, max(size, 0)):
                checksum = zlib.crc32(block, checksum)
                digest.update(block)
                advance(len(block))
            if is_region:
                found.append(checksum)
            else:
                structure = checksum
        place = region.start + region.bytes
    for block in blocks_of(path, place):
        structure = zlib.crc32(block, structure)
        digest.update(block)
        advance(len(block))
    return f"{kind}:{digest.hexdigest()}", found, structure


def crc32_of(path: Path, start: int, size: int, advance: Callable[[int], None]) -> int:
    checksum = 0
    for block in blocks_of(path, start, size):
        checksum = zlib.crc32(block, checksum)
        advance(len(block))
    return checksum


def _read_problems(path: Path, name: str, expected: FileFacts, advance: Callable[[int], None]) -> list[str]:
    try:
        return _file_problems(path, name, expected, advance)
    except OSError as error:  # a disk that fails, or no permission
        return [f"{name} cannot be read: {error.strerror}"]


def _file_problems(path: Path, name: str, expected: FileFacts, advance: Callable[[int], None]) -> list[str]:
    size, kind = path.stat().st_size, expected.hash.partition(":")[0]
    if kind not in HASHES:
        raise UserError(f"the manifest has a hash of the kind {kind!r}; allowed: {', '.join(HASHES)}")
    if size == expected.bytes and hash_file(path, kind, advance) == expected.hash:
        return []
    inside = [region for region in expected.regions if region.start + region.bytes <= size]
    _, found, structure = checksums(path, inside, kind)
    changed = [region.name for region, checksum in zip(inside, found, strict=True) if checksum != region.crc32]
    lines = []
    if size < expected.bytes:
        lines.append(f"{name} is truncated: {size} of {expected.bytes} bytes{_cut_off(expected.regions, size)}")
    elif size > expected.bytes:
        lines.append(f"{name} has {size} bytes, {size - expected.bytes} more than the {expected.bytes} it had")
    elif structure != expected.structure_crc32 and expected.structure_crc32 is not None:
        changed.append("structure (all that is no tensor: names, shapes, places)")
    if changed:
        lines.append(f"{name} is changed: {_listed(changed)}")
    return lines or [f"{name} is changed"]


def _cut_off(regions: Sequence[Region], size: int) -> str:
    beyond = [region for region in regions if region.start + region.bytes > size]
    if not beyond:
        return ""
    cut = [region.name for region in beyond if region.start < size]
    lost = [region.name for region in beyond if region.start >= size]
    parts = [f"{name} is cut off" for name in cut] + ([f"{_listed(lost)} missing"] if lost else [])
    return ": " + ", ".join(parts)


def _tensors(facts: FileFacts) -> str:
    return f", with {len(facts.regions)} tensors" if facts.regions else ""


def _entries(index: FileIndex, checkpoint: Checkpoint):
    """The tensors of one of a checkpoint's files."""
    return tensors_of(index, MODULE if checkpoint.weight_map is None else None)


def _added(folder: Path, known: Mapping[str, FileFacts]) -> list[str]:
    folders = {name.rpartition("/")[0] for name in known if "/" in name}
    names = [path.relative_to(folder).as_posix() for inner in sorted(folders) if (folder / inner).is_dir()
             for path in sorted((folder / inner).iterdir())]
    names += [name for name in dict.fromkeys((*BESIDE, *HUGGING_FACE_WEIGHTS)) if (folder / name).is_file()]
    return [name for name in names if name not in known and name != MANIFEST]


def _shard_problems(path: Path, checkpoint: Checkpoint, advance: Callable[[int], None]) -> list[str]:
    name = path.relative_to(checkpoint.folder).as_posix()
    try:
        index = read_file(path)
        parts = [*index.regions, *(part._replace(name=f"structure ({part.name})") for part in index.structure)]
        damaged = [part.name for part in sorted(parts, key=lambda part: part.start)
                   if part.crc32 and crc32_of(path, part.start, part.bytes, advance) != part.crc32]
        if damaged:
            return [f"{name} is changed: {_listed(damaged)}"]
        tensors = MappedTensors(_entries(index, checkpoint))
        wrong = [tensor for tensor, values in tensors.items() if not _is_finite(values, advance)]
    except UserError as error:
        return [str(error)]
    problems = [f"{name} holds NaN or infinity: {_listed(wrong)}"] if wrong else []
    unknown = [tensor for tensor in tensors if checkpoint.weight_map and checkpoint.weight_map.get(tensor) != path.name]
    return problems + ([f"{name} holds {_listed(unknown)}, which the index does not place there"] if unknown else [])


def _is_finite(tensor: torch.Tensor, advance: Callable[[int], None]) -> bool:
    flat, step = tensor.reshape(-1), BUFFER_BYTES
    for start in range(0, len(flat), step):
        block = flat[start : start + step]
        advance(block.numel() * block.element_size())
        if block.is_floating_point() and not torch.isfinite(block.double() if block.itemsize == 1 else block).all():
            return False
    return True


def _fit_problems(folder: Path) -> list[str]:
    try:
        given, where = read_values(folder)
        if given and (folder / CONFIG_NAME).is_file():
            ModelConfig.from_values(given, where)
        source = open_source(folder, given, heads_needed=False)
    except UserError as error:
        return [str(error)]
    problems = [f"{name} is not the same in all shards, but should be" for name in source.differing]
    tables = [(shard.path.name, shard.tensors[WORD_EMBEDDINGS]) for shard in source.shards]
    return problems + [f"{name} is a copy of {first}: no two shards hold the same words; copy it again"
                       for (first, one), (name, other) in itertools.combinations(tables, 2)
                       if same_bytes(one[:1], other[:1]) and same_bytes(one, other)]


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
