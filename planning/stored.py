"""What a checkpoint holds, found out from the headers of its files, without torch and without running anything."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from glm.checkpoint import Entry, open_checkpoint
from glm.config import ModelConfig
from glm.families import FAMILIES
from glm.spec import SCALE, columns_of, is_packed
from kernels import CACHE_LINE
from planning.shapes import Format, Setup, weights
from runtime.errors import UserError

PRECISIONS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
LEAST_SHARE = 0.95  # of what the shape takes that a file with all of it has


class Stored(NamedTuple):
    """A checkpoint."""

    format: Format  # how it holds the weights
    parts: int
    bytes: int  # of the largest part
    is_mapped: bool  # whether weights can be used where a mapped file holds them
    first: Path


def look(folder: str | os.PathLike, config: ModelConfig) -> Stored:
    """Raises UserError where there is no checkpoint. A file that tells nothing counts as float16, as GLM-130B's are."""
    checkpoint = open_checkpoint(folder)
    sizes, parts, first = [path.stat().st_size for path in checkpoint.paths], checkpoint.parts, checkpoint.paths[0]
    size = max(sizes) if parts == len(sizes) else sum(sizes)
    try:
        own_name = FAMILIES[config.family].own_name
        entries = {own_name(name): entry for name, entry in checkpoint.part(0).items()}
        found = _format_of(entries, config, parts)
    except (UserError, ArithmeticError, LookupError):  # what is wrong is said when the file is loaded
        return Stored(Format("fp16"), parts, size, False, first)
    is_mapped = all(entry.offset % CACHE_LINE == 0 for entry in entries.values())
    return Stored(found, parts, size, is_mapped, first)


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


def _format_of(entries: Mapping[str, Entry], config: ModelConfig, parts: int) -> Format:
    """How a part holds the weights, by the tensors that it has."""
    sizes = Counter()
    for entry in entries.values():
        sizes[PRECISIONS.get(entry.dtype)] += entry.bytes
    del sizes[None]
    precision = sizes.most_common(1)[0][0] if sizes else "fp16"
    for name, scale in entries.items():
        weight = entries.get(name.removesuffix(SCALE))
        if name.endswith(SCALE) and weight is not None and is_packed(name.removesuffix(SCALE)):
            columns = columns_of(name.removesuffix(SCALE), config, parts)
            group = columns // scale.shape[1] if len(scale.shape) == 2 else None
            return Format(precision, 4 if 2 * weight.shape[1] == columns else 8, group)
    return Format(precision)
