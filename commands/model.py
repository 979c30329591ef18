"""The flags that say which model runs, where and in which precision; and loading it as they say."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from glm.options import ModelOptions
from planning import machine
from planning.machine import default_device, default_precision
from runtime.arguments import chosen, flags
from runtime.errors import UserError, printable
from runtime.files import REPOSITORY
from runtime.program import is_first_rank

DEFAULT_CHECKPOINT = REPOSITORY / "checkpoints" / "glm-small"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--load and everything else that decides which model runs, where and in which precision (glm.options)."""
    group = parser.add_argument_group("model")
    flags(group, ModelOptions)
    parser.set_defaults(load=Path(os.environ.get("CHECKPOINT_PATH") or DEFAULT_CHECKPOINT))
    group.add_argument("--no-plan", action="store_true",
                       help="load the model even if it cannot fit in memory (python -m glm plan says what it takes)")
    group.add_argument("--local-rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it
    # flags of the original's configurations whose meaning is fixed here
    group.add_argument("--mode", choices=("inference",), help=argparse.SUPPRESS)
    group.add_argument("--layernorm-order", choices=("post",), help=argparse.SUPPRESS)
    group.add_argument("--tokenizer-type", choices=("icetk-glm-130B",), help=argparse.SUPPRESS)
    group.add_argument("--skip-init", action="store_true", help=argparse.SUPPRESS)


def announce_loading(arguments: argparse.Namespace) -> None:
    """Say on a terminal what is loading, and everywhere if the precision makes this processor needlessly slow."""
    device = arguments.device or (default_device() if arguments.precision else "cpu")
    if is_first_rank() and (line := machine.note_on(arguments.precision, device, machine.instructions())):
        print(f"note: {line}", file=sys.stderr, flush=True)
    if is_first_rank() and sys.stderr.isatty():
        here, folder = Path.cwd(), arguments.load
        name = folder.relative_to(here) if folder.is_relative_to(here) else folder
        print(printable(f"Loading {name} ..."), file=sys.stderr, flush=True)


def require_fit(arguments: argparse.Namespace, purpose: str, use=None) -> None:
    """Raises UserError where the model and the sequences in use (planning.check.Use; None: the model alone) cannot fit
    on this machine, with the flags that would make them fit; not with --no-plan. Imports no torch."""
    from planning.check import Use
    from planning.check import require_fit as required

    check_folder(arguments)
    required(arguments, purpose, use or Use(), default_precision("cpu"))


def check_folder(arguments: argparse.Namespace) -> None:
    if not os.path.isdir(arguments.load):
        raise UserError(f"--load {arguments.load}: no such folder; name the one that holds the checkpoint's file "
                        f"'latest' (or set CHECKPOINT_PATH)")


def load_model(arguments: argparse.Namespace, timeout_seconds: float = 1800, **changed):
    """Start the processes' group and load what the arguments say: (model, tokenizer). Takes seconds: imports torch.

    timeout_seconds: how long ranks wait for one another later on. changed: fields of ModelOptions that are not as the
    arguments say.
    """
    check_folder(arguments)
    from glm import loading

    start_processes(arguments, timeout_seconds)
    options = replace(chosen(ModelOptions, arguments), **changed)
    device = options.device or default_device()
    return loading.load(replace(options, device=device, dtype=options.dtype or default_precision(device)))


def start_processes(arguments: argparse.Namespace, timeout_seconds: float = 1800) -> None:
    """The processes' group, where the arguments say how many belong together; else loading starts it. Imports torch."""
    if arguments.local_rank is not None:
        os.environ.setdefault("LOCAL_RANK", str(arguments.local_rank))
    if arguments.model_parallel_size is not None:
        from runtime import parallel

        parallel.start(arguments.model_parallel_size, timeout_seconds=timeout_seconds, device=arguments.device)
