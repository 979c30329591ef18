"""Checkpoints in SAT's layout on disk: which file belongs to which rank.

    FOLDER/latest                                  the name of the iteration's folder
    FOLDER/<iteration>/mp_rank_XX_model_states.pt  {"module": state_dict} of tensor-parallel rank XX
    FOLDER/model_config.json                       the model's shapes, where there is one
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from runtime.errors import UserError
from runtime.reading import SMALL, NoSuchFile, read_text
from runtime.show import counted

LATEST, OF_MEGATRON = "latest", "latest_checkpointed_iteration.txt"  # files that name the iteration's folder
CONFIG_NAME = "model_config.json"
OF_HUGGING_FACE = ("config.json", "*.safetensors", "pytorch_model*.bin")
STREAMED = "layers are read from one file a rank while the model runs (--offload-memory-limit)"
CONVERTING = ".converting"  # a conversion works in this folder until the checkpoint is whole
_SHARD = re.compile(r"mp_rank_(\d+)_model_states\.pt")


def shard_name(rank: int) -> str:
    return f"mp_rank_{rank:02d}_model_states.pt"


def checkpoint_folder(folder: str | os.PathLike) -> Path:
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise UserError(f"no checkpoint folder {folder}; it is the folder that holds the file {LATEST!r} or, of "
                        "Hugging Face's, config.json")
    return folder


def foreign_file(folder: Path) -> str | None:
    """What shows a folder to be one of Hugging Face's; None: nothing, or it is one of files for each rank."""
    if any(os.path.lexists(folder / name) for name in (LATEST, OF_MEGATRON, shard_name(0))):
        return None
    return next((name for name in OF_HUGGING_FACE if any(folder.glob(name))), None)


def iteration_folder(folder: str | os.PathLike) -> Path:
    """The folder that ``latest`` points to."""
    folder = checkpoint_folder(folder)
    if foreign := foreign_file(folder):
        raise UserError(f"{folder} is a checkpoint of Hugging Face's (it holds {foreign}); here one of SAT's is "
                        f"needed, which holds a file {LATEST!r} beside the folder of its shards")
    latest = folder / LATEST
    try:
        iteration = read_text(latest, SMALL).strip()
    except NoSuchFile:
        if (folder / CONVERTING).is_dir():
            raise UserError(unfinished(folder)) from None
        found = sorted(path.parent.name for path in folder.glob(f"*/{shard_name(0)}"))
        if found:
            raise UserError(f"no readable file {latest}: it must hold the name of the iteration's folder, for example "
                            f"{found[-1]}; mend it with: echo {found[-1]} > {shlex.quote(str(latest))}") from None
        is_inner = (folder / shard_name(0)).is_file()
        raise UserError(f"no readable file {latest}: a checkpoint is the folder that holds it beside the folder of the "
                        f"shards{f'; take {folder.resolve().parent}' if is_inner else ''}") from None
    return _named_folder(folder, latest, iteration)


def _named_folder(folder: Path, latest: Path, iteration: str) -> Path:
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
    return _shards_in(iteration_folder(folder))


def rank_files(folder: Path) -> list[Path]:
    """find_shards, also where only Megatron's own file names the iteration, or the folder is that of the shards."""
    latest = folder / OF_MEGATRON
    if not os.path.lexists(folder / LATEST):
        if os.path.lexists(latest):
            return _shards_in(_named_folder(folder, latest, read_text(latest, SMALL).strip()))
        if os.path.lexists(folder / shard_name(0)):
            return _shards_in(folder)
    return find_shards(folder)


def _shards_in(iteration: Path) -> list[Path]:
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


def unfinished(folder: Path) -> str:
    return f"{folder} is an unfinished conversion: give the same command once more, it goes on where it ended"


def wrong_degree(folder: str | os.PathLike, shards: int, degree: int, why: str) -> str:
    """why: what keeps ranks from taking their parts out of files that are not one a rank; STREAMED."""
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
