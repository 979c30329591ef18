"""Filling the blanks of texts: splitting at the masks, filling left to right, joining. Text in, text out.

A prompt is cut once into the stretches between the blanks to fill. From then on blanks are known by their place, never
searched for, so a mask token that the model generates is not taken for another blank.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from generation.batching import batches
from generation.decode import generate
from generation.joining import filled, joined
from generation.masks import MASK_PATTERN, kind_of
from generation.params import BeamParams, SamplingParams
from glm import parallel
from glm.errors import NonFinite, UserError

UNDERLINE, GREEN, PLAIN = "\x1b[4m", "\x1b[0;32m", "\x1b[0m"
OnStep = Callable[[int, int, "int | None"], None]


@dataclass(frozen=True)
class Prompt:
    """A text cut at the blanks to fill: stretches[0], blank, stretches[1], blank ... stretches[-1], as ids.

    typed: the same stretches as texts. kind: the mask that is filled; masks of another kind are part of the stretches.
    """

    text: str
    kind: str
    mask: int
    sop: int
    stretches: tuple[tuple[int, ...], ...]
    typed: tuple[str, ...]

    @property
    def num_blanks(self) -> int:
        return len(self.stretches) - 1

    def input_ids(self, filled: Sequence[Sequence[int]]) -> list[int]:
        """The sequence with the first blanks filled, the others still masks, and sop."""
        return self._joined(filled) + [self.sop]

    def mask_position(self, filled: Sequence[Sequence[int]]) -> int:
        """Place of the first blank that is still a mask."""
        return sum(map(len, self.stretches[:len(filled) + 1])) + sum(map(len, filled))

    def _joined(self, filled: Sequence[Sequence[int]]) -> list[int]:
        blanks = [*filled, *[[self.mask]] * (self.num_blanks - len(filled)), []]
        return [token for pair in zip(self.stretches, blanks, strict=True) for part in pair for token in part]


@dataclass(frozen=True)
class Beam:
    """One answer. text: the prompt as it was typed with its blanks filled; blanks: what stands in them (see
    generation.joining), and blank_ids, its tokens. ids: the last blank's whole sequence with context, sop and end
    token. score: see generation.beam, None when sampled. styled: the text with its blanks marked by terminal codes."""

    text: str
    blanks: list[str]
    ids: list[int]
    score: float | None
    styled: str = field(repr=False, default="")
    blank_ids: list[list[int]] = field(repr=False, default_factory=list)


@dataclass(frozen=True)
class Result:
    """What became of one prompt.

    text, blanks: of the best beam. input_ids: the prompt as the model first saw it, sop included. beams: best first;
    with several blanks they are the alternatives of the last one. finish_reason: "stop" (every blank ended by itself),
    "length" (one was cut off) or "error": then `error` is one clear line and there is no answer.
    """

    prompt: str
    text: str = ""
    blanks: list[str] = field(default_factory=list)
    input_ids: list[int] = field(default_factory=list, repr=False)
    finish_reason: str = "stop"
    beams: list[Beam] = field(default_factory=list)
    error: str | None = None


def split(text: str, tokenizer) -> Prompt:
    """Cut a text at the masks of the kind to fill; every stretch between any masks is tokenised by itself."""
    kind = kind_of(text)
    masks = MASK_PATTERN.findall(text)
    stretches, typed = [[]], [""]
    for piece, mask in zip(MASK_PATTERN.split(text), [*masks, None], strict=True):
        stretches[-1] += tokenizer.encode(piece)
        typed[-1] += piece
        if mask == kind:
            stretches.append([])
            typed.append("")
        elif mask is not None:
            stretches[-1].append(tokenizer.command(mask))
            typed[-1] += mask
    if not masks:
        stretches.append([])
        typed.append("")
    elif not text.endswith(tuple(masks)):
        stretches[-1].append(tokenizer.command("eos"))
    return Prompt(text, kind, tokenizer.command(kind), tokenizer.command("sop"), tuple(map(tuple, stretches)),
                  tuple(typed))


def marks(prompt: Prompt) -> tuple[str, str]:
    """Terminal codes before and after a filled blank."""
    return (UNDERLINE, PLAIN) if prompt.kind == "[gMASK]" else (GREEN + UNDERLINE, PLAIN + PLAIN)


def fill_blanks(
    model,
    tokenizer,
    texts: Sequence[str],
    params: SamplingParams | BeamParams | None = None,
    *,
    batch_size: int | None = None,
    on_result: Callable[[int, Result], None] | None = None,
    on_step: OnStep | None = None,
) -> list[Result]:
    """Fill the blanks of every text; one result per text, in order. A result does not depend on the other texts.

    With a seed, equal texts get equal answers and unlike ones independent draws; without one all are independent.
    params: SamplingParams() by default. batch_size: most prompts at a time; by memory when None. on_result(index,
    result) is called as answers come, on_step(index, blank, token) for every token (None under beam search).
    A text that cannot be answered gets a result with `error`; it raises nothing and the others are answered.
    """
    if isinstance(texts, str):
        raise UserError("texts must be a list of prompts, not one string")
    params = SamplingParams() if params is None else params
    if not isinstance(params, (SamplingParams, BeamParams)):
        raise UserError(f"params must be SamplingParams or BeamParams, not {type(params).__name__}")
    results: list[Result | None] = [None] * len(texts)

    def report(index: int, result: Result):
        results[index] = result
        if on_result is not None:
            on_result(index, result)

    jobs = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UserError(f"prompt {index} is of type {type(text).__name__}; prompts are strings")
        try:
            job = _Job(index, split(text, tokenizer), _seed(params))
            job.limit(model.config, params)
        except UserError as error:
            report(index, Result(text, finish_reason="error", error=str(error)))
        else:
            jobs.append(job)
    for batch in batches(jobs, [job.size(model.config, params) for job in jobs], model, params, batch_size):
        _fill_batch(model, tokenizer, batch, params, report, on_step)
    return results


class _Job:
    """A prompt while it is being filled."""

    def __init__(self, index: int, prompt: Prompt, seed: int):
        self.index, self.prompt, self.seed = index, prompt, seed
        self.filled: list[list[int]] = []
        self.was_cut_off = False

    def limit(self, config, params) -> int:
        """How many tokens the next blank may have. Raises UserError when there is room for none.

        That can only be so at the first blank: a filled one leaves at least the place of its mask.
        """
        length = len(self.prompt.input_ids(self.filled))
        most = config.max_sequence_length
        if length - 1 > most:
            raise UserError(f"text too long: the prompt has {length - 1} tokens, the model takes {most} at most "
                            f"(max_sequence_length)")
        total = min(params.out_seq_length or most, most)
        if length >= total:
            what = "max_sequence_length" if total == most else "out_seq_length"
            mend = "shorten the prompt" if total == most else f"raise it (to {most} at most) or shorten the prompt"
            raise UserError(f"no room for an answer: prompt and sop have {length} tokens, {what} is {total}; {mend}")
        return min(total - length, params.max_gen_length or total)

    def size(self, config, params) -> int:
        """Places that the first blank may take up in the cache."""
        return len(self.prompt.input_ids(self.filled)) + self.limit(config, params)


def _fill_batch(model, tokenizer, jobs: list[_Job], params, report, on_step: OnStep | None) -> None:
    """Fill the jobs' blanks, the next one of every job at a time."""
    ends = (tokenizer.command("eop"), tokenizer.command("eos"))
    while jobs:
        contexts = [job.prompt.input_ids(job.filled) for job in jobs]
        try:
            answers = generate(
                model, contexts, params, end_tokens=ends, limits=[job.limit(model.config, params) for job in jobs],
                shared_positions=[None if job.prompt.kind == "[gMASK]" else job.prompt.mask_position(job.filled)
                                  for job in jobs],
                seeds=[(job.seed, len(job.filled), *job.prompt.input_ids([])) for job in jobs],
                on_step=None if on_step is None else _steps_of(jobs, on_step))
        except NonFinite as error:
            for row in error.rows:
                report(jobs[row].index, Result(jobs[row].prompt.text, finish_reason="error", error=str(error)))
            jobs = [job for row, job in enumerate(jobs) if row not in error.rows]
            continue
        going = []
        for job, context, found in zip(jobs, contexts, answers, strict=True):
            best = found[0][0]
            job.was_cut_off |= best[-1] not in ends
            if len(job.filled) + 1 == job.prompt.num_blanks:
                report(job.index, _complete(job, context, found, ends, tokenizer))
            else:
                job.filled.append(_without_end(best, ends))
                going.append(job)
        jobs = going


def _steps_of(jobs: list[_Job], on_step: OnStep):
    """The decode loop's report of a step, in terms of prompts and blanks."""
    def report(chosen: list[tuple[int, int | None]]):
        for row, token in chosen:
            on_step(jobs[row].index, len(jobs[row].filled), token)
    return report


def _complete(job: _Job, context: list[int], found, ends, tokenizer) -> Result:
    prompt, beams = job.prompt, []
    for ids, score in found:
        blank_ids = [*job.filled, _without_end(ids, ends)]
        blanks = [filled(blank, tokenizer) for blank in blank_ids]
        beams.append(Beam(joined(prompt.typed, blanks), [blank.text for blank in blanks], context + ids, score,
                          joined(prompt.typed, blanks, *marks(prompt)), blank_ids))
    return Result(prompt.text, beams[0].text, beams[0].blanks, prompt.input_ids([]),
                  "length" if job.was_cut_off else "stop", beams)


def _without_end(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[:-1] if ids and ids[-1] in ends else ids


def _seed(params: SamplingParams | BeamParams) -> int:
    """The seed of one prompt: the one asked for, else a fresh one, the same on all tensor-parallel ranks."""
    if params.seed is not None:
        return params.seed
    seed = secrets.randbits(53)
    return parallel.broadcast_object(seed) if parallel.is_started() else seed
