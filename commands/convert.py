"""tools/convert_tp.py and tools/verify_checkpoint.py: checkpoints converted, and looked over."""

import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from glm.checkpoint import CONVERTING, HUGGING_FACE_CONFIG, HUGGING_FACE_WEIGHTS, LATEST, OF_MEGATRON
from glm.config import ModelConfig
from quantization import GROUP_SIZES
from runtime.arguments import CommandParser
from runtime.errors import UserError, printable
from runtime.hashing import DEFAULT_HASH, HASHES
from runtime.program import FORESEEN, ended, terminating
from runtime.show import counted
from tools.converting import manifest as manifests

ABOUT_CONVERTING = """\
Convert a checkpoint of any layout to another tensor-parallel degree, and quantise its linear layers if asked to.

    python tools/convert_tp.py --input-folder glm-130b --output-folder glm-130b_tp4 --target-tp 4
    python tools/convert_tp.py --input-folder glm-130b --output-folder glm-130b_int4 --target-tp 4 \\
        --quantization-bit-width 4
    python tools/convert_tp.py --input-folder chatglm2-6b --output-folder chatglm2_tp4 --target-tp 4
    python tools/convert_tp.py --verify glm-130b_tp4

A conversion that was interrupted is finished by the same command. docs/checkpoints.md says what is written.
"""
ABOUT_VERIFYING = """\
Is a checkpoint whole and unchanged? Names the file, and in it the tensor, that is missing, cut off or changed.

    python tools/verify_checkpoint.py glm-130b                        # against its manifest.json, where there is one
    python tools/verify_checkpoint.py glm-130b --against good.json
    python tools/verify_checkpoint.py glm-130b --write-manifest       # of a checkpoint that is known to be good
    python tools/verify_checkpoint.py downloads/                      # glm-130b-sat.tar.part_* before they are joined
    python tools/verify_checkpoint.py downloads/ --against SHA256SUMS

Exit code 0: nothing wrong. 1: something is. 2: the command was wrong.
"""
MANIFEST = manifests.NAME
NUMBERS = {field.name: {"int": int, "float": float}[field.type] for field in fields(ModelConfig)
           if field.type in ("int", "float")}


def make_parser() -> CommandParser:
    parser = CommandParser(description=ABOUT_CONVERTING)
    parser.add_argument("--input-folder", type=Path, metavar="IN",
                        help="checkpoint: the folder with the file 'latest', or one of Hugging Face's or Megatron's")
    parser.add_argument("--output-folder", type=Path, metavar="OUT", help="new folder for the result")
    parser.add_argument("--target-tp", type=int, metavar="N", help="tensor-parallel degree of the result")
    parser.add_argument("--quantization-bit-width", type=int, choices=(8, 4), help="quantise the linear layers")
    parser.add_argument("--quantization-group-size", type=int, choices=GROUP_SIZES,
                        help="so many columns share a scale (default: a whole row)")
    parser.add_argument("--requantize", action="store_true",
                        help="quantise quantised weights again: one scale a row, or what the two flags above say")
    parser.add_argument("--format", choices=("sat", "megatron"), default="sat",
                        help="layout of the result: the toolkit's own, or, for a GLM, Megatron's (default: sat)")
    parser.add_argument("--hash", choices=HASHES, default=DEFAULT_HASH,
                        help="kind of the hashes in manifest.json (sha256: slower, withstands intent)")
    parser.add_argument("--verify", type=Path, metavar="DIR", help="compare a checkpoint with its manifest, and end")
    add_shape(parser)
    return parser


def add_shape(parser: CommandParser) -> None:
    shape = parser.add_argument_group("model", "needed only where the files and model_config.json do not say it")
    shape.add_argument("--model", metavar="NAME", help="shapes by name, for example glm-130b")
    for name, kind in NUMBERS.items():
        shape.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X",
                           help="overrides the shape so named")


def carried_out(options) -> int:
    if options.verify is not None:
        return run_verify([options.verify])
    from tools.converting.convert import convert
    from tools.converting.plan import Wish

    wish = Wish(options.target_tp, options.quantization_bit_width, options.quantization_group_size,
                options.requantize, options.format)
    begin = time.monotonic()
    outcome = convert(options.input_folder, options.output_folder, wish,
                      {name: getattr(options, name) for name in NUMBERS}, options.model, options.hash)
    seconds = time.monotonic() - begin
    shards = counted(wish.degree, "shard")
    if not outcome.written:
        print(printable(f"{options.output_folder}: {shards}, finished before"))
        return 0
    before = f" ({outcome.kept} of them finished before)" if outcome.kept else ""
    print(printable(f"{options.output_folder}: {shards}{before}, {outcome.bytes / 1e9:.2f} GB in {seconds:.1f} s, "
                    "manifest.json beside them"))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    needed = ("input_folder", "output_folder", "target_tp")
    for name in needed:
        if (getattr(options, name) is None) is (options.verify is None):
            parser.error(f"--{name.replace('_', '-')} " + ("is needed (or --verify DIR)" if options.verify is None else
                                                           "has no place beside --verify DIR, which only compares"))
    try:
        with terminating():
            return carried_out(options)
    except FORESEEN as error:
        return ended(error, "the same command goes on")


def make_verify_parser() -> CommandParser:
    parser = CommandParser(description=ABOUT_VERIFYING)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH",
                        help="checkpoint folder, folder with the parts of an archive, or these parts")
    parser.add_argument("--against", type=Path, metavar="FILE",
                        help="manifest (default: manifest.json in the folder), for parts also a list of sha256sum")
    parser.add_argument("--write-manifest", action="store_true", help="check, then write manifest.json into the folder")
    parser.add_argument("--hash", choices=HASHES, default=DEFAULT_HASH,
                        help="kind of the hashes in a manifest that is written")
    return parser


def run_verify(paths: Sequence[Path], against: Path | None = None, write: bool = False,
               kind: str = DEFAULT_HASH) -> int:
    """Prints what is wrong with a checkpoint or with the parts of an archive, or that nothing is; the exit code."""
    from tools.converting.parts import check_parts, find_parts, make_parts_manifest
    from tools.converting.verify import make_manifest

    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    parts = find_parts(paths)
    is_checkpoint = len(paths) == 1 and paths[0].is_dir() and (_names_shards(folder) or not parts)
    if not (_looks_like_checkpoint(folder) if is_checkpoint else parts):
        raise UserError(f"{paths[0]}: neither a checkpoint folder (with the file 'latest') nor parts of an archive "
                        "(NAME.part_00 ...)")
    if write and (folder / MANIFEST).exists():
        raise UserError(f"{folder / MANIFEST} exists already; delete it to make a new one")
    if is_checkpoint:
        report, how = _check_checkpoint(paths[0], against)
        make = make_manifest
    else:
        report, how = check_parts(parts, against), f"{len(parts)} parts"
        make = make_parts_manifest
    for problem in report.problems:
        print(printable(str(problem)))
    if report.problems:
        return 1
    print(printable(f"{folder}: whole: {how}, {report.bytes / 1e9:.2f} GB"))
    if write:
        manifests.write_manifest(folder / MANIFEST, make(folder if is_checkpoint else parts, kind))
        print(printable(f"{folder / MANIFEST} written"))
    return 0


def _names_shards(folder: Path) -> bool:
    return any((folder / name).exists() for name in (LATEST, OF_MEGATRON, *HUGGING_FACE_WEIGHTS))


def _looks_like_checkpoint(folder: Path) -> bool:
    """Or did before something of it was lost."""
    others = (MANIFEST, CONVERTING, HUGGING_FACE_CONFIG)
    return (_names_shards(folder) or any((folder / name).exists() for name in others)
            or any(any(folder.glob(pattern)) for pattern in ("*/mp_rank_*", "mp_rank_*")))


def _check_checkpoint(folder: Path, against: Path | None):
    """(report, what was looked at)"""
    from tools.converting.verify import Report, against_manifest, alone

    file = against or folder / MANIFEST
    if against is None and not file.exists():
        report = alone(folder)
        shards = counted(report.files, "shard")
        how = "by themselves" if report.files != 1 else "by itself"
        return report, f"{shards}, {how} (no {MANIFEST} to compare with)"
    try:
        expected = manifests.read_manifest(file)
    except UserError as error:
        if against is not None:
            raise
        return Report([str(error)], 0, 0), ""
    report = against_manifest(folder, expected)
    return report, f"{report.files} files as in {file.name}"


def verify(arguments: list[str] | None = None) -> int:
    options = make_verify_parser().parse_args(arguments)
    try:
        return run_verify(options.paths, options.against, options.write_manifest, options.hash)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(printable(f"error: {error.filename or options.paths[0]}: {error.strerror}"), file=sys.stderr)
        return 2
