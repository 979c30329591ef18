"""The conversion: plan, space, shards one after another, manifest, `latest`."""

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from glm.checkpoint import CONFIG_NAME, CONVERTING, LATEST, shard_name
from glm.config import PRESETS, REQUIRED_FIELDS, ModelConfig, read_config_file
from glm.tokenizers.icetk import VOCABULARY_NAME
from runtime.errors import UserError, printable
from runtime.files import replacing
from runtime.hashing import DEFAULT_HASH, hash_bytes, hash_file
from runtime.mapped import explain_bus_errors
from runtime.show import Progress
from tools.converting.blocks import one_torch_thread
from tools.converting.manifest import NAME as MANIFEST
from tools.converting.manifest import FileFacts, Journal, Manifest, is_whole, opened, sync_folder, write_manifest
from tools.converting.plan import Plan, Wish, make_plan, rank_content
from tools.converting.source import SIZES, Source, open_source
from tools.converting.torchfile import HashedFile, planned_bytes, write_torch_file

SPARE_BYTES = 16 << 20  # of free space, for the small files and the file system's own needs
CARRIED = (CONFIG_NAME, VOCABULARY_NAME)


class Outcome(NamedTuple):
    """written, kept: output shards made now, and found finished. bytes: of all shards."""

    written: int
    kept: int
    bytes: int


def convert(input_folder: Path, output: Path, wish: Wish, shapes: Mapping[str, object], model: str | None,
            hash_kind: str = DEFAULT_HASH) -> Outcome:
    """Converts a checkpoint, or goes on with a conversion that was interrupted.

    shapes, model: the model's shape, as flags and as a preset's name, where its files do not say it.
    Raises UserError, one line, for every mistake and for a full disk.
    """
    if not input_folder.is_dir():
        raise UserError(f"--input-folder {input_folder}: no such folder; name the one that holds the file 'latest'")
    given = _given(input_folder, shapes, model)
    explain_bus_errors(input_folder, "what is finished is kept: put the right files back, then give the same command "
                                     "again")
    source = open_source(input_folder, {name: given[name] for name in SIZES if name in given})
    plan, config = make_plan(source, wish), _config_to_write(input_folder, given)
    conversion = _conversion(source, wish)
    names = [shard_name(rank) for rank in range(wish.degree)]
    if is_whole(output, conversion):
        shutil.rmtree(output / CONVERTING, ignore_errors=True)
        return Outcome(0, len(names), sum((output / source.iteration / name).stat().st_size for name in names))
    try:
        with opened(output, conversion, source.iteration) as journal:
            outcome = _write_shards(plan, journal, names, hash_kind)
            files = {f"{source.iteration}/{name}": journal.finished[name] for name in names}
            files |= _carry(source.folder, output, config, hash_kind)
            latest = source.iteration.encode()
            files[LATEST] = FileFacts(len(latest), hash_bytes(latest, hash_kind))
            write_manifest(output / MANIFEST, Manifest(files, conversion))
            journal.publish()
            journal.remove()
    except OSError as error:
        raise _explained(error, output) from None
    return outcome


def _write_shards(plan: Plan, journal: Journal, names: list[str], hash_kind: str) -> Outcome:
    todo = [rank for rank, name in enumerate(names) if not journal.is_finished(name)]
    sizes = {rank: planned_bytes(rank_content(plan, rank)) for rank in todo}
    _check_space(journal.output, sum(sizes.values()))
    _report(plan.source)
    with Progress(sum(sizes.values()), unit="B", title="Converting") as progress, one_torch_thread():
        for rank in todo:
            path = journal.shards / names[rank]
            with replacing(path) as temporary:
                facts = _write_shard(temporary, rank_content(plan, rank), hash_kind, progress)
                _check_input(plan.source, journal.conversion)
            sync_folder(path.parent)
            journal.finish(path.name, facts)
    total = sum(journal.finished[name].bytes for name in names)
    return Outcome(len(todo), len(names) - len(todo), total)


def _write_shard(path: Path, content: Mapping[str, object], hash_kind: str, progress: Progress) -> FileFacts:
    file = HashedFile(path, hash_kind, progress.advance)
    try:
        written = write_torch_file(file, content)
        return FileFacts(file.bytes, file.close(), written.regions, written.structure_crc32)
    finally:
        file.abandon()


def _carry(folder: Path, output: Path, config: ModelConfig | None, hash_kind: str) -> dict[str, FileFacts]:
    """The configuration (if given, instead of the input's) and the vocabulary come along, so that the result loads."""
    files = {}
    for name in CARRIED:
        with contextlib.ExitStack() as stack:
            if name == CONFIG_NAME and config is not None:
                config.save(stack.enter_context(replacing(output / name)))
            elif (folder / name).is_file():
                shutil.copyfile(folder / name, stack.enter_context(replacing(output / name)))
            else:
                continue
        files[name] = FileFacts((output / name).stat().st_size, hash_file(output / name, hash_kind))
    return files


def _given(folder: Path, shapes: Mapping[str, object], model: str | None) -> dict[str, object]:
    """What model_config.json says, then the preset, then single flags; each wins over what stands before it."""
    file = folder / CONFIG_NAME
    values = read_config_file(file) if file.is_file() else {}
    if model is not None:
        ModelConfig.from_name(model)  # refuses an unknown name
        values = values | PRESETS[model]
    values = values | {name: value for name, value in shapes.items() if value is not None}
    for name in SIZES:
        if type(value := values.get(name, 1)) is not int or value < 1:
            raise UserError(f"{name} {value!r} was said (in model_config.json, by --model or by a flag); it must be a "
                            "whole number, at least 1")
    return values


def _config_to_write(folder: Path, given: Mapping[str, object]) -> ModelConfig | None:
    """What was said in whole by a preset or flags, where it is not what the folder's file says; None: that file comes
    along as it is, if there is one."""
    file = folder / CONFIG_NAME
    if file.is_file() and read_config_file(file) == given:
        return None
    return ModelConfig.from_values(dict(given)) if all(name in given for name in REQUIRED_FIELDS) else None


def _conversion(source: Source, wish: Wish) -> dict[str, object]:
    """What makes the output what it is; the same again after a round through JSON."""
    files = _files(source)
    value = {"target_tp": wish.degree, "quantization_bit_width": wish.bits,
             "quantization_group_size": wish.group_size, "requantize": wish.requantize,
             "iteration": source.iteration, "input": files}
    return json.loads(json.dumps(value))


def _files(source: Source) -> list[list]:
    """The input's files: they are not the same ones any more when somebody has written to them."""
    return [[shard.path.name, shard.path.stat().st_size, shard.path.stat().st_mtime_ns] for shard in source.shards]


def _check_input(source: Source, conversion: Mapping[str, object]) -> None:
    """Raises UserError where the input was written to since the conversion began: a shard made of it does not count."""
    for now, before in zip(_files(source), conversion["input"], strict=True):
        if now != before:
            raise UserError(f"{source.folder}: {now[0]} was written to while it was converted; put the right file back "
                            "and give the same command again, or delete the output folder and start again")


def _check_space(output: Path, needed: int) -> None:
    free = shutil.disk_usage(output).free
    if needed + SPARE_BYTES > free:
        needed_mb, free_mb = -(-(needed + SPARE_BYTES) // 10**6), free // 10**6  # rounded apart, never to the same
        raise UserError(f"--output-folder {output}: {needed_mb / 1000:.3f} GB are needed, {free_mb / 1000:.3f} GB are "
                        "free on its disk; free space or name a folder on another disk")


def _report(source: Source) -> None:
    if source.extras:
        print(printable(f"note: {_names(source.extras)}: not of a GLM; kept whole on every rank"), file=sys.stderr)
    if source.differing:
        print(printable(f"warning: {_names(source.differing)}: not the same in all shards; the first shard's is "
                        "taken"), file=sys.stderr)


def _names(names) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _explained(error: OSError, output: Path) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"the disk of {output} is full ({os.strerror(error.errno)}); what is finished is kept: free "
                         "space, then give the same command again")
    place = Path(error.filename or output)
    if place.is_relative_to(output):  # what is made there means nothing to whoever named the folder
        return UserError(f"--output-folder {output}: cannot be written: {error.strerror}")
    return UserError(f"{place}: {error.strerror}")

