"""What belongs to a checkpoint, file by file, as JSON beside `latest`: sizes, hashes, and where each tensor lies.

    {"format": "glm-checkpoint-manifest 1",
     "made_by": {...} or null,                                 the conversion, where it was one
     "files": {"49300/mp_rank_00_model_states.pt": {
                   "bytes": 123, "hash": "xxh3_128:...",       of the whole file, as `xxhsum -H2` prints it
                   "structure": "9b3c11a0",                    CRC-32 of all that is no tensor
                   "tensors": {NAME: "start bytes crc32"}}},   in bytes; the zip archive holds the same checksums
     "sha256": "..."}                                          of this text without this line's value

The hash says whether a file is what it was, the checksums say where it is not.
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from glm.checkpoint import Region
from runtime.errors import UserError
from runtime.files import replacing
from runtime.reading import LARGE, NoSuchFile, read_text

NAME = "manifest.json"
FORMAT = "glm-checkpoint-manifest 1"


class FileFacts(NamedTuple):
    """hash: "kind:digits". structure_crc32: None where the file is not divided into regions."""

    bytes: int
    hash: str
    regions: Sequence[Region] = ()
    structure_crc32: int | None = None


class Manifest(NamedTuple):
    """files: by their paths relative to the folder, with slashes."""

    files: Mapping[str, FileFacts]
    made_by: Mapping[str, object] | None = None


def facts_to_json(facts: FileFacts) -> dict[str, object]:
    value: dict[str, object] = {"bytes": facts.bytes, "hash": facts.hash}
    if facts.structure_crc32 is not None:
        value["structure"] = f"{facts.structure_crc32:08x}"
        value["tensors"] = {region.name: f"{region.start} {region.bytes} {region.crc32:08x}"
                            for region in facts.regions}
    return value


def facts_from_json(value: Mapping) -> FileFacts:
    """Raises ValueError, KeyError, TypeError or AttributeError for what facts_to_json does not write."""
    regions = []
    for name, text in value.get("tensors", {}).items():
        start, size, checksum = text.split(" ")
        regions.append(Region(name, int(start), int(size), int(checksum, 16)))
    ends = [(0, 0), *((region.start, region.start + region.bytes) for region in regions)]
    if any(start < end or size < start for (_, end), (start, size) in itertools.pairwise(ends)):
        raise ValueError("regions overlap")  # a file would be read again and again
    structure = int(value["structure"], 16) if "structure" in value else None
    return FileFacts(int(value["bytes"]), str(value["hash"]), regions, structure)


def write_manifest(path: Path, manifest: Manifest) -> None:
    with replacing(path) as temporary:
        temporary.write_text(_text(manifest), encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Raises UserError for a file that is missing, no manifest, or not as it was written."""
    try:
        text = read_text(path, LARGE, f"manifest {path}")
    except NoSuchFile:
        raise UserError(f"no manifest {path}; make one of a checkpoint that is known to be good: "
                        f"python tools/verify_checkpoint.py {path.parent} --write-manifest") from None
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise UserError(f"{path} has the format {content['format']!r}; allowed: {FORMAT!r}")
        manifest = Manifest({name: facts_from_json(value) for name, value in content["files"].items()},
                            content["made_by"])
        if outside := [name for name in manifest.files if not _is_inside(name)]:
            raise UserError(f"manifest {path} names {outside[0][:80]!r}, which is no file of its folder")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"manifest {path} is damaged or no manifest: copy it again, or make a new one of a checkpoint "
                        "that is known to be good (--write-manifest)") from None
    if text != _text(manifest):
        raise UserError(f"manifest {path} is not as it was written: copy it again, or make a new one of a checkpoint "
                        "that is known to be good (--write-manifest)")
    return manifest


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _text(manifest: Manifest) -> str:
    content = {"format": FORMAT, "made_by": manifest.made_by,
               "files": {name: facts_to_json(facts) for name, facts in manifest.files.items()}, "sha256": ""}
    content["sha256"] = hashlib.sha256(_dump(content).encode()).hexdigest()
    return _dump(content)


def _dump(content: Mapping) -> str:
    return json.dumps(content, indent=1, ensure_ascii=True) + "\n"
