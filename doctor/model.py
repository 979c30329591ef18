"""The configured model: its checkpoint by the headers of its files, its vocabulary, and whether they fit the run."""

from __future__ import annotations

import argparse
import hashlib
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from doctor.finding import Finding, error, warning
from doctor.machine import GB
from doctor.probe import Stages
from runtime.errors import UserError

# outcome of a stage -> code of the finding, what mends it
COPY = "copy the file again; python tools/verify_checkpoint.py {load} then checks all of it"
SHAPE = "name the model's preset: --model glm-130b (MODEL_ARGS in CONFIG), or mend {load}/model_config.json"
# what mends a fault of the headers, where it says so
WORDS = {"was said": SHAPE, "cannot read": "chmod a+r {load}/*/mp_rank_*",
         "no memory": "ulimit -v unlimited -d unlimited"}
FAULTS = {
    "shards": ("checkpoint", "export CHECKPOINT_PATH=/the/folder/with/latest, and python tools/verify_checkpoint.py "
                             "{load}"),
    "shape": ("checkpoint-config", SHAPE),
    "headers": ("checkpoint-headers", COPY),
    "vocabulary": ("tokenizer", "cp ~/.icetk_models/ice_text.model {load}/"),
    "ids": ("vocabulary", "cp /the/right/ice_text.model {load}/, or --num-image-tokens N"),
}


def stages(arguments: argparse.Namespace, overrides: Mapping[str, object],
           open_checkpoint: Callable[[Path, Mapping[str, int]], object]) -> dict[str, Callable[[], dict]]:
    """Of the probe, for the arguments of a run. open_checkpoint: tools.converting.source.open_source, which compares
    all shards' headers with one another and with the sizes that were said. What hangs on an earlier stage that failed
    says nothing."""
    known: dict = {}

    def shards() -> dict:
        from glm.checkpoint import find_shards

        known["shards"] = paths = find_shards(arguments.load)
        sizes = {path.name: path.stat().st_size for path in paths}
        return {"folder": str(arguments.load.resolve()), "iteration": paths[0].parent.name, "shards": len(paths),
                "bytes": sum(sizes.values()), "sizes": hashlib.sha256(repr(sorted(sizes.items())).encode()).hexdigest()}

    def shape() -> dict:
        import dataclasses

        from glm.checkpoint import read_config

        if not arguments.load.is_dir():
            return {}
        known["config"] = read_config(arguments.load, arguments.model, **overrides)
        return dataclasses.asdict(known["config"])

    def headers() -> dict:
        if "shards" not in known or "config" not in known:
            return {}
        config = known["config"]
        given = {name: getattr(config, name) for name in ("num_layers", "hidden_size", "num_attention_heads",
                                                          "inner_hidden_size", "vocab_size")}
        source = open_checkpoint(arguments.load, given)
        if source.differing:
            raise UserError(f"{arguments.load}: {source.differing[0]} is not the same in all shards, but should be")
        return {"bits": source.bits or 0, "tensors": len(source.shards[0].tensors)}

    def vocabulary() -> dict:
        from glm.tokenizers.icetk import IcetkTokenizer, find_vocabulary

        if not arguments.load.is_dir() and arguments.tokenizer_path is None:
            return {}
        file = find_vocabulary(arguments.load, arguments.tokenizer_path)
        images = known["config"].num_image_tokens if "config" in known else 0
        known["tokenizer"] = IcetkTokenizer(file, images)
        return {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    def ids() -> dict:
        if "config" not in known or "tokenizer" not in known:
            return {}
        from glm.loading import check_vocabulary

        check_vocabulary(known["tokenizer"], known["config"])
        return {"used": known["tokenizer"].num_tokens}

    return {"shards": shards, "shape": shape, "headers": headers, "vocabulary": vocabulary, "ids": ids}


def check(found: Stages, arguments: argparse.Namespace, degree: int, free_disk: int, where: str) -> Iterator[Finding]:
    """found: outcomes of `stages`. degree: tensor-parallel ranks of the run. free_disk: bytes beside the checkpoint."""
    load = shlex.quote(str(arguments.load))
    for stage, (code, mend) in FAULTS.items():
        outcome = found.get(stage, {})
        if (fault := outcome.get("error")) and outcome["kind"] != "ModuleNotFoundError":  # which packages.check says
            if stage == "headers":
                mend = next((better for phrase, better in WORDS.items() if phrase in fault), mend)
            yield error(code, where, fault, mend.format(load=load))
    shards, headers = found.get("shards", {}).get("shards"), found.get("headers", {})
    if shards and shards != degree and (why := why_converted(headers, arguments)):
        yield from check_degree(found["shards"], load, degree, why, free_disk, where)
    if "bits" in headers:
        yield from check_bits(headers["bits"], arguments, where)


def why_converted(headers: Mapping, arguments: argparse.Namespace) -> str | None:
    """What keeps another number of ranks from taking their parts out of the files; None: nothing does."""
    from glm.checkpoint import QUANTISED, STREAMED

    if headers.get("bits"):
        return QUANTISED
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
