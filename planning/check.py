"""Before a run is loaded: what its command line asks for, whether it can fit, and the flags that would make it fit.

Only what is certain is counted: weights, the cache that the command is sure to allocate, what Python and torch take at
least. A run that passes may still be short of memory later; one that is refused cannot fit, or would read its weights
from the disk for every token without being asked to (--offload-memory-limit does that in order). Advice is tried by the
arithmetic that refused the run.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from glm.checkpoint import open_checkpoint, read_config
from glm.config import FIELDS, ModelConfig
from glm.options import holds_int8_vocabulary
from glm.spec import fault_of_degree, undivided
from planning import machine, memory, stored
from planning.memory import cache_bytes, least_offloaded, on_device
from planning.shapes import Format, Setup, linears, weights
from planning.stored import Stored, require_own_model
from runtime import resources
from runtime.errors import UserError

ADDED_TOKENS = 8  # of a prompt without masks: blank, mask, sop, end
LEAST_PROCESS = 0.14e9  # bytes of its own that a process with torch has: memory.PROCESS, less what is mapped
LEAST_ADDRESSES = 0.6e9  # bytes of address space that Python, torch and their threads take
LEAST_CUDA = 0.25e9  # bytes of a GPU that CUDA takes for itself
TOLERANCE = 0.97  # of what is counted: the constants and the free memory are not known to the byte
LENGTH_STEP = 64  # tokens
OFFLOAD_STEP = 1e8  # bytes
MOST_DEGREE = 8  # GPUs that machines have, as a rule


@dataclass(frozen=True)
class Use:
    """What generation is to hold in its cache."""

    sizes: tuple[int, ...] = ()  # bytes of the prompts (a token has at least one); empty: nothing is generated
    beams: int = 1  # of each prompt
    batch_size: int | None = None  # prompts at a time; None: by `bounds`
    out_seq_length: int | None = None
    max_gen_length: int | None = None
    bounds: Callable[[int, int], tuple[int, int]] | None = None  # generation.batching.bounds
    says_new_tokens: bool = False  # the command has a flag --new-tokens, as plan does

    def places(self, config: ModelConfig) -> int:
        """Places that a row is certain to have: room for its whole answer is made at once."""
        if not self.prompts(config):
            return 0
        total = self.total(config)
        return total if self.max_gen_length is None else min(total, self.max_gen_length + 1)

    def total(self, config: ModelConfig) -> int:
        return min(self.out_seq_length or config.max_sequence_length, config.max_sequence_length)

    def prompts(self, config: ModelConfig) -> int:
        """Prompts that are certain not to be refused as too long."""
        return sum(size + ADDED_TOKENS < self.total(config) for size in self.sizes)

    def at_once(self, config: ModelConfig, place_bytes: int) -> int:
        """Prompts that are certain to share a batch. place_bytes: of one beam's place."""
        prompts = self.prompts(config)
        if self.batch_size is not None:
            return min(self.batch_size, prompts)
        if self.bounds is None or self.max_gen_length is not None or not prompts:
            return min(1, prompts)  # rows may then be longer than is known here, and fewer
        rows, places = self.bounds(place_bytes, self.beams)
        return max(1, min(rows, places // self.places(config), prompts))


@dataclass(frozen=True)
class Room:
    """Bytes that are free."""

    host: float  # of this host, which all its ranks share
    addresses: float  # that this process's limit on address space leaves
    data: float  # that its limit on data leaves
    device: float | None = None  # of the GPU that has least; None: the run is on the processor
    device_name: str = ""
    ranks: int = 1  # of this host


@dataclass(frozen=True)
class Shortage:
    """Fewer bytes than the run needs."""

    where: str
    needed: float
    free: float
    parts: dict[str, float]  # what they are for


def config_of(arguments: argparse.Namespace) -> ModelConfig:
    """Of the checkpoint, overridden by the shape's flags; of the preset alone where no checkpoint is named."""
    shapes = {name: value for name in FIELDS if (value := getattr(arguments, name, None)) is not None}
    if arguments.load is not None:
        return read_config(arguments.load, arguments.model, **shapes)
    return ModelConfig.from_name(arguments.model).override(**shapes)


def looked_at(arguments: argparse.Namespace, config: ModelConfig) -> Stored | None:
    """The checkpoint's files; None where none is named."""
    return None if arguments.load is None else stored.look(arguments.load, config)


def setup_of(arguments: argparse.Namespace, config: ModelConfig, found: Stored | None, kind: str, precision: str,
             use: Use) -> Setup:
    """kind: "cpu" or "cuda". precision: of the run."""
    file = None if found is None else found.format
    bits, group_size = (getattr(arguments, f"quantization_{name}", None) for name in ("bit_width", "group_size"))
    if file is not None and file.bits is not None:
        bits, group_size = file.bits, file.group_size
    degree = getattr(arguments, "model_parallel_size", None) or (1 if found is None else found.parts)
    check_divisible(config, degree)
    setup = Setup(config, Format(precision, bits, group_size), kind, degree, file,
                  mapped=found is None or found.is_mapped, parts=found and found.parts,
                  context=1, new_tokens=max(0, use.places(config) - 1))
    place_bytes = int(cache_bytes(replace(setup, context=0, new_tokens=1)))  # of one row
    prompts = max(1, use.at_once(config, place_bytes))
    setup = replace(setup, rows=prompts * use.beams, read_rows=prompts)
    limit = getattr(arguments, "offload_memory_limit", None)
    if limit is not None:
        limit *= 1e9
    elif getattr(arguments, "bminf", False):
        limit = least_offloaded(setup)
    packed = holds_int8_vocabulary(getattr(arguments, "int8_vocabulary", None), kind, bits is not None, degree,
                                   limit is not None, setup.element)
    return replace(setup, offload_limit=limit, int8_vocabulary=packed)


def check_divisible(config: ModelConfig, degree: int) -> None:
    """Raises UserError unless so many ranks can share the model."""
    if degree < 1:
        raise UserError(f"--model-parallel-size {degree}: must be at least 1")
    if fault := fault_of_degree(config, degree):
        raise UserError(fault)


def require_fit(arguments: argparse.Namespace, purpose: str, use: Use, cpu_precision: str,
                has_flags: bool = True) -> None:
    """Raises UserError where the run that the arguments ask for cannot fit on this machine. Imports no torch.

    purpose: the command, for the message. cpu_precision: what this processor computes fastest. Under a launcher the
    first process of every host looks for all of them. has_flags: whether the command has generation's flags, which are
    then advised.
    """
    if getattr(arguments, "no_plan", False) or os.environ.get("LOCAL_RANK", "0") != "0":
        return
    open_checkpoint(arguments.load)  # whose faults are said before those of the shape
    lacking, ways = short_of(arguments, use, cpu_precision, resources.local_ranks(), has_flags)
    if lacking is not None:
        raise UserError(message(purpose, lacking, ways))


def require_model(checkpoint: Path, model: str | None, device: str, precision: str, purpose: str) -> None:
    """require_fit for a program that has no flags of its own that could mend it."""
    asked = argparse.Namespace(load=checkpoint, model=model, device=device, precision=precision)
    require_fit(asked, purpose, Use(), precision, has_flags=False)


def short_of(arguments: argparse.Namespace, use: Use, cpu_precision: str, ranks: int,
             has_flags: bool = True) -> tuple[Shortage | None, list[str]]:
    """What this host is short of for so many ranks of a run (None: nothing), and the flags that would make it fit."""
    config = config_of(arguments)
    found = looked_at(arguments, config)
    kind, gpus = machine.place_of(arguments.device, ranks)
    precision = getattr(arguments, "precision", None) or machine.fastest_precision(kind, gpus, cpu_precision)
    setup, room = setup_of(arguments, config, found, kind, precision, use), room_here(kind, gpus, ranks)
    lacking = shortage(setup, room)
    if lacking is not None and found is not None:
        require_own_model(found, config)
    if lacking is None or not has_flags:
        return lacking, []
    return lacking, remedies(setup, use, lambda tried: fits(tried, room), arguments.load, room.device is not None)


def room_here(kind: str, gpus: list[machine.Gpu], ranks: int) -> Room:
    least = min(gpus, key=lambda gpu: gpu.free, default=None)
    if kind == "cuda" and least is None:  # a GPU that nothing is known of
        place = float("inf"), "the GPU"
    else:
        place = (least.free, least.name) if least else (None, "")
    return Room(machine.host_room(), resources.address_room(), resources.data_room(), *place, ranks)


def shortage(setup: Setup, room: Room) -> Shortage | None:
    """What is short, the worst first; None: nothing."""
    held, _, buffers = on_device(setup)
    cache = cache_bytes(setup)
    parts = {"weights": held + buffers, "keys and values": cache}
    if room.device is not None:
        return _lack(room.device_name, parts | {"CUDA": LEAST_CUDA}, room.device)
    mapped = 0.0 if buffers else sum(setup.run.bytes(each) for each in weights(setup) if setup.stays_in_file(each))
    own = {"weights": max(0.0, held + buffers - mapped), "keys and values": cache, "Python and torch": LEAST_PROCESS}
    ranks = {f"{name}, {room.ranks} processes" if room.ranks > 1 else name: room.ranks * size
             for name, size in own.items()}
    file = setup.source_bytes if setup.mapped else 0.0  # all of it is mapped, however little of it is used
    space = own | {"the mapped file": file, "Python and torch": LEAST_ADDRESSES}
    # every pass reads all weights: mapped pages may go when memory is short, but then come from the disk each time
    pages = {"weights that stay in the file": min(room.ranks, setup.degree) * mapped}
    limit = "the limit on this process's {}"
    return (_lack("this machine", ranks | pages, room.host)
            or _lack(limit.format("address space"), space, room.addresses)
            or _lack(limit.format("data"), own, room.data))


def _lack(where: str, parts: dict[str, float], free: float) -> Shortage | None:
    needed = sum(parts.values())
    return Shortage(where, needed, free, parts) if TOLERANCE * needed > free else None


def fits(setup: Setup, room: Room) -> bool:
    """Whether a run is expected to fit, with all that it will allocate: advice must hold."""
    context = max(1, setup.places // 2)
    expected = memory.plan(replace(setup, context=context, new_tokens=setup.new_tokens and setup.places - context))
    if room.device is not None:
        return expected.device <= room.device
    mapped = setup.source_bytes if setup.mapped else 0
    own = expected.host - expected.mapped
    return (room.ranks * own + min(room.ranks, setup.degree) * expected.mapped <= room.host
            and own + mapped + LEAST_ADDRESSES <= room.addresses
            and expected.host + LEAST_PROCESS <= room.data)


def message(purpose: str, lacking: Shortage, ways: list[str]) -> str:
    parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in lacking.parts.items() if size >= 5e6)
    mend = (f"any of these makes it fit: {'; '.join(ways)}" if ways else
            "no flag makes it fit here; take a smaller model or a machine with more memory")
    return (f"{purpose} needs {lacking.needed / 1e9:.2f} GB at least ({parts}), but {lacking.where} has "
            f"{lacking.free / 1e9:.2f} GB free; {mend}. python -m glm plan tells more; --no-plan starts it all the "
            "same")


def remedies(setup: Setup, use: Use, fits: Callable[[Setup], bool], checkpoint: Path | None,
             on_gpus: bool) -> list[str]:
    """Flags and values that make a run fit, the mildest first; pairs of them where none alone suffices; else none."""
    single = [(flag, changed) for flag, changed in changes(setup, use, fits, checkpoint, on_gpus) if fits(changed)]
    if single:
        return [flag for flag, _ in single]
    pairs = []
    for flag, changed in changes(setup, use, fits, checkpoint, on_gpus):
        for second, both in changes(changed, use, fits, checkpoint, on_gpus):
            if fits(both) and second.partition(" ")[0] != flag.partition(" ")[0]:
                pairs.append((frozenset((flag, second)), f"{flag} {second}"))
    return list(dict(reversed(pairs)).values())[::-1]


def changes(setup: Setup, use: Use, fits: Callable[[Setup], bool], checkpoint: Path | None,
            on_gpus: bool) -> Iterator[tuple[str, Setup]]:
    """Each flag with the run that it makes of this one."""
    if setup.read_rows > 1:
        yield "--batch-size 1", replace(setup, rows=setup.rows // setup.read_rows, read_rows=1)
    if setup.new_tokens and (shorter := longest(setup, fits)) is not None:
        new_tokens = shorter - setup.context
        flag = (f"--new-tokens {new_tokens}" if use.says_new_tokens else
                f"--{'out-seq' if use.max_gen_length is None else 'max-gen'}-length {shorter}")
        yield flag, replace(setup, new_tokens=new_tokens)
    if use.beams > 1 and setup.rows >= use.beams:
        yield "--num-beams 1", replace(setup, rows=setup.rows // use.beams)
    if setup.run.precision == "fp32":
        yield "--bf16", replace(setup, run=replace(setup.run, precision="bf16"))
    if setup.run.bits is None and setup.source.bits is None and setup.offload_limit is None:
        for bits in (8, 4):
            if all(bits == 8 or weight.columns % 2 == 0 for weight in linears(setup)):
                yield f"--quantization-bit-width {bits}", replace(setup, run=Format(setup.run.precision, bits))
    if setup.offload_limit is None and (setup.run.bits is None or setup.source.bits is not None):
        limit = offload_limit(setup, fits)
        if limit is not None:
            yield f"--offload-memory-limit {limit / 1e9:.1f}", replace(setup, offload_limit=limit)
    for degree in (2 * setup.degree, 4 * setup.degree, 8 * setup.degree) if on_gpus and checkpoint else ():
        wider = replace(setup, degree=degree)
        if (degree <= MOST_DEGREE and undivided(setup.config, degree) is None
                and (setup.source.bits != 4 or all(weight.columns % 2 == 0 for weight in linears(wider)))):
            yield f"--model-parallel-size {degree} with {degree} GPUs", wider


def longest(setup: Setup, fits: Callable[[Setup], bool]) -> int | None:
    """Places of the longest sequences that fit, in whole steps; None where not even the shortest do."""
    for places in range((setup.places - 1) // LENGTH_STEP * LENGTH_STEP, setup.context, -LENGTH_STEP):
        if fits(replace(setup, new_tokens=places - setup.context)):
            return places
    return None


def offload_limit(setup: Setup, fits: Callable[[Setup], bool]) -> float | None:
    """The most bytes of weights on the device with which the run fits, in whole steps; None: not even the least."""
    least = -(-least_offloaded(setup) // OFFLOAD_STEP) * OFFLOAD_STEP
    total = sum(on_device(replace(setup, offload_limit=None)))
    low, high = int(least // OFFLOAD_STEP), int(total // OFFLOAD_STEP)
    if low >= high or not fits(replace(setup, offload_limit=low * OFFLOAD_STEP)):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(replace(setup, offload_limit=middle * OFFLOAD_STEP)) else (low, middle - 1)
    return low * OFFLOAD_STEP
