"""The flags that say which model runs, where and in which precision; and loading it as they say."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

from glm.config import ARCHITECTURE, PRESETS, ROTARY_TABLES
from planning import processor
from planning.processor import default_device, default_precision
from quantization import GROUP_SIZES
from runtime.errors import UserError, printable
from runtime.program import is_first_rank

DEFAULT_CHECKPOINT = Path(__file__).resolve().parent.parent / "checkpoints" / "glm-small"
BMINF_SHARE = 0.5  # of what is free goes to the weights with --bminf; caches and activations need room, too
PRECISIONS = ("fp16", "bf16", "fp32")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--load and everything else that decides which model runs, where and in which precision."""
    group = parser.add_argument_group("model")
    group.add_argument("--load", type=Path, metavar="DIR",
                       default=Path(os.environ.get("CHECKPOINT_PATH") or DEFAULT_CHECKPOINT),
                       help="checkpoint folder, the one with the file 'latest' (default: $CHECKPOINT_PATH, else the "
                            "embedded model)")
    group.add_argument("--tokenizer-path", type=Path, metavar="FILE",
                       help="vocabulary file ice_text.model (default: beside the checkpoint, else ~/.icetk_models)")
    group.add_argument("--model", metavar="NAME", help=f"shapes by name: {', '.join(PRESETS)} (default: the "
                                                       "checkpoint's model_config.json)")
    for name, kind in ARCHITECTURE.items():
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X",
                           help=argparse.SUPPRESS if name == "layernorm_epsilon" else "overrides the shape so named")
    group.add_argument("--position-encoding-2d", action="store_true", default=None, help="two-channel positions")
    group.add_argument("--rotary-table", choices=ROTARY_TABLES, help="precision of the rotary table")
    group.add_argument("--model-parallel-size", type=int, metavar="N",
                       help="tensor-parallel degree (default: the number of shards)")
    group.add_argument("--quantization-bit-width", type=int, choices=(4, 8),
                       help="quantise the linear layers while loading")
    group.add_argument("--quantization-group-size", type=int, choices=GROUP_SIZES,
                       help="so many columns share a scale (default: a whole row)")
    group.add_argument("--from-quantized-checkpoint", action="store_true",
                       help="say that the file is quantised; found out without it")
    group.add_argument("--offload-memory-limit", "--bminf-memory-limit", type=_gigabytes, metavar="GB",
                       help="the weights may take so much of the device, 10^9 bytes per rank; layers beyond are read "
                            "again for every pass (docs/low-resource-inference.md)")
    group.add_argument("--bminf", action="store_true",
                       help="like --offload-memory-limit, with the limit found out from what is free")
    group.add_argument("--no-plan", action="store_true",
                       help="load the model even if it cannot fit in memory (python -m glm plan says what it takes)")
    group.add_argument("--sequential-initialization", action="store_true",
                       help="ranks read their shards one after another")
    group.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda where there is a GPU)")
    precision = group.add_mutually_exclusive_group()
    for name in PRECISIONS:
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name,
                               help=f"run in {name} (default: what the device computes fastest)")
    group.add_argument("--local-rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it
    # flags of the original's configurations whose meaning is fixed here
    group.add_argument("--mode", choices=("inference",), help=argparse.SUPPRESS)
    group.add_argument("--layernorm-order", choices=("post",), help=argparse.SUPPRESS)
    group.add_argument("--tokenizer-type", choices=("icetk-glm-130B",), help=argparse.SUPPRESS)
    group.add_argument("--skip-init", action="store_true", help=argparse.SUPPRESS)


def _gigabytes(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of GB above 0, for example 12 or 0.5")
    return value


def announce_loading(arguments: argparse.Namespace) -> None:
    """Says on a terminal what is being waited for, and everywhere if it will be slow for no need."""
    device = arguments.device or (default_device() if arguments.precision else "cpu")
    if is_first_rank() and (line := processor.note_on(arguments.precision, device, processor.flags())):
        print(f"note: {line}", file=sys.stderr, flush=True)
    if is_first_rank() and sys.stderr.isatty():
        here, folder = Path.cwd(), arguments.load
        name = folder.relative_to(here) if folder.is_relative_to(here) else folder
        print(printable(f"Loading {name} ..."), file=sys.stderr, flush=True)


def require_fit(arguments: argparse.Namespace, purpose: str, use=None) -> None:
    """Raises UserError where the model and the sequences in use (planning.wanted.Use; None: the model alone) cannot fit
    on this machine, with the flags that would make them fit; not with --no-plan. Imports no torch."""
    from planning.check import require_fit as required
    from planning.wanted import Use

    check_folder(arguments)
    required(arguments, purpose, use or Use(), default_precision("cpu"))


def check_folder(arguments: argparse.Namespace) -> None:
    if not os.path.isdir(arguments.load):
        raise UserError(f"--load {arguments.load}: no such folder; name the one that holds the checkpoint's file "
                        f"'latest' (or set CHECKPOINT_PATH)")


def load_model(arguments: argparse.Namespace, timeout_seconds: float = 1800):
    """Start the processes' group and load what the arguments say: (model, tokenizer). Takes seconds: imports torch.

    timeout_seconds: how long ranks wait for one another later on.
    """
    check_folder(arguments)
    import glm

    start_processes(arguments, timeout_seconds)
    device = arguments.device or default_device()
    shapes = {name: getattr(arguments, name) for name in (*ARCHITECTURE, "position_encoding_2d", "rotary_table")}
    return glm.load(
        arguments.load, device, arguments.precision or default_precision(device), arguments.tokenizer_path,
        arguments.quantization_bit_width, model=arguments.model, sequential=arguments.sequential_initialization,
        group_size=arguments.quantization_group_size, from_quantized=arguments.from_quantized_checkpoint,
        offload_memory_limit=offload_memory_limit(arguments, device),
        **{name: value for name, value in shapes.items() if value is not None})


def offload_memory_limit(arguments: argparse.Namespace, device: str) -> float | None:
    """GB that the weights may take on the device, as is said or, with --bminf, found out; None: all stay there."""
    if arguments.offload_memory_limit is not None or not arguments.bminf:
        return arguments.offload_memory_limit
    from runtime.memory import free_memory, local_ranks

    return BMINF_SHARE * free_memory(device) / local_ranks() / 1e9


def start_processes(arguments: argparse.Namespace, timeout_seconds: float = 1800) -> None:
    """The processes' group, where the arguments say how many belong together; else loading starts it. Imports torch."""
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    if arguments.model_parallel_size is not None:
        from runtime import parallel

        parallel.start(arguments.model_parallel_size, timeout_seconds=timeout_seconds)
