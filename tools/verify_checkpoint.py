"""Is a checkpoint whole and unchanged? Names the file, and in it the tensor, that is missing, cut off or changed.

    python tools/verify_checkpoint.py glm-130b                        # against its manifest.json, where there is one
    python tools/verify_checkpoint.py glm-130b --against good.json
    python tools/verify_checkpoint.py glm-130b --write-manifest       # of a checkpoint that is known to be good
    python tools/verify_checkpoint.py downloads/                      # glm-130b-sat.tar.part_* before they are joined
    python tools/verify_checkpoint.py downloads/ --against SHA256SUMS

Exit code 0: nothing wrong. 1: something is. 2: the command was wrong.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from runtime.arguments import CommandParser
from runtime.errors import UserError, printable
from runtime.show import counted


def make_parser() -> CommandParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH",
                        help="checkpoint folder, folder with the parts of an archive, or these parts")
    parser.add_argument("--against", type=Path, metavar="FILE",
                        help="manifest (default: manifest.json in the folder), for parts also a list of sha256sum")
    parser.add_argument("--write-manifest", action="store_true", help="check, then write manifest.json into the folder")
    parser.add_argument("--hash", choices=("xxh3_128", "sha256"), default="xxh3_128",
                        help="kind of the hashes in a manifest that is written")
    return parser


def run_verify(paths: Sequence[Path], against: Path | None = None, write: bool = False, kind: str = "xxh3_128") -> int:
    from tools.converting.manifest import NAME as MANIFEST
    from tools.converting.manifest import write_manifest
    from tools.converting.parts import check_parts, find_parts, make_parts_manifest

    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    parts = find_parts(paths)
    is_checkpoint = len(paths) == 1 and paths[0].is_dir() and ((paths[0] / "latest").exists() or not parts)
    if not (_looks_like_checkpoint(folder) if is_checkpoint else parts):
        raise UserError(f"{paths[0]}: neither a checkpoint folder (with the file 'latest') nor parts of an archive "
                        "(NAME.part_00 ...)")
    if write and (folder / MANIFEST).exists():
        raise UserError(f"{folder / MANIFEST} exists already; delete it to make a new one")
    if is_checkpoint:
        report, how = _check_checkpoint(paths[0], against)
        make = _make_manifest
    else:
        report, how = check_parts(parts, against), f"{len(parts)} parts"
        make = make_parts_manifest
    for problem in report.problems:
        print(printable(str(problem)))
    if report.problems:
        return 1
    print(printable(f"{folder}: whole: {how}, {report.bytes / 1e9:.2f} GB"))
    if write:
        write_manifest(folder / MANIFEST, make(folder if is_checkpoint else parts, kind))
        print(printable(f"{folder / MANIFEST} written"))
    return 0


def _looks_like_checkpoint(folder: Path) -> bool:
    """Or did before something of it was lost."""
    from glm.checkpoint import CONVERTING, LATEST
    from tools.converting.manifest import NAME

    return (any((folder / name).exists() for name in (LATEST, NAME, CONVERTING))
            or any(folder.glob("*/mp_rank_*")))


def _make_manifest(folder: Path, kind: str):
    from tools.converting.verify import make_manifest

    return make_manifest(folder, kind)


def _check_checkpoint(folder: Path, against: Path | None):
    """(report, what was looked at)"""
    from tools.converting.manifest import NAME, read_manifest
    from tools.converting.verify import Report, against_manifest, alone

    file = against or folder / NAME
    if against is None and not file.exists():
        report = alone(folder)
        shards = counted(report.files, "shard")
        return report, f"{shards}, {'by themselves' if report.files != 1 else 'by itself'} (no {NAME} to compare with)"
    try:
        manifest = read_manifest(file)
    except UserError as error:
        if against is not None:
            raise
        return Report([str(error)], 0, 0), ""
    report = against_manifest(folder, manifest)
    return report, f"{report.files} files as in {file.name}"


def main(arguments: list[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    try:
        return run_verify(options.paths, options.against, options.write_manifest, options.hash)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(printable(f"error: {error.filename or options.paths[0]}: {error.strerror}"), file=sys.stderr)
        return 2


if __name__ == "__main__":
    from runtime.program import run

    run(main)
