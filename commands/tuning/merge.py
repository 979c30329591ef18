"""python -m tuning merge: a checkpoint with the products of a LoRA adapter added."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.arguments import CommandParser, chosen, flags
from runtime.errors import UserError
from tuning.options import CheckpointOptions

ABOUT = """\
A checkpoint with the products of a LoRA adapter added to its weights, in the base's layout.

    python -m tuning merge --load CHECKPOINT --adapter FILE --lora-alpha 8 --save DIR
"""
DTYPES = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(description=ABOUT, prog="python -m tuning merge")
    flags(parser.add_argument_group("model"), CheckpointOptions)
    add = parser.add_argument
    add("--adapter", type=Path, required=True, metavar="FILE", help="SAT's or our own file, or a folder of peft's")
    add("--lora-alpha", type=float, metavar="X", help="of SAT's files, which do not say it (default: 1)")
    add("--lora-layout", choices=("heads", "stacked"), default=None,
        help="of three pairs: their outputs lie head by head, or one below the other (default: as the model's rows)")
    add("--save", type=Path, required=True, metavar="DIR", help="folder of the result, a new one")
    add("--save-dtype", choices=DTYPES, help="of all written weights (default: sums in float32, else as the base)")
    arguments = parser.parse_args(argv)
    options = chosen(CheckpointOptions, arguments)
    if options.load is None:
        raise UserError("no checkpoint was named: --load DIR")
    if options.bits is not None:
        raise UserError("--quantization-bit-width: a merged checkpoint keeps the base's precision; quantise the result")
    import torch

    from glm.options import ModelOptions
    from tuning.merge import merge

    deviation = merge(ModelOptions(path=options.load, model=options.model, shape=options.shape), arguments.adapter,
                      arguments.save, arguments.lora_alpha, arguments.lora_layout,
                      arguments.save_dtype and getattr(torch, arguments.save_dtype))
    print(f"merged into {arguments.save}: its logits differ from those of the adapted base by {deviation:.2g} at most",
          file=sys.stderr)
    return 0
