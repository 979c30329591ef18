"""A checkpoint with the products of LoRA added to its weights: same layout and names, no adapter any more.

Sums are made and kept in float32: 16 bits would round away part of what was learned. Files are read and written one
after another, so that memory holds one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from glm import spec
from glm.adapters.files import Adapter, base_of, check_base, put_on, read_adapter, write_safetensors
from glm.adapters.lora import product
from glm.checkpoint import Checkpoint, open_checkpoint, read_config
from glm.checkpoint.safetensors import is_one, metadata_of
from glm.config import ModelConfig
from glm.families import FAMILIES
from glm.inputs import position_ids
from glm.loading import load_without_tokenizer
from glm.options import ModelOptions
from glm.shard import MappedTensors
from runtime.errors import UserError
from runtime.files import write_torch

WORK = ".merging"  # behind the name of the result, until it is whole
PROBE = 32  # tokens of the text whose logits are compared


def merge(options: ModelOptions, path: Path, save: Path, alpha: float | None = None, layout: str | None = None,
          dtype: torch.dtype | None = None) -> float:
    """Write `save` -> the largest difference of a logit of the adapted base and of what was written, float32 both.

    dtype: of all written weights; None: the sums are float32, all else is as in the base. UserError, with nothing
    written, for an adapter that does not fit, a base that is quantised, and a folder that holds something already.
    """
    config = read_config(options.path, options.model, **(options.shape or {}))
    checkpoint = open_checkpoint(options.path)
    adapter = read_adapter(path, config.family, alpha, layout)
    _check(checkpoint, adapter, save, config)
    products = {name: product(config, adapter.lora, name, str(path)) for name in adapter.lora.pairs}
    if wrong := [name for name, added in products.items() if not bool(added.isfinite().all())]:
        raise UserError(f"{path}: what it adds to {wrong[0]} holds NaN or infinity: its training diverged, or it is "
                        "damaged")
    work = save.with_name(save.name + WORK)
    shutil.rmtree(work, ignore_errors=True)
    try:
        _copy_others(checkpoint, work)
        for number, file in enumerate(checkpoint.paths):
            rank = number if checkpoint.weight_map is None else 0
            _write(checkpoint, file, rank, work / file.relative_to(checkpoint.folder), products, config, dtype)
        deviation = _deviation(options, adapter, work, config)
        if save.is_dir():
            save.rmdir()
        os.replace(work, save)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return deviation


def _check(checkpoint: Checkpoint, adapter: Adapter, save: Path, config: ModelConfig) -> None:
    if adapter.lora is None:
        raise UserError(f"{adapter.path} is a prefix, which is no part of any weight; give it to generate.sh, "
                        "evaluate.sh and serve.sh with --adapter")
    if (save.exists() and not save.is_dir()) or (save.is_dir() and any(save.iterdir())):
        raise UserError(f"--save {save} exists already; name a new folder")
    names = [name for part in checkpoint.index.parts for name in part]
    if any(name.endswith(spec.SCALE) for name in names):
        raise UserError(f"{checkpoint.folder} is quantised, and its whole numbers take no sums: merge into the "
                        "checkpoint that it was quantised from, and quantise the result; or run it with --adapter")
    own_name = FAMILIES[config.family].own_name
    held = {own_name(name).removesuffix(".weight") for name in names}
    if missing := sorted(set(adapter.lora.pairs) - held):
        raise UserError(f"{adapter.path}: adapts {missing[0]}, which {checkpoint.folder} does not hold: it was made "
                        "for another model")
    check_base(adapter, base_of(checkpoint.folder))


def _copy_others(checkpoint: Checkpoint, work: Path) -> None:
    """Everything beside the weights: configuration, vocabulary, the file that names the iteration."""
    work.mkdir(parents=True)
    for path in checkpoint.folder.iterdir():
        if path.is_file() and path not in checkpoint.paths:
            shutil.copyfile(path, work / path.name)


def _write(checkpoint: Checkpoint, file: Path, rank: int, target: Path, products: Mapping[str, Tensor],
           config: ModelConfig, dtype: torch.dtype | None) -> None:
    own_name = FAMILIES[config.family].own_name
    tensors = {name: entry for name, entry in checkpoint.index.parts[rank].items() if entry.file == file}
    changed: dict[str, Tensor] = {}
    for name, tensor in MappedTensors(tensors).items():
        own = own_name(name)
        if own.endswith(".weight") and own.removesuffix(".weight") in products:
            added = _part(products[own.removesuffix(".weight")], own, config, checkpoint.parts, rank)
            changed[name] = (tensor.float() + added).to(dtype or torch.float32)
        elif dtype is not None and tensor.is_floating_point():
            changed[name] = tensor.to(dtype)
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as opened:
        is_safetensors = is_one(opened.read(16))
    if is_safetensors:
        write_safetensors(target, {**MappedTensors(tensors), **changed}, metadata_of(file))
    else:
        content = torch.load(file, map_location="cpu", weights_only=True)
        write_torch(target, _replaced(content, changed))


def _part(added: Tensor, name: str, config: ModelConfig, parts: int, rank: int) -> Tensor:
    axis = spec.axis_number(name)
    return torch.cat([added.narrow(axis, piece.start, piece.stop - piece.start)
                      for piece in spec.slices_of(name, config, 1, parts, rank)], dim=axis)


def _replaced(content, changed: Mapping[str, Tensor], name: str = ""):
    """The content of a file with some of its tensors changed, named as glm.checkpoint names them."""
    if not isinstance(content, dict):
        return changed.get(name, content)
    inner = {key: f"{name}.{key}" if name else "" if key == "module" else str(key) for key in content}
    return type(content)((key, _replaced(value, changed, inner[key])) for key, value in content.items())


def _deviation(options: ModelOptions, adapter: Adapter, merged: Path, config: ModelConfig) -> float:
    tokens = torch.arange(1, 1 + min(PROBE, config.vocab_size - 1, config.max_sequence_length))[None]
    places = position_ids(config, tokens - 1, torch.zeros_like(tokens))
    found = []
    for path in (options.path, merged):
        model = load_without_tokenizer(replace(options, path=path, device="cpu", dtype="float32"))
        if path is not merged:
            put_on(model, adapter)
        with torch.inference_mode():
            found.append(model.logits(tokens, places))
    return float((found[0] - found[1]).abs().max())
