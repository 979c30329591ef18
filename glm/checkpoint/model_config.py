"""The configuration of the model in a checkpoint of any layout: which family, which shapes.

A folder says it in our model_config.json or in Hugging Face's config.json. Beside GLM's files in Megatron's style lies
an architecture.json at most, and their tensors say nearly all of it. No flag chooses the family.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from glm import spec
from glm.checkpoint.entry import Entry
from glm.checkpoint.folder import CONFIG_NAME, checkpoint_folder, foreign_file
from glm.checkpoint.index import HUGGING_FACE_CONFIG, open_checkpoint
from glm.config import FIELDS, PRESETS, ModelConfig, read_config_file
from glm.families import FAMILIES, glm, published_family, published_fields
from runtime.errors import UserError, shown

ARCHITECTURE = "architecture.json"  # beside the file that names the iteration


def read_config(path: str | os.PathLike, model: str | None = None, **overrides) -> ModelConfig:
    """What the folder says, then a preset's shapes, then ``overrides`` (None: not said); later ones win, but for what
    the tensors of a file themselves say. Raises UserError where something is missing or wrong."""
    values, source = read_values(path, model, **overrides)
    return ModelConfig.from_values(values, source)


def read_values(path: str | os.PathLike, model: str | None = None, **overrides) -> tuple[dict[str, object], str]:
    """The same as values that are not checked and need not be complete, and what to call their source in messages."""
    folder = checkpoint_folder(path)
    file = folder / CONFIG_NAME
    preset = {} if model is None else _preset(model)
    given = {name: value for name, value in overrides.items() if value is not None}
    if os.path.lexists(file):
        return read_config_file(file) | preset | given, str(file)
    file = folder / HUGGING_FACE_CONFIG
    if os.path.lexists(file):
        return _named_in(file, published_fields) | preset | given, str(file)
    file = folder / ARCHITECTURE
    if os.path.lexists(file):
        return _named_in(file, glm.architecture_fields) | preset | given, str(file)
    if model is None and (found := foreign_file(folder)):
        raise UserError(f"{folder} is a checkpoint of Hugging Face's (it holds {found}), but has no "
                        f"{HUGGING_FACE_CONFIG}, which says which model it is of; copy that, too")
    return preset | _of_megatron(folder, preset) | given, str(folder)


def config_to_publish(config: ModelConfig, before: Mapping[str, object]) -> dict[str, object]:
    """The values of a config.json that read_config reads as `config`. before: of one that the model had, of which
    everything else is kept, if it is of the same family.

    Raises UserError for a field of which the family's config.json can say nothing else than what it takes for granted.
    """
    family = FAMILIES[config.family]
    values = (dict(before) if published_family(before) is family else {}) | family.published(config)
    found = ModelConfig.from_values(family.fields(values))
    for field in FIELDS:
        if (wanted := getattr(config, field)) != getattr(found, field):
            raise UserError(f"{field} is {shown(wanted)}, but a config.json of the family {config.family} can only say "
                            f"{shown(getattr(found, field))}; keep this model in the toolkit's own layout")
    return values


def _preset(name: str) -> dict[str, object]:
    ModelConfig.from_name(name)  # refuses an unknown name
    return PRESETS[name]


def _named_in(file: Path, fields: Callable[[Mapping[str, object]], dict[str, object]]) -> dict[str, object]:
    """What `fields` makes of the file's values; its errors name the file."""
    try:
        return fields(read_config_file(file))
    except UserError as error:
        raise error if str(file) in str(error) else UserError(f"{file}: {error}") from None


def _of_megatron(folder: Path, preset: Mapping[str, object]) -> dict[str, object]:
    """Of a GLM in Megatron's style, out of the shapes of its first part's tensors; empty for other checkpoints.

    The number of heads is in no tensor: it is a preset's, or that of the published model with these shapes.
    """
    try:
        checkpoint = open_checkpoint(folder)
        tensors = checkpoint.part(0)
    except UserError:  # what is wrong with files is said by those who read the weights
        return {}
    if spec.WORD_EMBEDDINGS in tensors or checkpoint.weight_map is not None:
        return {}
    named: dict[str, Entry] = {glm.own_name(name): entry for name, entry in tensors.items()}
    words, places = named.get(spec.WORD_EMBEDDINGS), named.get(spec.POSITION_EMBEDDINGS)
    if words is None or places is None or len(words.shape) != 2 or len(places.shape) != 2:
        return {}
    has_blocks = spec.BLOCK_POSITION_EMBEDDINGS in named
    layers, hidden_size = len({spec.layer_of(name) for name in named} - {None}), words.shape[1]
    found = {"num_layers": layers, "hidden_size": hidden_size, "inner_hidden_size": 4 * hidden_size,
             "vocab_size": words.shape[0] * len(checkpoint.paths), "position_encoding_2d": has_blocks,
             "max_sequence_length": places.shape[0] - has_blocks, "gelu": "tanh", "num_image_tokens": 0,
             "family": glm.NAME}
    heads = preset.get("num_attention_heads") or next(
        (shape["num_attention_heads"] for shape in glm.PRESETS.values()
         if (shape["num_layers"], shape["hidden_size"]) == (layers, hidden_size)), None)
    return found | ({} if heads is None else {"num_attention_heads": heads})
