"""What the folder of a converted checkpoint holds, in each layout: its shards, and the small files beside them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from glm.checkpoint import (
    CONFIG_NAME,
    HUGGING_FACE_CONFIG,
    HUGGING_FACE_WEIGHTS,
    LATEST,
    OF_MEGATRON,
    config_to_publish,
    shard_name,
)
from glm.config import ModelConfig
from glm.families import FAMILIES, glm
from glm.spec import WORD_EMBEDDINGS
from glm.tokenizers.opening import FILES as TOKENIZER_FILES
from runtime.errors import UserError
from runtime.reading import read_json
from tools.converting.plan import Plan, rank_content
from tools.converting.safetensors_file import planned_bytes as safetensors_bytes
from tools.converting.safetensors_file import write_safetensors
from tools.converting.torchfile import HashedFile, Planned, Written, planned_bytes, write_torch_file

SAT, MEGATRON, HUGGING_FACE = "sat", "megatron", "huggingface"
README = "README.md"
SHARD_BYTES = 5 * 10**9  # of Hugging Face's files
Content = Mapping[str, object]


class Layout(NamedTuple):
    """An output folder."""

    folder: str  # of the shards; "": they lie in the output folder itself
    contents: Mapping[str, Callable[[], Content]]  # name of a shard -> what it holds, to be written once
    write: Callable[[HashedFile, Content], Written]  # one shard
    bytes: Callable[[Content], int]  # of one shard, or a little more
    small: Mapping[str, str]  # name -> text of files beside the shards
    carried: Sequence[str]  # names of the input's files that come along, where it has them
    last: Mapping[str, str]  # name -> text of the files without which the folder is no checkpoint


def layout_of(plan: Plan, config: ModelConfig | None, shard_bytes: int = SHARD_BYTES) -> Layout:
    """The layout that the plan's wish names. config: the model's; only SAT's layout can do without (None).

    Raises UserError for a model that the layout cannot hold.
    """
    form = plan.wish.format
    if form == SAT:
        return _of_ranks(plan, config, (LATEST,), lambda rank: rank_content(plan, rank))
    if form == HUGGING_FACE:
        return _of_hugging_face(plan, config, shard_bytes)
    if config.family != glm.NAME:
        raise UserError(f"--format {MEGATRON}: {plan.source.folder} is a model of the family {config.family}; only "
                        f"models of the family {glm.NAME} have this layout; leave --format away")
    return _of_ranks(plan, config, (OF_MEGATRON, LATEST), lambda rank: _of_megatron(plan, rank))


def _of_ranks(plan: Plan, config: ModelConfig | None, latest: Sequence[str],
              content: Callable[[int], Content]) -> Layout:
    """A file for each tensor-parallel rank."""
    iteration = plan.source.iteration
    return Layout(
        folder=iteration,
        contents={shard_name(rank): partial(content, rank) for rank in range(plan.wish.degree)},
        write=write_torch_file,
        bytes=planned_bytes,
        small={} if config is None else {CONFIG_NAME: config.to_json()},
        carried=(CONFIG_NAME, HUGGING_FACE_CONFIG, *TOKENIZER_FILES),
        last=dict.fromkeys(latest, iteration),
    )


def _of_megatron(plan: Plan, rank: int) -> Content:
    """A rank's file by the original's names, which wants to know how many ranks there are."""
    content, iteration = rank_content(plan, rank), plan.source.iteration
    return ({"iteration": int(iteration) if iteration.isdecimal() else 0} | content
            | {"module": _renamed(content["module"], glm.NAME, {}), "mp_world_size": plan.wish.degree})


def _of_hugging_face(plan: Plan, config: ModelConfig, shard_bytes: int) -> Layout:
    own = plan.source.folder / HUGGING_FACE_CONFIG
    before = read_json(own) if own.is_file() else {}
    values = _published_values(plan, config, before if isinstance(before, dict) else {})
    tensors = _renamed(rank_content(plan, 0)["module"], config.family, values)
    shards = _divided(tensors, shard_bytes)
    single, index = HUGGING_FACE_WEIGHTS[:2]
    names = [single] if len(shards) == 1 else [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
    total = sum(tensor.bytes for tensor in tensors.values())
    return Layout(
        folder="",
        contents={name: lambda shard=shard: shard for name, shard in zip(names, shards, strict=True)},
        write=write_safetensors,
        bytes=safetensors_bytes,
        small={HUGGING_FACE_CONFIG: _json(values), README: _readme(config, values)},
        carried=TOKENIZER_FILES,
        last={} if len(shards) == 1 else {index: _json({"metadata": {"total_size": total}, "weight_map": weight_map})},
    )


def _published_values(plan: Plan, config: ModelConfig, before: Mapping[str, object]) -> dict[str, object]:
    """Of config.json: the model's, and how its weights are stored."""
    values = config_to_publish(config, before)
    values["torch_dtype"] = str(plan.source.tensor(0, WORD_EMBEDDINGS).dtype).removeprefix("torch.")
    for key in ("quantization_bit", "quantization_group_size"):
        values.pop(key, None)
    if plan.source.bits is not None:
        values["quantization_bit"] = plan.source.bits
        sizes = {scheme.group_size for scheme in plan.carried.values()}
        if len(sizes) == 1 and None not in sizes:
            values["quantization_group_size"] = sizes.pop()
    return values


def _renamed(module: Mapping[str, Planned], family: str, values: Mapping[str, object]) -> dict[str, Planned]:
    """By the names of published files."""
    return {FAMILIES[family].published_name(name, values): tensor for name, tensor in module.items()}


def _divided(tensors: Mapping[str, Planned], limit: int) -> list[dict[str, Planned]]:
    """In their order, so many in a shard as the limit allows, but at least one."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.bytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.bytes
    return shards


def _readme(config: ModelConfig, values: Mapping[str, object]) -> str:
    bits = values.get("quantization_bit")
    stored = (f"{values['torch_dtype']}; the layers' linears are quantised to INT{bits}: `NAME.weight` (int8"
              f"{', two columns a byte' if bits == 4 else ''}) times `NAME.weight_scale`" if bits
              else f"{values['torch_dtype']}")
    code = ("" if "auto_map" not in values else "\n`config.json` names the original's Python files, which are not in "
            "this folder: the toolkit needs none.\n")
    return (f"# A model of the family {config.family}\n\n"
            f"| | |\n|---|---|\n| layers | {config.num_layers} |\n| hidden size | {config.hidden_size} |\n"
            f"| heads | {config.num_attention_heads} |\n| vocabulary | {config.vocab_size} |\n"
            f"| positions | {config.max_sequence_length} |\n| weights | {stored} |\n\n"
            "Written by `python -m glm export-hf`. The GLM toolkit loads this folder:\n\n"
            "```python\nimport glm\n\nmodel, tokenizer = glm.load(\"this folder\")\n```\n"
            f"{code}\nThe weights are under the licence of the model that they come from.\n")


def _json(values: Mapping[str, object]) -> str:
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
