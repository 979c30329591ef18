"""Before a training loads anything: whether it fits into this machine's memory, and the flags that would make it fit.

A plan may be off by a tenth: what it finds a little too large begins all the same, and advice is given with that much
to spare.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING

from glm.spec import QKV
from planning import machine
from planning.check import Room, room_here
from planning.shapes import Format, linears
from runtime import resources
from runtime.errors import UserError
from tuning.data import seq2seq
from tuning.packing import Size
from tuning.plan import Job, Learned, LowRank
from tuning.plan_memory import Needs, needs, peak
from tuning.tasks import CHAT

if TYPE_CHECKING:
    from tuning.options import Settings
    from tuning.train_options import TrainOptions

SURE = 0.9  # of what is planned, which a training takes at least
LENGTH_STEP = 64  # tokens
RANK = 8  # of LoRA, in advice
MOST_FLAGS, MOST_WAYS = 3, 4  # of advice


@dataclass(frozen=True)
class Choice:
    """What of the command line advice may change."""

    batch_size: int
    length_flag: str | None  # None: the rows are as long as they are
    beside: int = 0  # tokens of a row that this flag does not count


@dataclass(frozen=True)
class Lack:
    where: str
    needed: float  # bytes
    free: float


def choice_of(settings: Settings, options: TrainOptions) -> Choice:
    task = settings.data.task
    if task in seq2seq.TASKS:
        return Choice(options.batch_size, "--src-seq-length", settings.data.tgt_seq_length)
    if task == CHAT:
        flag = "--max-source-length" if settings.streams.tokenized is None else None
        return Choice(options.batch_size, flag, settings.chat.max_target_length)
    return Choice(options.batch_size, "--seq-length")


def room_of(device: str) -> Room:
    """device: that of --device."""
    ranks = resources.local_ranks()
    kind, gpus = machine.place_of(device, ranks)
    return room_here(kind, gpus, ranks)


def require_fit(job: Job, choice: Choice, device: str) -> None:
    """Raises UserError where the training cannot fit. Under a launcher the first process of every host looks for all
    of them."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    wanted, room = needs(job), room_of(device)
    found = lack(wanted, room, SURE)
    if found is not None:
        raise UserError(message(found, wanted, ways(job, choice, lambda tried: lack(needs(tried), room) is None)))


def lack(wanted: Needs, room: Room, share: float = 1.0) -> Lack | None:
    """What is short; None: nothing. share: of the plan that is sure to be needed."""
    places = [(room.device_name, wanted.device, room.device)] if room.device is not None else []
    host = ("this machine" if room.ranks == 1 else f"this machine with {room.ranks} processes",
            room.ranks * wanted.host, room.host)
    for where, needed, free in (*places, host, ("the limit on this process's address space", wanted.host,
                                                room.addresses),
                                ("the limit on this process's data", wanted.host, room.data)):
        if share * needed > free:
            return Lack(where, needed, free)
    return None


def message(found: Lack, wanted: Needs, advice: list[str]) -> str:
    parts = (("weights", wanted.weights), ("gradients", wanted.gradients), ("moments", wanted.moments),
             (f"activations of {rows(wanted.size)}", wanted.activations), ("samples", wanted.samples),
             ("Python and torch", wanted.process), ("copies while saving", wanted.saving))
    told = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts if size >= 5e6)
    mend = (f"these make it fit, with the GB that each saves: {'; '.join(advice)}" if advice else
            "no flag makes it fit here; take a smaller model or a machine with more memory")
    return (f"this training needs about {found.needed / 1e9:.2f} GB ({told}), but {found.where} has "
            f"{found.free / 1e9:.2f} GB free; {mend}. python -m tuning plan tells more; --no-plan starts it all the "
            "same")


def rows(size: Size) -> str:
    return f"{size.rows} {'row' if size.rows == 1 else 'rows'} of {size.width} tokens"


def ways(job: Job, choice: Choice, fits: Callable[[Job], bool]) -> list[str]:
    """Flags that make a training fit, the mildest first, with the GB that they save: single ones, else as few of them
    together as suffice; none where nothing does."""
    sized = max(set(job.sizes), key=lambda size: peak(job, size))
    job = replace(job, sizes=(sized,))
    changes = list(changes_of(job, choice))
    for count in range(1, min(MOST_FLAGS, len(changes)) + 1):
        found = []
        for together in combinations(changes, count):
            steps, tried = [], job
            for kind, _ in together:
                made = mildest(kind, tried, choice, fits)
                if made is None:
                    break
                flag, changed = made
                steps.append(f"{flag} ({(_bytes(tried) - _bytes(changed)) / 1e9:.2f})")
                tried = changed
            if len(steps) == count and fits(tried):
                found.append(" with ".join(steps))
        if found:
            return found[:MOST_WAYS]
    return []


def _bytes(job: Job) -> float:
    return needs(job).device if job.setup.kind == "cuda" else needs(job).host


def mildest(kind: str, job: Job, choice: Choice, fits: Callable[[Job], bool]) -> tuple[str, Job] | None:
    """The smallest change of a kind that makes the job fit, or else the largest; None: there is none of the kind."""
    last = None
    for name, made in changes_of(job, choice):
        if name == kind:
            for last in made:
                if fits(last[1]):
                    return last
    return last


def changes_of(job: Job, choice: Choice) -> Iterator[tuple[str, list[tuple[str, Job]]]]:
    """Kinds of flags, the mildest first; of each the flags with what they make of the job, from small to large."""
    if not job.is_checkpointed:
        yield "checkpoint", [("--checkpoint-activations", replace(job, is_checkpointed=True))]
    most = max(size.rows for size in job.sizes)
    halves = [2**power for power in range(1, most.bit_length()) if 2**power <= most]
    if halves:
        yield "accumulate", [(f"--gradient-accumulation-steps {job.parts * factor}",
                              replace(job, parts=job.parts * factor, sizes=divided(job.sizes, factor)))
                             for factor in halves]
    smaller = [factor for factor in halves if choice.batch_size // factor >= job.parts]
    if smaller:
        yield "batch", [(f"--batch-size {choice.batch_size // factor}", replace(job, sizes=divided(job.sizes, factor)))
                        for factor in smaller]
    if job.attention_dropout:
        yield "dropout", [("--attention-dropout 0", replace(job, attention_dropout=0.0))]
    width = max(size.width for size in job.sizes)
    if choice.length_flag is not None and width > max(LENGTH_STEP, choice.beside):
        yield "length", [(f"{choice.length_flag} {length - choice.beside}", replace(job, sizes=cut(job.sizes, length)))
                         for length in range((width - 1) // LENGTH_STEP * LENGTH_STEP, choice.beside, -LENGTH_STEP)]
    if job.learned.is_whole:
        yield "lora", [(f"--lora-rank {RANK}", low_rank(job))]
    if job.setup.run.bits is None and job.setup.source.bits is None:
        frozen = low_rank(job) if job.learned.is_whole else job
        flag = f"--lora-rank {RANK} " if job.learned.is_whole else ""
        yield "packed", [(f"{flag}--quantization-bit-width {bits}", replace(
            frozen, setup=replace(job.setup, run=Format(job.setup.run.precision, bits))))
            for bits in (8, 4) if bits == 8 or all(weight.columns % 2 == 0 for weight in linears(job.setup))]


def low_rank(job: Job) -> Job:
    """With LoRA at its usual place, the queries, keys and values, in the place of what learns."""
    return replace(job, learned=Learned(0, False, job.learned.beside, (LowRank(QKV, RANK),)))


def divided(sizes: tuple[Size, ...], factor: int) -> tuple[Size, ...]:
    return tuple({Size(-(-rows // factor), width, -(-wanted // factor)): None for rows, width, wanted in sizes})


def cut(sizes: tuple[Size, ...], width: int) -> tuple[Size, ...]:
    return tuple({Size(size.rows, min(size.width, width), min(size.wanted, size.rows * width)): None
                  for size in sizes})
