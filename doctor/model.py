"""The configured model: its memory, its checkpoint by the headers of its files, its vocabulary, whether they fit the
run; and the data of the tasks that are named."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from doctor.finding import Finding, error, warning
from doctor.machine import GB
from doctor.probe import Stages
from glm.families import FAMILIES
from glm.spec import fault_of_degree
from planning.check import Use, config_of, short_of
from planning.machine import default_precision
from runtime.errors import UserError

COPY = "copy the file again; python tools/verify_checkpoint.py {load} then checks all of it"
SHAPE = "name the model's preset: --model glm-130b (MODEL_ARGS in CONFIG), or mend {load}/model_config.json"
CONFIG_JSON = "copy config.json again from where the checkpoint comes from"
LFS = "git -C {load} lfs pull"
# stage -> a phrase in its fault -> what mends that one
WORDS = {
    "shards": {"git-lfs": LFS, "missing shard": COPY, "index.json": COPY, "Hugging Face": COPY},
    "shape": {"git-lfs": LFS, "model_type is": "a checkpoint of a family that is served (README.md)",
              "no config.json": CONFIG_JSON, "/config.json": CONFIG_JSON},
    "headers": {"git-lfs": LFS, "was said": SHAPE, "cannot read": "chmod a+r {load}/*/mp_rank_* {load}/*.*",
                "no memory": "ulimit -v unlimited -d unlimited"},
    "vocabulary": {"git-lfs": LFS, "ice_text.model": "cp ~/.icetk_models/ice_text.model {load}/"},
}
# stage -> code of the finding where it fails, what mends it
FAULTS = {
    "shards": ("checkpoint", "export CHECKPOINT_PATH=/the/folder/with/latest, and python tools/verify_checkpoint.py "
                             "{load}"),
    "shape": ("checkpoint-config", SHAPE),
    "headers": ("checkpoint-headers", COPY),
    "vocabulary": ("tokenizer", "copy the tokenizer's files to {load}/, or name their folder with --tokenizer-path"),
    "ids": ("vocabulary", "copy the model's own vocabulary to {load}/ (ice_text.model: or --num-image-tokens N)"),
}


@dataclasses.dataclass(frozen=True)
class Shortage:
    """Less memory than the weights of this host's processes take."""

    where: str  # what has too little
    needed: float  # bytes at least
    free: float  # bytes
    processes: int
    ways: tuple[str, ...]  # flags that would make it fit


def memory_shortage(arguments: argparse.Namespace, degree: int, processes: int) -> Shortage | None:
    """By the arithmetic with which every load begins. None where the model fits, or where its shape is not known, which
    is another finding. Imports no torch."""
    arguments = copy.copy(arguments)
    arguments.model_parallel_size = degree
    try:
        lacking, ways = short_of(arguments, Use(), default_precision("cpu"), processes)
    except UserError:
        return None
    if lacking is None:
        return None
    return Shortage(lacking.where, lacking.needed, lacking.free, processes, tuple(ways))


def check_memory(lacking: Shortage | None, where: str) -> Iterator[Finding]:
    if lacking is None:
        return
    whose = f" by {lacking.processes} processes" if lacking.processes > 1 and lacking.where == "this machine" else ""
    if "limit" in lacking.where:
        ways = ("ulimit -v unlimited -d unlimited", *lacking.ways)
    else:
        ways = lacking.ways or ("a smaller model, or a machine with more memory",)
    plan = f"{shlex.quote(sys.executable)} -m glm plan tells more"
    yield error("memory", where, f"the configured model does not fit: {lacking.needed / GB:.2f} GB are needed{whose}, "
                f"{lacking.where} has {lacking.free / GB:.2f} GB free",
                f"{'; or '.join(ways)} ({plan})")


def stages(arguments: argparse.Namespace,
           open_checkpoint: Callable[[Path, Mapping[str, int]], object]) -> dict[str, Callable[[], dict]]:
    """Stages of the probe for the arguments of a run; one that hangs on a stage that failed says nothing.

    open_checkpoint: tools.converting.source.open_source, which compares all shards' headers with one another and with
    the sizes that were said.
    """
    known: dict = {}

    def shards() -> dict:
        from glm import checkpoint

        found = checkpoint.open_checkpoint(arguments.load)
        if lost := [path for path in found.paths if not path.exists()]:  # that an index names
            raise UserError(checkpoint.missing_shard(lost[0]))
        known["shards"] = found.paths
        sizes = {path.name: path.stat().st_size for path in found.paths}
        return {"folder": str(arguments.load.resolve()), "iteration": found.iteration, "shards": found.parts,
                "bytes": sum(sizes.values()), "sizes": hashlib.sha256(repr(sorted(sizes.items())).encode()).hexdigest()}

    def shape() -> dict:
        if not arguments.load.is_dir():
            return {}
        known["config"] = config_of(arguments)
        return dataclasses.asdict(known["config"])

    def headers() -> dict:
        if "shards" not in known or "config" not in known:
            return {}
        source = open_checkpoint(arguments.load, dataclasses.asdict(known["config"]))
        if source.differing:
            raise UserError(f"{arguments.load}: {source.differing[0]} is not the same in all shards, but should be")
        return {"bits": source.bits or 0, "tensors": len(source.shards[0].tensors)}

    def vocabulary() -> dict:
        from glm.tokenizers.icetk import IcetkTokenizer, find_vocabulary

        if not arguments.load.is_dir() and arguments.tokenizer_path is None:
            return {}
        if "config" not in known and arguments.tokenizer_path is None and is_of_another_family(arguments.load):
            return {}  # which vocabulary it needs is not known before its shape
        if config := known.get("config"):
            tokenizer = FAMILIES[config.family].open_tokenizer(arguments.load, arguments.tokenizer_path, config)
        else:
            tokenizer = IcetkTokenizer(find_vocabulary(arguments.load, arguments.tokenizer_path), 0)
        known["tokenizer"], file = tokenizer, tokenizer.vocabulary_file
        return {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    def ids() -> dict:
        if "config" not in known or "tokenizer" not in known:
            return {}
        from glm.loading import check_vocabulary

        check_vocabulary(known["tokenizer"], known["config"])
        return {"used": known["tokenizer"].num_tokens}

    return {"shards": shards, "shape": shape, "headers": headers, "vocabulary": vocabulary, "ids": ids}


def is_of_another_family(folder: Path) -> bool:
    """Whether the layout is one that GLM-130B's family never had: Hugging Face's or Megatron's."""
    from glm.checkpoint.folder import OF_MEGATRON, foreign_file

    return foreign_file(folder) is not None or (folder / OF_MEGATRON).exists()


def check_model(found: Stages, arguments: argparse.Namespace, degree: int, free_disk: int,
                where: str) -> Iterator[Finding]:
    """found: outcomes of `stages`. degree: tensor-parallel ranks of the run. free_disk: bytes beside the checkpoint."""
    load = shlex.quote(str(arguments.load))
    for stage, (code, mend) in FAULTS.items():
        outcome = found.get(stage, {})
        if (fault := outcome.get("error")) and outcome["kind"] != "ModuleNotFoundError":  # which packages.check says
            mend = next((better for phrase, better in WORDS.get(stage, {}).items() if phrase in fault), mend)
            yield error(code, where, fault, mend.format(load=load))
    shape = SimpleNamespace(**found.get("shape", {}))
    if hasattr(shape, "num_layers") and (fault := fault_of_degree(shape, degree)):
        yield error("degree", where, fault, "export MP_SIZE=N with one of these")
    shards, headers = found.get("shards", {}).get("shards"), found.get("headers", {})
    if shards and shards != degree and (why := why_converted(arguments)):
        yield from check_degree(found["shards"], load, degree, why, free_disk, where)
    if "bits" in headers:
        yield from check_bits(headers["bits"], arguments, where)


def why_converted(arguments: argparse.Namespace) -> str | None:
    """What keeps another number of ranks from taking their parts out of the files; None: nothing does."""
    from glm.checkpoint import STREAMED

    return STREAMED if arguments.offload_memory_limit is not None or arguments.bminf else None


def check_degree(checkpoint: Mapping, load: str, degree: int, why: str, free_disk: int, where: str,
                 ) -> Iterator[Finding]:
    from glm.checkpoint import wrong_degree

    what, _, command = wrong_degree(checkpoint["folder"], checkpoint["shards"], degree, why).partition("; start ")
    yield error("checkpoint-degree", where, what.replace("running", "asked for (MP_SIZE)"),
                f"export MP_SIZE={checkpoint['shards']}, or {command.partition('convert it: ')[2]}")
    if free_disk < checkpoint["bytes"]:
        yield warning("disk-conversion", where, f"a converted copy of {load} takes {checkpoint['bytes'] / GB:.1f} GB, "
                      f"{free_disk / GB:.1f} GB are free beside it", "give tools/convert_tp.py an --output-folder on "
                      "another disk")


def check_bits(bits: int, arguments: argparse.Namespace, where: str) -> Iterator[Finding]:
    """bits: of the file's weights, 0 where they are not quantised."""
    wanted = arguments.quantization_bit_width
    if bits and wanted not in (None, bits):
        yield error("checkpoint-bits", where, f"{arguments.load} is quantised to {bits} bits, {wanted} are asked for",
                    f"--quantization-bit-width {bits}, or none (MODEL_ARGS in CONFIG)")
    elif not bits and arguments.from_quantized_checkpoint:
        yield error("checkpoint-bits", where, f"{arguments.load} is not quantised, but said to be",
                    "leave --from-quantized-checkpoint away (MODEL_ARGS in CONFIG)")


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of evaluation tasks: whether there is a file with something in it for every group."""

    path: str  # of their folder
    is_folder: bool
    tasks: tuple[str, ...] = ()  # names of those whose data is there
    faults: tuple[str, ...] = ()  # of task files
    missing: tuple[str, ...] = ()  # why tasks have no data
    unreadable: tuple[str, ...] = ()  # data files that this user may not read


def look_for_data(paths: Sequence[str], data_path: Path) -> Data:
    """Looks at names, not at rows: python -m evaluation --check reads these. Needs PyYAML where tasks are named."""
    is_folder = data_path.is_dir()
    if not paths:
        return Data(str(data_path), is_folder)
    from evaluation.discovery import data_files, load_tasks, missing

    try:
        configs = load_tasks(paths, data_path)
    except UserError as fault:
        return Data(str(data_path), is_folder, faults=tuple(str(fault).split("\nerror: ")))
    reasons = {config.name: missing(config) for config in configs}
    files = [file for config in configs for group in data_files(config).values() for file in group]
    return Data(str(data_path), is_folder, tuple(name for name, reason in reasons.items() if reason is None),
                missing=tuple(reason for reason in reasons.values() if reason),
                unreadable=tuple(str(file) for file in files if not os.access(file, os.R_OK)))


def check_data(data: Data, is_named: bool, where: str) -> Iterator[Finding]:
    """is_named: the user said where the data is. Tasks whose data would be in a folder that is not there have one line
    together."""
    lost = [reason for reason in data.missing if f"no folder {data.path}{os.sep}" in reason]
    if not data.is_folder and (is_named or lost):
        lacking = f"; {len(lost)} of the tasks that were named {'has' if len(lost) == 1 else 'have'} no data"
        yield error("data-path", where, f"DATA_PATH={data.path}: no such folder{lacking if lost else ''}",
                    f"export DATA_PATH=/the/folder, or bash scripts/prepare_data.sh --raw /data/raw --output "
                    f"{shlex.quote(data.path)}")
    for fault in data.faults:
        remedy = ("name those of tasks/, or your own" if "there is no such file" in fault else
                  "edit the file (docs/evaluate-your-own-tasks.md has all keys)")
        yield error("task-file", where, fault, remedy)
    for reason in data.missing if data.is_folder else [each for each in data.missing if each not in lost]:
        yield error("task-data", where, reason, "bash scripts/prepare_data.sh --list, and --allow-missing goes on "
                    "without it")
    for file in data.unreadable:
        yield error("data-readable", where, f"{file} cannot be read by this user", f"chmod a+r {shlex.quote(file)}")
