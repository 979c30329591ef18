"""What a training leaves: a checkpoint that --load takes, and beside it head, prompt encoder and prefix by the names of
their own files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from glm.adapters.files import write_safetensors
from glm.checkpoint import (
    HUGGING_FACE_CONFIG,
    HUGGING_FACE_WEIGHTS,
    OF_MEGATRON,
    config_to_publish,
    read_values,
    shard_name,
)
from glm.checkpoint.model_config import ARCHITECTURE
from glm.families import FAMILIES, glm, glm130b
from glm.shard import save_index, save_shard
from runtime import parallel
from runtime.errors import UserError
from runtime.files import replacing, write_torch
from tuning.adapters import save_adapters
from tuning.model import PROMPT, Tuned

VOCABULARIES = ("ice_text.model", "tokenizer.model", "cog-pretrain.model", "vocab.json", "merges.txt", "vocab.txt",
                "sp.model")
HEAD, PROMPT_ENCODER = "head.pt", "prompt_encoder.pt"


def save(folder: Path, tuned: Tuned, iteration: int, dtype: torch.dtype, load: Path) -> None:
    """Every rank calls it; the file that makes the folder a checkpoint is written last.

    load: the folder that the training began with, whose other settings are kept.
    """
    if parallel.is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        for name, prefix, part in ((HEAD, "", tuned.head), (PROMPT_ENCODER, PROMPT, tuned.prompt)):
            if part is not None:
                write_torch(folder / name, {f"{prefix}{each}": tensor.detach().float().cpu().clone()
                                            for each, tensor in part.named_parameters()})
        if tuned.is_adapted:
            save_adapters(folder, tuned, load)
        else:
            _copy_vocabulary(folder, load)
    if not tuned.is_adapted:
        _save_model(folder, tuned, iteration, dtype, load)


def _copy_vocabulary(folder: Path, load: Path) -> None:
    """So that what was saved is used without a word of where the vocabulary is, as what was loaded."""
    for name in (*VOCABULARIES, "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"):
        if (load / name).is_file():
            with replacing(folder / name) as temporary:
                shutil.copyfile(load / name, temporary)


def _save_model(folder: Path, tuned: Tuned, iteration: int, dtype: torch.dtype, load: Path) -> None:
    """One data-parallel rank of each tensor-parallel one writes."""
    config, family = tuned.model.config, FAMILIES[tuned.model.config.family]
    if parallel.size() > 1 and config.family not in (glm.NAME, glm130b.NAME):
        raise UserError(f"a model of the family {config.family} is saved from one tensor-parallel rank; "
                        "start with --model-parallel-size 1")
    values = {} if config.family in (glm.NAME, glm130b.NAME) else config_to_publish(config, read_values(load)[0])

    def write_part() -> None:
        if parallel.data_parallel_rank():
            return
        weights = {name: stored(tensor, dtype) for name, tensor in tuned.model.state_dict().items()
                   if ".adapters." not in name and not name.startswith("prefix.")}
        named = {family.published_name(name, values): tensor for name, tensor in weights.items()}
        shard = folder / str(iteration) / shard_name(parallel.rank())
        if config.family == glm130b.NAME:
            save_shard(shard, weights)
        elif config.family == glm.NAME:
            shard.parent.mkdir(parents=True, exist_ok=True)
            write_torch(shard, {"iteration": iteration, "module": named, "mp_world_size": parallel.size()})
        else:
            _save_hugging_face(folder, named, values | {"torch_dtype": str(dtype).removeprefix("torch.")})

    parallel.agree(write_part)  # what makes the folder a checkpoint points to no part that is missing
    if parallel.is_first_process() and config.family == glm130b.NAME:
        save_index(folder, iteration, config)
    elif parallel.is_first_process() and config.family == glm.NAME:
        write_text(folder / ARCHITECTURE, json.dumps(glm.architecture(config), indent=1) + "\n")
        write_text(folder / OF_MEGATRON, str(iteration))


def stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As a file holds it: memory of its own, on the host."""
    tensor = tensor.detach()
    return tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()


def _save_hugging_face(folder: Path, named: dict[str, Tensor], values: dict[str, object]) -> None:
    write_safetensors(folder / HUGGING_FACE_WEIGHTS[0], named, {"format": "pt"})
    write_text(folder / HUGGING_FACE_CONFIG, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
