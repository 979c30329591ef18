"""The conversion: plan, space, shards one after another, manifest, `latest`."""

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from glm.checkpoint import CONFIG_NAME, CONVERTING, read_values
from glm.config import REQUIRED_FIELDS, ModelConfig, read_config_file
from glm.families import FAMILIES
from glm.loading import check_vocabulary
from glm.tokenizers.opening import FILES as TOKENIZER_FILES
from runtime.errors import UserError, printable
from runtime.files import replacing
from runtime.hashing import DEFAULT_HASH, hash_bytes, hash_file
from runtime.mapped import explain_bus_errors
from runtime.show import Progress
from tools.converting.blocks import one_torch_thread
from tools.converting.layouts import SAT, SHARD_BYTES, Content, Layout, layout_of
from tools.converting.manifest import NAME as MANIFEST
from tools.converting.manifest import FileFacts, Journal, Manifest, is_whole, opened, sync_folder, write_manifest
from tools.converting.plan import Wish, make_plan
from tools.converting.source import SIZES, Source, open_source
from tools.converting.torchfile import HashedFile

SPARE_BYTES = 16 << 20  # of free space, for the small files and the file system's own needs


class Outcome(NamedTuple):
    """written, kept: output shards made now, and found finished. bytes: of all shards."""

    written: int
    kept: int
    bytes: int


def convert(input_folder: Path, output: Path, wish: Wish, shapes: Mapping[str, object], model: str | None,
            hash_kind: str = DEFAULT_HASH, flags: tuple[str, str] = ("--input-folder", "--output-folder"),
            shard_bytes: int = SHARD_BYTES) -> Outcome:
    """Converts a checkpoint of any layout, or goes on with a conversion that was interrupted.

    shapes, model: the model's shape, as flags and as a preset's name, where its files do not say it.
    flags: what the user named the two folders with. shard_bytes: of Hugging Face's files.
    Raises UserError, one line, for every mistake and for a full disk.
    """
    if not input_folder.is_dir():
        raise UserError(f"{flags[0]} {input_folder}: no such folder; name the one that holds the file 'latest'")
    given, where = _given(input_folder, shapes, model)
    explain_bus_errors(input_folder, "what is finished is kept: put the right files back, then give the same command "
                                     "again")
    source = open_source(input_folder, given)
    if wish.format == SAT:
        config = _config_to_write(input_folder, given, where)
    else:
        config = ModelConfig.from_values(given, where)
    if wish.tokenizer is not None:
        _check_tokenizer(wish.tokenizer, source, config)
    plan = make_plan(source, wish)
    layout, conversion = layout_of(plan, config, shard_bytes), _conversion(source, wish)
    inside = f"{layout.folder}/" if layout.folder else ""
    if is_whole(output, conversion):
        shutil.rmtree(output / CONVERTING, ignore_errors=True)
        sizes = [(output / inside / name).stat().st_size for name in layout.contents]
        return Outcome(0, len(sizes), sum(sizes))
    label = f"{flags[1]} {output}"
    try:
        with opened(output, conversion, layout.folder, flags[1]) as journal:
            outcome = _write_shards(source, layout, journal, hash_kind, label)
            files = {inside + name: journal.finished[name] for name in layout.contents}
            files |= _carry(source.folder, _folder(wish.tokenizer) or source.folder, output, layout, hash_kind)
            files |= {name: FileFacts(len(text.encode()), hash_bytes(text.encode(), hash_kind))
                      for name, text in layout.last.items()}
            write_manifest(output / MANIFEST, Manifest(files, conversion))
            journal.publish(layout.last)
            journal.remove()
    except OSError as error:
        raise _explained(error, output, label) from None
    return outcome


def _write_shards(source: Source, layout: Layout, journal: Journal, hash_kind: str, label: str) -> Outcome:
    todo = [name for name in layout.contents if not journal.is_finished(name)]
    total = sum(layout.bytes(layout.contents[name]()) for name in todo)
    _check_space(journal.output, total, label)
    _report(source)
    with Progress(total, unit="B", title="Converting") as progress, one_torch_thread():
        for name in todo:
            path = journal.shards / name
            with replacing(path) as temporary:
                facts = _write_shard(temporary, layout, layout.contents[name](), hash_kind, progress)
                _check_input(source, journal.conversion)
            sync_folder(path.parent)
            journal.finish(path.name, facts)
    written = sum(journal.finished[name].bytes for name in layout.contents)
    return Outcome(len(todo), len(layout.contents) - len(todo), written)


def _write_shard(path: Path, layout: Layout, content: Content, hash_kind: str, progress: Progress) -> FileFacts:
    file = HashedFile(path, hash_kind, progress.advance)
    try:
        written = layout.write(file, content)
        return FileFacts(file.bytes, file.close(), written.regions, written.structure_crc32)
    finally:
        file.abandon()


def _carry(folder: Path, tokenizer: Path, output: Path, layout: Layout, hash_kind: str) -> dict[str, FileFacts]:
    """The configuration and the tokenizer, which may lie in a folder of its own, come along, so that the result loads.
    """
    files = {}
    for name in dict.fromkeys((*layout.small, *layout.carried)):
        path = (tokenizer if name in TOKENIZER_FILES else folder) / name
        if name not in layout.small and not path.is_file():
            continue
        with replacing(output / name) as temporary:
            if name in layout.small:
                temporary.write_text(layout.small[name], encoding="utf-8")
            else:
                shutil.copyfile(path, temporary)
        files[name] = FileFacts((output / name).stat().st_size, hash_file(output / name, hash_kind))
    return files


def _check_tokenizer(path: Path, source: Source, config: ModelConfig) -> None:
    """Raises UserError where it is none, or another model's."""
    if not path.exists():
        raise UserError(f"--tokenizer-path {path}: no such folder; name the one that holds the tokenizer's files")
    tokenizer = FAMILIES[config.family].open_tokenizer(source.folder, path, config)
    if tokenizer.vocabulary_file.name not in TOKENIZER_FILES:
        raise UserError(f"--tokenizer-path {path}: an exported vocabulary has one of the names "
                        f"{', '.join(TOKENIZER_FILES)}; rename the file")
    check_vocabulary(tokenizer, config)


def _folder(tokenizer: Path | None) -> Path | None:
    return tokenizer.parent if tokenizer is not None and tokenizer.is_file() else tokenizer


def _given(folder: Path, shapes: Mapping[str, object], model: str | None) -> tuple[dict[str, object], str]:
    """What the folder, the preset and single flags say of the model, and the source to name in messages."""
    values, where = read_values(folder, model, **shapes)
    for name in SIZES:
        if type(value := values.get(name, 1)) is not int or value < 1:
            raise UserError(f"{name} {value!r} was said (in model_config.json, by --model or by a flag); it must be a "
                            "whole number, at least 1")
    return values, where


def _config_to_write(folder: Path, given: Mapping[str, object], where: str) -> ModelConfig | None:
    """What was said in whole, where it is not what the folder's model_config.json says; None: that file comes along as
    it is, if there is one."""
    file = folder / CONFIG_NAME
    if file.is_file() and read_config_file(file) == given:
        return None
    return ModelConfig.from_values(given, where) if all(name in given for name in REQUIRED_FIELDS) else None


def _conversion(source: Source, wish: Wish) -> dict[str, object]:
    """What makes the output what it is; the same again after a round through JSON."""
    files = _files(source)
    value = {"target_tp": wish.degree, "quantization_bit_width": wish.bits,
             "quantization_group_size": wish.group_size, "requantize": wish.requantize,
             "iteration": source.iteration, "input": files} | (
                 {} if wish.format == SAT else {"format": wish.format})
    if wish.tokenizer is not None:
        paths = [_folder(wish.tokenizer) / name for name in TOKENIZER_FILES]
        value["tokenizer"] = _facts(path for path in paths if path.is_file())
    return json.loads(json.dumps(value))


def _files(source: Source) -> list[list]:
    """The input's files: they are not the same ones any more when somebody has written to them."""
    return _facts(source.checkpoint.paths)


def _facts(paths: Iterable[Path]) -> list[list]:
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _check_input(source: Source, conversion: Mapping[str, object]) -> None:
    """Raises UserError where the input was written to since the conversion began: a shard made of it does not count."""
    for now, before in zip(_files(source), conversion["input"], strict=True):
        if now != before:
            raise UserError(f"{source.folder}: {now[0]} was written to while it was converted; put the right file back "
                            "and give the same command again, or delete the output folder and start again")


def _check_space(output: Path, needed: int, label: str) -> None:
    free = shutil.disk_usage(output).free
    if needed + SPARE_BYTES > free:
        needed_mb, free_mb = -(-(needed + SPARE_BYTES) // 10**6), free // 10**6  # rounded apart, never to the same
        raise UserError(f"{label}: {needed_mb / 1000:.3f} GB are needed, {free_mb / 1000:.3f} GB are "
                        "free on its disk; free space or name a folder on another disk")


def _report(source: Source) -> None:
    if source.extras:
        print(printable(f"note: {_names(source.extras)}: not of a GLM; kept whole on every rank"), file=sys.stderr)
    if source.differing:
        print(printable(f"warning: {_names(source.differing)}: not the same in all shards; the first shard's is "
                        "taken"), file=sys.stderr)


def _names(names) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _explained(error: OSError, output: Path, label: str) -> UserError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"the disk of {output} is full ({os.strerror(error.errno)}); what is finished is kept: free "
                         "space, then give the same command again")
    place = Path(error.filename or output)
    if place.is_relative_to(output):  # what is made there means nothing to whoever named the folder
        return UserError(f"{label}: cannot be written: {error.strerror}")
    return UserError(f"{place}: {error.strerror}")

