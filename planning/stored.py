"""What a checkpoint holds, found out from its files' sizes and names, without torch and without running anything."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from glm.checkpoint import find_shards
from glm.config import ModelConfig
from planning.shapes import Format, Setup, weights
from quantization import GROUP_SIZES
from runtime.errors import UserError

_STORAGE = re.compile(rb"ctorch\n(\w+)Storage\n")
_PRECISIONS = {"Half": "fp16", "BFloat16": "bf16", "Float": "fp32"}
_PACKED, _SCALE = "Char", b"weight_scale"
LEAST_SHARE = 0.95  # of what the shape takes that a file with all of it has
MOST_PICKLE = 64 << 20  # bytes; GLM-130B's has far fewer


class Stored(NamedTuple):
    """A checkpoint: how it holds the weights, in how many parts, bytes of the largest part, and whether it can be
    mapped (torch has written zip archives since 1.6)."""

    format: Format
    parts: int
    bytes: int
    is_mapped: bool
    first: Path


def look(folder: str | os.PathLike, config: ModelConfig) -> Stored:
    """Raises UserError where there is no checkpoint. A file that tells nothing counts as float16, as GLM-130B's are."""
    paths = find_shards(folder)
    size = max(path.stat().st_size for path in paths)
    kinds, is_packed, is_mapped = _content(paths[0])
    precision = next((kind for kind in ("fp32", "bf16") if kind in kinds), "fp16")
    found = Format(precision)
    if is_packed:
        choices = [Format(precision, bits, group) for bits in (8, 4) for group in (None, *GROUP_SIZES)]
        found = min(choices, key=lambda choice: abs(part_bytes(config, choice, len(paths)) - size))
    return Stored(found, len(paths), size, is_mapped, paths[0])


def require_own_model(found: Stored, config: ModelConfig) -> None:
    """Raises UserError where a whole file cannot hold a model of this shape, however it is written: what makes a run
    of that model fit is then of no use. A damaged file is left to the loader."""
    needed = part_bytes(config, Format("fp16", 4 if found.format.bits else None), found.parts)
    if found.is_mapped and found.bytes < LEAST_SHARE * needed:
        raise UserError(f"{found.first} has {found.bytes / 1e9:.3g} GB, where a model of this shape "
                        f"({config.num_layers} layers, hidden size {config.hidden_size}) has {needed / 1e9:.3g} GB: "
                        "the checkpoint is another model's; leave out --model and the flags of the shape, or name "
                        "the model's own checkpoint with --load")


def part_bytes(config: ModelConfig, held: Format, parts: int) -> int:
    """Of one rank's weights in this format."""
    return sum(map(held.bytes, weights(Setup(config, held, degree=parts))))


def _content(path: Path) -> tuple[set[str], bool, bool]:
    """Precisions of a file's tensors, whether some are packed, and whether it is a zip archive that can be mapped."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = next(record for record in archive.infolist() if record.filename.endswith("data.pkl"))
            if record.file_size > MOST_PICKLE:
                return set(), False, True
            data = archive.read(record)
    except Exception:  # damage can end in any of them, and what is wrong is said when the file is loaded
        return set(), False, False
    names = {match.decode() for match in _STORAGE.findall(data)}
    return {_PRECISIONS[name] for name in names & _PRECISIONS.keys()}, _PACKED in names and _SCALE in data, True
