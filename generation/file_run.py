"""A run over a file of prompts: batches, progress, results as they come."""

from __future__ import annotations

import hashlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from generation.blanks import Result, note_on_left_over
from generation.fill import Asked, fill_all
from generation.params import BeamParams, Options, SamplingParams
from generation.prompt_file import PromptLine
from generation.records import Results
from glm.checkpoint import open_checkpoint
from glm.config import ModelConfig
from glm.linear import quantization_of
from runtime import parallel
from runtime.errors import printable
from runtime.files import unusual, usual, versions
from runtime.mapped import check_unchanged
from runtime.parallel import agree
from runtime.show import Progress

FORM = 2  # of the answers: another number where equal settings give other draws or texts than with earlier versions
_OF_MODEL = "model's "


def run_file(model, tokenizer, results: Results | None, options: Options, batch_size: int | None,
             checkpoint: Path) -> dict[str, int]:
    """Answer all lines of `results` that have no answer yet; on every tensor-parallel rank (`results` on the first).

    Returns counts: prompts, answered, failed, resumed.
    """
    begin = time.monotonic()
    facts = facts_of(model, tokenizer, options, checkpoint) if results is not None else {}
    agree(lambda: results.open(facts, usual_facts(options.params)) if results is not None else None)
    todo = parallel.broadcast_object(_todo(results) if results is not None else None)
    counts = {"prompts": 0, "answered": 0, "failed": 0, "resumed": 0}
    if results is None:
        _answer(model, tokenizer, todo, batch_size)
        return counts
    counts |= {"prompts": len(results.lines), "resumed": len(results.done)}
    if results.strange:
        print(printable(f"note: {results.source} has changed: {results.strange} of the earlier answers belong to other "
                        "prompts; they are left out, and what stands there now is answered"), file=sys.stderr)
    form = model.config.prompt_form.within(tokenizer.commands)
    if mixed := [line for line in results.lines if line.error is None and note_on_left_over(line.text, form)]:
        also = f" (and {len(mixed) - 1} more)" if len(mixed) > 1 else ""
        print(printable(f"note: {results.source}:{mixed[0].number}{also}: {note_on_left_over(mixed[0].text, form)}"),
              file=sys.stderr)
    settings = {
        "facts": facts, "options": asdict(options.params) | ({"stop": options.stop} if options.stop else {}),
        "input_source": results.source,
        "checkpoint": str(checkpoint), "batch_size": batch_size,
        "device": str(next(model.parameters()).device), "versions": versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    results.write_settings(settings | {"counts": counts})
    pace = Pace([most_of(asked.params, model.config.max_sequence_length) for _, asked in todo])
    with Progress(len(todo), unit="prompts", left=pace.left) as progress:
        def add(line: PromptLine, result: Result):
            results.add(line.index, result)
            counts["answered" if result.error is None else "failed"] += 1
            if result.error is not None:
                progress.say(f"error: {results.source}:{line.number}: {result.error}")

        for line in results.lines:
            if line.error is not None:
                add(line, Result(line.text, finish_reason="error", error=line.error))

        def keep(place: int, result: Result):
            add(results.lines[todo[place][0]], result)
            pace.done(place)
            progress.advance()

        def count(place: int, *_):
            pace.step(place)
            progress.tick("tokens")

        try:
            _answer(model, tokenizer, todo, batch_size, keep, count)
        except KeyboardInterrupt:  # what is answered is in order, and can be resumed
            results.sort()
            raise
    results.sort()
    results.write_settings(settings | {"counts": counts, "seconds": round(time.monotonic() - begin, 3)})
    return counts


class Pace:
    """How long answers take. Those of a large batch come together at its end, so that the first ones tell little; but
    none has more tokens than it may have."""

    def __init__(self, most: Sequence[int], clock: Callable[[], float] = time.monotonic):
        """most: tokens, of each answer."""
        self._left, self._most = dict(enumerate(most)), sum(most)  # of those that are not there yet; of all of them
        self._all, self._tokens, self._clock, self._begin = len(most), 0, clock, clock()

    def step(self, place: int) -> None:
        self._tokens += 1
        if self._left.get(place):
            self._left[place] -= 1
            self._most -= 1

    def done(self, place: int) -> None:
        self._most -= self._left.pop(place, 0)

    def left(self) -> float:
        """Seconds: as the answers came so far, and no more than the tokens that are left at most; 0: not known yet."""
        seconds, count = self._clock() - self._begin, self._all - len(self._left)
        by_tokens = seconds * self._most / self._tokens if self._tokens else math.inf
        by_answers = seconds * len(self._left) / count if count else math.inf
        left = min(by_tokens, by_answers)
        return left if left < math.inf else 0.0


def most_of(params: SamplingParams | BeamParams, longest: int) -> int:
    """Tokens of an answer; longest: of prompt and answer, that the model takes."""
    return min(params.max_gen_length or longest, params.out_seq_length or longest, longest)


def _todo(results: Results) -> list[tuple[int, Asked]]:
    return [(line.index, Asked(line.text, line.options.params, line.options.stop)) for line in results.lines
            if line.error is None and line.index not in results.done]


def _answer(model, tokenizer, todo, batch_size, keep=None, on_step=None) -> None:
    """keep(place, result): of the first rank, which writes the answers. An error on one rank is heard by all, and no
    answer is kept that a rank may have computed with other weights than it has loaded."""
    def on_result(place: int, result: Result) -> None:
        agree(lambda: check_unchanged(model))
        agree(lambda: keep(place, result) if keep is not None else None)

    fill_all(model, tokenizer, [asked for _, asked in todo], batch_size, on_result, on_step)


def facts_of(model, tokenizer, options: Options, checkpoint: Path) -> dict:
    """Everything that the answers depend on but the prompts and rounding; a resumed run must agree in all of it.

    What is at its default is left out.
    """
    found = open_checkpoint(checkpoint)
    values = {"checkpoint_iteration": found.iteration,
              "checkpoint_checksums": _hash(found.index.identity.encode()),
              "vocabulary_sha256": _hash(b"".join(file.read_bytes() for file in tokenizer.vocabulary_files)),
              "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
              "quantization": quantization_of(model)}
    shapes = {_OF_MODEL + name: value for name, value in unusual(model.config).items()}
    stop = {"stop": list(options.stop)} if options.stop else {}
    values |= {"adapter_sha256": model.adapter["sha256"]} if getattr(model, "adapter", None) else {}
    return {"form": FORM, "strategy": options.strategy} | unusual(options.params) | stop | shapes | values


def usual_facts(params: SamplingParams | BeamParams) -> dict:
    """What facts are that are not there."""
    return usual(type(params)) | {_OF_MODEL + name: value for name, value in usual(ModelConfig).items()}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
