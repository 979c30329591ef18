"""Convert a checkpoint to another tensor-parallel degree, and quantise its linear layers if asked to.

    python tools/convert_tp.py --input-folder glm-130b --output-folder glm-130b_tp4 --target-tp 4
    python tools/convert_tp.py --input-folder glm-130b --output-folder glm-130b_int4 --target-tp 4 \\
        --quantization-bit-width 4
    python tools/convert_tp.py --verify glm-130b_tp4

A conversion that was interrupted is finished by the same command. docs/checkpoints.md says what is written.
"""

import sys
import time
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from glm.config import ModelConfig
from quantization import GROUP_SIZES
from runtime.arguments import CommandParser
from runtime.errors import printable
from runtime.program import FORESEEN, ended, terminating
from runtime.show import counted

NUMBERS = {field.name: {"int": int, "float": float}[field.type] for field in fields(ModelConfig)
           if field.type in ("int", "float")}


def make_parser() -> CommandParser:
    parser = CommandParser(description=__doc__)
    parser.add_argument("--input-folder", type=Path, metavar="IN", help="checkpoint, the folder with the file 'latest'")
    parser.add_argument("--output-folder", type=Path, metavar="OUT", help="new folder for the result")
    parser.add_argument("--target-tp", type=int, metavar="N", help="tensor-parallel degree of the result")
    parser.add_argument("--quantization-bit-width", type=int, choices=(8, 4), help="quantise the linear layers")
    parser.add_argument("--quantization-group-size", type=int, choices=GROUP_SIZES,
                        help="so many columns share a scale (default: a whole row)")
    parser.add_argument("--requantize", action="store_true",
                        help="quantise quantised weights again: one scale a row, or what the two flags above say")
    parser.add_argument("--hash", choices=("xxh3_128", "sha256"), default="xxh3_128",
                        help="kind of the hashes in manifest.json (sha256: slower, withstands intent)")
    parser.add_argument("--verify", type=Path, metavar="DIR", help="compare a checkpoint with its manifest, and end")
    shape = parser.add_argument_group("model", "needed only where the files and model_config.json do not say it")
    shape.add_argument("--model", metavar="NAME", help="shapes by name, for example glm-130b")
    for name, kind in NUMBERS.items():
        shape.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X",
                           help="overrides the shape so named")
    return parser


def carried_out(options) -> int:
    if options.verify is not None:
        from tools.verify_checkpoint import run_verify

        return run_verify([options.verify])
    from tools.converting.convert import convert
    from tools.converting.plan import Wish

    wish = Wish(options.target_tp, options.quantization_bit_width, options.quantization_group_size, options.requantize)
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


if __name__ == "__main__":
    from runtime.program import run

    run(main)
