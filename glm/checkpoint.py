"""Checkpoints in SAT's layout on disk: which file belongs to which rank, reading one without running it, writing.

    FOLDER/latest                                  the name of the iteration's folder
    FOLDER/<iteration>/mp_rank_XX_model_states.pt  {"module": state_dict} of tensor-parallel rank XX
    FOLDER/model_config.json                       the model's shapes, where there is one
"""

from __future__ import annotations

import io
import os
import pickle
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from glm.archive import read_pickle, records
from glm.config import PRESETS, ModelConfig, read_config_file
from glm.pickles import Refused, check_pickle
from runtime.errors import UserError
from runtime.files import replacing, write_torch
from runtime.reading import SMALL, START, NoSuchFile, open_file, read_text, recognised
from runtime.show import counted

if TYPE_CHECKING:  # what a checkpoint looks like is asked before torch is there, which takes a second to import
    import torch

LATEST = "latest"
CONFIG_NAME = "model_config.json"
OF_HUGGING_FACE = ("config.json", "*.safetensors", "pytorch_model*.bin")
QUANTISED = "it is quantised"
OLD_FORMAT = "its files are in torch's old format"
STREAMED = "layers are read from one file a rank while the model runs (--offload-memory-limit)"
CONVERTING = ".converting"  # tools/convert_tp.py works in this folder until the checkpoint is whole
_SHARD = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_ZIP_START = b"PK\x03\x04"
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before 1.6: the pickled magic number
_LEGACY_PICKLES = 5  # with which such a file begins


class Shard(NamedTuple):
    """One file's tensors. mapped: they lie in the file until they are used. others: what is beside 'module'."""

    path: Path
    tensors: Mapping[str, torch.Tensor]
    mapped: bool
    others: Mapping[str, object] = MappingProxyType({})

    def slices(self, name: str) -> list[torch.Tensor]:
        """What makes up a tensor, in order: itself, but for a part that is put together (glm.resplit)."""
        return [self.tensors[name]]


def shard_name(rank: int) -> str:
    return f"mp_rank_{rank:02d}_model_states.pt"


def checkpoint_folder(folder: str | os.PathLike) -> Path:
    """The folder, which must be there and not be one of another program's."""
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"no checkpoint folder {folder}; it is the folder that holds the file {LATEST!r}")
    foreign = () if os.path.lexists(folder / LATEST) else [name for name in OF_HUGGING_FACE if any(folder.glob(name))]
    if foreign:
        raise UserError(f"{folder} is a checkpoint of Hugging Face's (it holds {foreign[0]}), which is not read yet; "
                        f"one of SAT's holds a file {LATEST!r} beside the folder of its shards")
    return folder


def read_config(path: str | os.PathLike, model: str | None = None, **overrides) -> ModelConfig:
    """Shapes from the checkpoint's model_config.json, then a preset's, then ``overrides`` (None: not said)."""
    file = checkpoint_folder(path) / CONFIG_NAME
    try:
        values, source = read_config_file(file), str(file)
    except NoSuchFile:
        values, source = {}, str(path)
    if model is not None:
        ModelConfig.from_name(model)  # refuses an unknown name
        values = values | PRESETS[model]
    given = {name: value for name, value in overrides.items() if value is not None}
    return ModelConfig.from_values(values | given, source)


def iteration_folder(folder: str | os.PathLike) -> Path:
    """The folder that ``latest`` points to."""
    folder = checkpoint_folder(folder)
    latest = folder / LATEST
    try:
        iteration = read_text(latest, SMALL).strip()
    except NoSuchFile:
        if (folder / CONVERTING).is_dir():
            raise UserError(f"{folder} is an unfinished conversion: give the same command of tools/convert_tp.py once "
                            "more, it goes on where it ended") from None
        found = sorted(path.parent.name for path in folder.glob(f"*/{shard_name(0)}"))
        if found:
            raise UserError(f"no readable file {latest}: it must hold the name of the iteration's folder, for example "
                            f"{found[-1]}; mend it with: echo {found[-1]} > {shlex.quote(str(latest))}") from None
        is_inner = (folder / shard_name(0)).is_file()
        raise UserError(f"no readable file {latest}: a checkpoint is the folder that holds it beside the folder of the "
                        f"shards{f'; take {folder.resolve().parent}' if is_inner else ''}") from None
    if iteration in ("", "..") or Path(iteration).name != iteration or not os.path.isdir(folder / iteration):
        raise UserError(f"{latest} points to {iteration[:80]!r}, but there is no such folder in {folder}; "
                        f"it must hold the name of a folder with {shard_name(0)}{_more_than_a_name(folder, iteration)}")
    return folder / iteration


def _more_than_a_name(folder: Path, iteration: str) -> str:
    """For the message: which part of what `latest` holds is the name of a folder."""
    parts = [part for part in re.split(r"[/\s]+", iteration[:1000]) if part not in ("", ".", "..")]
    name = next((part for part in parts if os.path.isdir(folder / part)), None)
    return f" and nothing else, such as {name}" if name else ""


def find_shards(folder: str | os.PathLike) -> list[Path]:
    """The shards of the latest iteration, in the order of their ranks, at least one; a gap raises UserError."""
    iteration = iteration_folder(folder)
    ranks = sorted(int(match[1]) for path in iteration.iterdir()
                   if (match := _SHARD.fullmatch(path.name)) and path.name == shard_name(int(match[1])))
    if not ranks:
        raise UserError(f"no shards {shard_name(0)} ... in {iteration}")
    for rank in range(ranks[-1] + 1):
        path = iteration / shard_name(rank)
        if rank not in ranks or not os.path.exists(path):
            raise UserError(missing_shard(path))
        if not os.path.isfile(path):  # a pipe or a device may never end
            raise UserError(f"{path} is no file: put the shard there again")
    return [iteration / shard_name(rank) for rank in ranks]


def missing_shard(path: Path) -> str:
    link = f" (it is a link to {os.readlink(path)}, which is not there)" if os.path.islink(path) else ""
    return f"missing shard {path}{link}: copy it again from where the checkpoint came from"


def wrong_degree(folder: str | os.PathLike, shards: int, degree: int, why: str) -> str:
    """why: what keeps ranks from taking their parts out of files that are not one a rank, QUANTISED, OLD_FORMAT or
    STREAMED."""
    return (f"{folder} is split for {counted(shards, 'tensor-parallel rank')}, but {degree} "
            f"{'are' if degree > 1 else 'is'} running, and {why}; start {shards} (the scripts: MP_SIZE={shards}), or "
            "convert it: "
            + convert_command(folder, f"tp{degree}", degree))


def convert_command(folder: str | os.PathLike, suffix: str, degree: int, *flags: str) -> str:
    """The line that converts a checkpoint into a folder beside it."""
    source = str(Path(folder))
    target = f"{source.rstrip('/')}_{suffix}"
    return " ".join(("python tools/convert_tp.py --input-folder", shlex.quote(source), "--output-folder",
                     shlex.quote(target), "--target-tp", str(degree), *flags))


def read_shard(path: Path) -> Shard:
    """The state dict of one file, mapped from disk and not read yet. No code in the file is ever run.

    Raises UserError for a file that is missing, truncated, no checkpoint, or that holds more than tensors.
    """
    import torch

    try:
        with open_file(path, f"cannot read {path}") as file:
            start = file.read(START)
    except NoSuchFile:
        raise UserError(missing_shard(path)) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if not start.startswith((_ZIP_START, _LEGACY_START)):
        kind = recognised(start) or "no checkpoint: it was not written by torch.save; nothing in it was run"
        raise UserError(f"{path} ({path.stat().st_size} bytes) is {kind}")
    mapped = start.startswith(_ZIP_START)  # the old format cannot be mapped: it is read into memory
    try:
        check_torch_file(path)
        content = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except UserError:
        raise
    except Refused as refused:
        raise UserError(f"{path} holds more than tensors ({refused}): refused, none of it was run") from None
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than tensors{_forbidden(error)}: refused, none of it was run") from None
    except Exception as error:  # damage can end in any of them
        if isinstance(error, MemoryError) or "annot allocate memory" in str(error):
            raise UserError(f"{path} ({path.stat().st_size} bytes): no memory to map it; a limit on this process's "
                            "memory is too low (ulimit -v, ulimit -d)") from None
        raise UserError(f"{path} ({path.stat().st_size} bytes) is truncated or damaged: copy it again from where the "
                        "checkpoint came from") from None
    if not isinstance(content, dict) or not isinstance(content.get("module"), dict):
        found = ", ".join(map(_named, list(content)[:5])) or "no key" if isinstance(content, dict) else (
            type(content).__name__)
        raise UserError(f"{path} is no SAT checkpoint: it must hold a dictionary with the key 'module', found {found}")
    for name, tensor in content["module"].items():
        if not isinstance(name, str):
            raise UserError(f"{path}: a tensor's name is no text but {_named(name)}")
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {name} is no tensor but {type(tensor).__name__}")
        if not _is_dense(tensor):
            raise UserError(f"{path}: {name} is no dense tensor of numbers; save the checkpoint with plain ones")
    others = {key: value for key, value in content.items() if key != "module"}
    return Shard(path, content["module"], mapped, others)


def check_torch_file(path: Path) -> None:
    """What torch.load must not be given: an archive that can be read in two ways, a pickle that asks for more than
    tensors. Raises UserError, pickle.UnpicklingError, or whatever a damaged file ends in."""
    with path.open("rb") as file:
        if file.read(len(_ZIP_START)) != _ZIP_START:
            file.seek(0)
            for _ in range(_LEGACY_PICKLES):
                check_pickle(file)
            return
    check_pickle(io.BytesIO(read_pickle(path, records(path))))


def _is_dense(tensor: torch.Tensor) -> bool:
    import torch

    return (type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
            and tensor.device.type == "cpu"
            and not (tensor.is_quantized or tensor.is_nested or tensor.is_conj() or tensor.is_neg()))


def _named(key: object) -> str:
    """A key of a file for a message: whatever else than text it is, it may be endless."""
    return key[:80] if isinstance(key, str) else f"a key of the type {type(key).__name__}"


def _forbidden(error: pickle.UnpicklingError) -> str:
    """What torch's long message says was in the file."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    return f" ({match[1]})" if match else ""


def save_shard(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Write one file so that, whenever the process dies, it is there as a whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # torch.save writes a tensor's whole storage: a view would bring what it was cut from
    state = {name: tensor.detach().clone() if _is_view(tensor) else tensor.detach() for name, tensor in state.items()}
    write_torch(path, {"module": state})


def save_index(folder: str | os.PathLike, iteration: int | str, config: ModelConfig) -> None:
    """Write model_config.json and, last, ``latest``: call it once all shards of the iteration are written."""
    folder = Path(folder)
    with replacing(folder / CONFIG_NAME) as temporary:
        config.save(temporary)
    with replacing(folder / LATEST) as temporary:
        temporary.write_text(str(iteration), encoding="utf-8")


def save_checkpoint(folder: str | os.PathLike, iteration: int | str, state: Mapping[str, torch.Tensor],
                    config: ModelConfig, rank: int = 0, barrier: Callable[[], None] | None = None) -> None:
    """Write this rank's part of a checkpoint; every rank calls it.

    barrier: called with no arguments when this rank's shard is written, so that ``latest``, which the first rank
    writes last, never points to a checkpoint of which a part is missing. Not needed with one rank.
    """
    save_shard(Path(folder) / str(iteration) / shard_name(rank), state)
    if barrier is not None:
        barrier()
    if rank == 0:
        save_index(folder, iteration, config)


def _is_view(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size()
