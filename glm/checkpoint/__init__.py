"""Checkpoints on disk: their folders, and where in their files each tensor lies. No torch here: glm.shard reads them.

    folder       SAT's layout: which file belongs to which rank, the line that converts
    index        any layout and format: open_checkpoint(folder).index, name -> Entry(file, offset, dtype, shape, ...)
    model_config the family and the shapes of the model, from what the folder says
    entry        what an index is made of
    torch_file   the format of torch.save: a zip archive (archive), or pickles and storages; looked at first (pickles)
    safetensors  the format of Hugging Face's newer files
"""

from glm.checkpoint.entry import Entry, FileIndex, Region
from glm.checkpoint.folder import (
    CONFIG_NAME,
    CONVERTING,
    LATEST,
    OF_MEGATRON,
    STREAMED,
    convert_command,
    find_shards,
    iteration_folder,
    missing_shard,
    shard_name,
    wrong_degree,
)
from glm.checkpoint.index import (
    HUGGING_FACE_CONFIG,
    HUGGING_FACE_WEIGHTS,
    MODULE,
    Checkpoint,
    Index,
    identity_of,
    open_checkpoint,
    read_file,
    tensors_of,
)
from glm.checkpoint.model_config import config_to_publish, read_config, read_values

__all__ = [
    "CONFIG_NAME", "CONVERTING", "HUGGING_FACE_CONFIG", "HUGGING_FACE_WEIGHTS", "LATEST", "MODULE", "OF_MEGATRON",
    "STREAMED", "Checkpoint", "Entry", "FileIndex", "Index", "Region", "config_to_publish", "convert_command",
    "find_shards", "identity_of", "iteration_folder", "missing_shard", "open_checkpoint", "read_config", "read_file",
    "read_values", "shard_name", "tensors_of", "wrong_degree",
]  # fmt: skip
