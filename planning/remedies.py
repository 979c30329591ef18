"""The flags that would make a run fit, each tried by the arithmetic that refused it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from glm.checkpoint import convert_command
from glm.spec import undivided
from planning.memory import least_offloaded, on_device
from planning.shapes import Format, Setup, linears
from planning.wanted import Use

LENGTH_STEP = 64  # tokens
OFFLOAD_STEP = 1e8  # bytes
MOST_DEGREE = 8  # GPUs that machines have, as a rule
Fits = Callable[[Setup], bool]


def find(setup: Setup, use: Use, fits: Fits, checkpoint: Path | None, on_gpus: bool) -> list[str]:
    """Flags and values, the mildest first; where no change alone suffices, pairs of them; at last none."""
    single = [(flag, changed) for flag, changed in changes(setup, use, fits, checkpoint, on_gpus) if fits(changed)]
    if single:
        return [flag for flag, _ in single]
    pairs = []
    for flag, changed in changes(setup, use, fits, checkpoint, on_gpus):
        for second, both in changes(changed, use, fits, checkpoint, on_gpus):
            if fits(both) and second.partition(" ")[0] != flag.partition(" ")[0]:
                pairs.append((frozenset((flag, second)), f"{flag} {second}"))
    return list(dict(reversed(pairs)).values())[::-1]


def changes(setup: Setup, use: Use, fits: Fits, checkpoint: Path | None, on_gpus: bool) -> Iterator[tuple[str, Setup]]:
    """Each flag with the run that it makes of this one."""
    if setup.read_rows > 1:
        yield "--batch-size 1", replace(setup, rows=setup.rows // setup.read_rows, read_rows=1)
    if setup.new_tokens and (shorter := longest(setup, fits)) is not None:
        changed = replace(setup, new_tokens=shorter - setup.context)
        if use.says_new_tokens:
            flag = f"--new-tokens {changed.new_tokens}"
        else:
            flag = f"--{'out-seq' if use.max_gen_length is None else 'max-gen'}-length {shorter}"
        yield flag, changed
    if use.beams > 1 and setup.rows >= use.beams:
        yield "--num-beams 1", replace(setup, rows=setup.rows // use.beams)
    if setup.run.precision == "fp32":
        yield "--bf16", replace(setup, run=replace(setup.run, precision="bf16"))
    is_plain = setup.run.bits is None and setup.source.bits is None
    if is_plain and setup.offload_limit is None:
        for bits in (8, 4):
            if all(bits == 8 or weight.columns % 2 == 0 for weight in linears(setup)):
                yield f"--quantization-bit-width {bits}", replace(setup, run=Format(setup.run.precision, bits))
    if setup.offload_limit is None and (setup.run.bits is None or setup.source.bits is not None):
        limit = offload_limit(setup, fits)
        if limit is not None:
            yield f"--offload-memory-limit {limit / 1e9:.1f}", replace(setup, offload_limit=limit)
    for degree in (2 * setup.degree, 4 * setup.degree, 8 * setup.degree) if on_gpus and checkpoint else ():
        if degree <= MOST_DEGREE and undivided(setup.config, degree) is None:
            changed = replace(setup, degree=degree)
            # only unquantised files give every rank its part, whatever their number (glm.resplit)
            command = f", after {convert_command(checkpoint, f'tp{degree}', degree)}" if setup.source.bits else ""
            yield f"--model-parallel-size {degree} with {degree} GPUs{command}", changed


def longest(setup: Setup, fits: Fits) -> int | None:
    """The longest sequences that fit, in whole steps; None where not even the shortest do."""
    for places in range((setup.places - 1) // LENGTH_STEP * LENGTH_STEP, setup.context, -LENGTH_STEP):
        if fits(replace(setup, new_tokens=places - setup.context)):
            return places
    return None


def offload_limit(setup: Setup, fits: Fits) -> float | None:
    """The most that weights may take on the device so that the run fits, in whole steps; None: not even the least."""
    least = -(-least_offloaded(setup) // OFFLOAD_STEP) * OFFLOAD_STEP
    total = sum(on_device(replace(setup, offload_limit=None)))
    low, high = int(least // OFFLOAD_STEP), int(total // OFFLOAD_STEP)
    if low >= high or not fits(replace(setup, offload_limit=low * OFFLOAD_STEP)):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(replace(setup, offload_limit=middle * OFFLOAD_STEP)) else (low, middle - 1)
    return low * OFFLOAD_STEP
