"""python -m glm plan: what a run takes of memory and time, before it is started.

    python -m glm plan --load CHECKPOINT
    python -m glm plan --model glm-130b --fp16 --device v100-32g --model-parallel-size 8 --context 1024
    python -m glm plan --load CHECKPOINT tasks/chinese --data-path DIR      hours of every task, too
    python -m glm plan --hardware                                           which machines GLM-130B fits on, and how

Memory is arithmetic on what the programs allocate; times are from the rates of this machine, measured now, or from the
figures that a GPU's maker gives (planning/devices.yaml). docs/plan.md says how far off they are. Exit codes: 0 the run
fits, 2 it does not, or a mistake in the arguments (one line).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from commands.model import DEFAULT_CHECKPOINT, add_model_arguments
from generation.batching import CPU_READ_TOKENS
from planning import devices, machine, memory, ranks, table
from planning.check import Use, config_of, looked_at, remedies, setup_of
from planning.machine import default_precision, fastest_precision, place_of
from planning.shapes import Format, Setup
from planning.stored import require_own_model
from runtime.arguments import CommandParser
from runtime.errors import UserError, printable
from runtime.files import REPOSITORY
from runtime.program import FAILED, ended
from runtime.resources import local_ranks

DEFAULT_DATA = REPOSITORY / "data"
USUAL_CONTEXT = 512


def parser() -> CommandParser:
    found = CommandParser(__doc__, prog="python -m glm plan")
    add_model_arguments(found)
    found.set_defaults(load=None)
    run = found.add_argument_group("the run")
    run.add_argument("--context", type=int, metavar="N", help="tokens that are read (default: 512, or half of the "
                                                              "model's longest sequence)")
    run.add_argument("--new-tokens", type=int, metavar="N", help="tokens that are written (default: as many)")
    run.add_argument("--batch-size", type=int, default=1, metavar="N", help="sequences at a time (default: 1)")
    run.add_argument("--num-beams", type=int, default=1, metavar="N", help="beams of each (default: 1)")
    run.add_argument("--hardware", action="store_true",
                     help="instead: the machines that a model (default: glm-130b) fits on, as a table in Markdown")
    run.add_argument("--devices", action="store_true", help="instead: the names that --device knows, with their source")
    run.add_argument("--json", nargs="?", const="-", metavar="FILE", help="as JSON, to standard output or a file")
    tasks = found.add_argument_group("evaluation")
    tasks.add_argument("paths", nargs="*", metavar="TASK", help="task files, folders or globs: hours of each, too")
    tasks.add_argument("--data-path", type=Path, default=Path(os.environ.get("DATA_PATH") or DEFAULT_DATA),
                       metavar="DIR", help="folder of their data (default: $DATA_PATH, else data/ of the repository)")
    tasks.add_argument("--allow-missing", action="store_true", help="leave out tasks without data")
    tasks.add_argument("--limit", type=int, metavar="N", help="only the first N rows of every file")
    tasks.add_argument("--max-batch-tokens", type=int, metavar="N", help="as the evaluation's")
    tasks.add_argument("--micro-batch-size", type=int, metavar="N", help="as the evaluation's")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if len(words) == 2 and words[0] == ranks.COMMAND:
        if (line := ranks.of_rank(words[1])) is not None:
            print(line)
        return 0
    arguments = parser().parse_args(words)
    try:
        check(arguments)
        if arguments.hardware:
            from glm.config import ModelConfig

            print("\n".join(table.machines(ModelConfig.from_name(arguments.model or "glm-130b"))))
            return 0
        if arguments.devices:
            print("\n".join(f"{name:<12} {device.label}: {device.source}" for name, device in devices.known().items()))
            return 0
        return show(plan(arguments), arguments.json)
    except (UserError, KeyboardInterrupt) as error:
        return ended(error)


def check(arguments: argparse.Namespace) -> None:
    for name, least in (("context", 1), ("new_tokens", 1), ("batch_size", 1), ("num_beams", 1), ("limit", 1),
                        ("max_batch_tokens", 1), ("micro_batch_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    if arguments.load is None and arguments.model is None:
        arguments.load = DEFAULT_CHECKPOINT


def show(made: table.Plan, where: str | None) -> int:
    if where is None:
        print("\n".join(map(printable, table.lines(made))))
    else:
        text = json.dumps(table.as_json(made), indent=2)
        if where == "-":
            print(text)
        else:
            try:
                Path(where).write_text(text + "\n", encoding="utf-8")
            except OSError as error:
                raise UserError(f"--json {where}: {error.strerror}") from None
    return 0 if made.fits else FAILED


def plan(arguments: argparse.Namespace) -> table.Plan:
    config = config_of(arguments)
    found = looked_at(arguments, config)
    if found is not None:
        require_own_model(found, config)
    device = None
    if arguments.device not in (None, "cpu") and not arguments.device.startswith("cuda"):
        device = devices.named(arguments.device)
        kind, precision = "cuda", arguments.precision or ("bf16" if "bf16" in device.rates else "fp16")
    else:
        kind, gpus = place_of(arguments.device, local_ranks())
        precision = arguments.precision or fastest_precision(kind, gpus, default_precision("cpu"))
    setup = with_sequences(setup_of(arguments, config, found, kind, precision, Use()), arguments)
    if device is None:
        if line := machine.note_on(arguments.precision, kind, machine.instructions()):
            print(f"note: {line}", file=sys.stderr)
        if found is None:
            setup = replace(setup, file=Format("fp16"))
        tried = replace(setup, scored=1) if arguments.paths else setup  # most tasks score
        device = machine.host(tried, memory.plan(setup).weights) if kind == "cpu" else gpu_here(gpus)
    setup = replace(setup, simple_gpu=device.is_simple_gpu)
    disk = None if found is None else machine.disk_rate(found.first)
    hours = {} if not arguments.paths else hours_of(arguments, setup, device, disk)
    made = table.make(setup, device, disk, hours)
    if made.fits:
        return made
    use = Use((0,) * arguments.batch_size, arguments.num_beams, says_new_tokens=True)
    ways = remedies(setup, use, lambda tried: table.fits(tried, memory.plan(tried), device), arguments.load,
                    kind == "cuda")
    return replace(made, ways=tuple(ways))


def with_sequences(setup: Setup, arguments: argparse.Namespace) -> Setup:
    """The setup with the sequences that the arguments ask for."""
    longest = setup.config.max_sequence_length
    context = arguments.context or max(1, min(USUAL_CONTEXT, longest // 2))
    new_tokens = arguments.new_tokens or max(1, min(context, longest - context))
    if context + new_tokens > longest:
        raise UserError(f"--context {context} and --new-tokens {new_tokens} together are more than the model takes "
                        f"(max_sequence_length {longest})")
    rows = arguments.batch_size
    return replace(setup, rows=rows * arguments.num_beams, read_rows=rows, context=context, new_tokens=new_tokens,
                   pass_tokens=max(CPU_READ_TOKENS, context) if setup.kind == "cpu" else None)


def gpu_here(gpus: list[machine.Gpu]) -> devices.Device:
    """This machine's GPU, with the figures of devices.yaml for one of its name and memory."""
    if not gpus:
        raise UserError("--device cuda: no GPU is found here; name one (--devices lists them) or take --device cpu")
    gpu = gpus[0]
    for device in devices.known().values():
        kind, size = device.label.split()[0], device.memory / devices.USABLE
        name = " ".join(word for word in device.label.split()[:-2]) or kind
        if name.lower() in gpu.name.replace("-", " ").lower() and abs(gpu.total - size) < 0.1 * size:
            return replace(device, memory=gpu.free)
    raise UserError(f"--device cuda: {gpu.name} is not in {devices.FILE.name}; name a device like it (--devices lists "
                    "them)")


def hours_of(arguments: argparse.Namespace, setup: Setup, device: devices.Device, disk: float | None) -> dict:
    from evaluation.hours import hours
    from glm.families import FAMILIES
    from glm.loading import check_vocabulary

    if arguments.load is None:
        raise UserError("hours of tasks need a checkpoint's vocabulary; name one with --load")
    family = FAMILIES[setup.config.family]
    tokenizer = family.open_tokenizer(arguments.load, arguments.tokenizer_path, setup.config)
    check_vocabulary(tokenizer, setup.config)
    return hours(arguments.paths, arguments.data_path, tokenizer, setup, device, disk, arguments.limit,
                 arguments.max_batch_tokens, arguments.micro_batch_size, arguments.allow_missing)
