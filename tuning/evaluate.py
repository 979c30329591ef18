"""Scores, predictions, losses and metrics of a task whose samples are scored: choices, labels, ChatGLM's rows.

Batches are consecutive samples, so that losses are those of given batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from runtime import parallel
from runtime.errors import UserError
from tuning.batch import Batch, batch_of
from tuning.chat_replies import replies
from tuning.data import cloze
from tuning.data.sample import Kind, Sample, Unbuildable, built
from tuning.losses import loss_of_scores
from tuning.model import Head, Tuned
from tuning.options import LOSSES, Settings
from tuning.scores import Scores, scores_of
from tuning.tasks import module_of
from tuning.text_metrics import score_pairs
from tuning.tokenizers import open_for

S, T = TypeVar("S"), TypeVar("T")
CHAT_FIGURES = ("bleu-4", "rouge-1", "rouge-2", "rouge-l")  # the first one chooses the best epoch


@torch.no_grad()
def evaluate_choices(tuned: Tuned, settings: Settings, samples: Sequence[Sample | Unbuildable], batch_size: int,
                     losses: Sequence[str] = ()) -> dict[str, Any]:
    """Of a cloze task, a classification head or multiple choice, as `python -m tuning evaluate` says it. losses: their
    names."""
    if wrong := [name for name in losses if name not in LOSSES]:
        raise UserError(f"--losses: there is no loss {wrong[0]}; there are {', '.join(LOSSES)}")
    whole = built(samples)
    found: dict[str, list[float]] = {name: [] for name in losses}
    rows: list[dict[str, Any]] = []
    for of_batch, own in scored(tuned, settings, whole, batch_size, lambda batch, scores: (
            [loss_of_scores(scores, batch, name).item() for name in losses],
            [_row(*each) for each in _by_sample(batch, scores)])):
        for name, loss in zip(losses, of_batch, strict=True):
            found[name].append(loss)
        rows += own
    predictions = [row["prediction"] for row in rows]
    return {"rows": rows, "skipped": [sample.guid for sample in samples if isinstance(sample, Unbuildable)],
            "metrics": module_of(settings.data.task).metrics(settings, whole, predictions) if whole else {},
            "losses": found}


def _row(sample: Sample, values: torch.Tensor, plain: torch.Tensor, is_right: bool) -> dict[str, Any]:
    if sample.kind is Kind.GENERATIVE:
        row = {"guid": sample.guid, "prediction": int(is_right)}
    else:
        row = {"guid": sample.guid, "scores": plain.tolist(),
               "prediction": cloze.seen(sample, int(values.argmax()))}
    return row if sample.label is None else row | {"label": sample.label}


@torch.no_grad()
def evaluate_chat(tuned: Tuned, settings: Settings, samples: Sequence[Sample | Unbuildable], batch_size: int,
                  losses: Sequence[str] = (), load: Path | None = None) -> dict[str, Any]:
    """Of ChatGLM's rows: the mean loss of each one's labels, and of each batch's; of rows of texts the model's reply,
    too, with BLEU-4 and ROUGE in percent. load: the checkpoint, where the tokenizer is its own."""
    whole = built(samples)

    def losses_of(batch: Batch, scores: Scores) -> tuple[float, list[float]]:
        count = torch.zeros_like(scores.values).index_add(0, batch.pieces[batch.sequences],
                                                          torch.ones_like(scores.tokens.log_probs))
        return (loss_of_scores(scores, batch, label_smoothing=settings.seq2seq.label_smoothing).item(),
                (-scores.values / count.clamp(min=1)).tolist())

    batches = scored(tuned, settings, whole, batch_size, losses_of)
    found = [loss for loss, _ in batches]
    rows = [{"guid": sample.guid, "loss": loss}
            for sample, loss in zip(whole, (each for _, own in batches for each in own), strict=True)]
    metrics: dict[str, float] = {}
    if settings.streams.tokenized is None and not settings.seq2seq.no_decode and whole:
        replied, metrics = _replied(tuned, settings, [int(sample.guid) for sample in whole], batch_size, load)
        rows = [row | reply for row, reply in zip(rows, replied, strict=True)]
    return {"rows": rows, "skipped": [sample.guid for sample in samples if isinstance(sample, Unbuildable)],
            "metrics": metrics, "losses": {"cross_entropy": found}}


def _replied(tuned: Tuned, settings: Settings, numbers: Sequence[int], batch_size: int,
             load: Path | None) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """What is written to the prompts of these rows of the file, with figures, and their means. A reply without words
    has figures of 0."""
    tokenizer = open_for(settings, load)
    written = shared(numbers, lambda part: list(replies(tuned, settings, tokenizer, load, batch_size, part)))
    scored, _ = score_pairs([each["predict"] for each in written], [each["labels"] for each in written], "chatglm")
    figures = [{name: 0.0 if isinstance(each, str) else each[name] for name in CHAT_FIGURES} for each in scored]
    rows = [{"prediction": each["predict"], "ref": each["labels"], **own}
            for each, own in zip(written, figures, strict=True)]
    return rows, {name: sum(own[name] for own in figures) / len(figures) for name in CHAT_FIGURES}


def scored(tuned: Tuned, settings: Settings, samples: Sequence[Sample], batch_size: int,
           read: Callable[[Batch, Scores], T]) -> list[T]:
    """What is read from each of consecutive batches and the model's scores of it. Data-parallel ranks share them."""
    if any(sample.kind is Kind.HEAD for sample in samples) and tuned.head is None:
        raise UserError("the task's samples are for a classification head: --head FILE; or ask by a cloze question: "
                        "--cloze-eval")
    if tuned.head is not None:
        check_head(tuned.head, samples)
    device = next(tuned.model.parameters()).device

    def read_at(begin: int) -> T:
        batch = batch_of(samples[begin:begin + batch_size], tuned.model.config, device, settings.cloze.pool_token)
        return read(batch, scores_of(tuned, batch, settings.cloze.length_penalty))

    return shared(range(0, len(samples), batch_size), lambda begins: list(map(read_at, begins)))


def shared(items: Sequence[S], work: Callable[[Sequence[S]], Sequence[T]]) -> list[T]:
    """A result for each item, in their order, on all ranks, of which each data-parallel one works at its share.

    work: some of the items -> a small result for each. All ranks call it together; an error of one is one of all.
    """
    if not parallel.is_started() or (ranks := parallel.data_parallel_size()) == 1:
        return list(work(items))
    found: list = [None] * len(items)
    parts = parallel.collect(parallel.agree(lambda: list(work(items[parallel.data_parallel_rank()::ranks]))))
    for rank, part in enumerate(parts):
        found[rank::ranks] = part
    return found


def check_head(head: Head, samples: Sequence[Sample]) -> None:
    """UserError where a head has not as many outputs as the samples need."""
    outputs = head.multichoice_head.out_features
    for sample in samples:
        if sample.kind is Kind.HEAD and sample.has_choices != (outputs == 1):
            raise UserError(f"--head has {outputs} outputs, but the task's samples have "
                            f"{'choices, which need 1' if sample.has_choices else 'labels, which need one each'}")
        if sample.kind is Kind.HEAD and not sample.has_choices and (sample.label or 0) >= outputs:
            raise UserError(f"--head has {outputs} outputs, but {sample.guid} has the label number {sample.label}, "
                            "counted from 0: it was made for another task")


def _by_sample(batch: Batch, scores: Scores) -> Iterator[tuple]:
    """sample, scores that decide, scores that are shown, whether its only answer is right throughout."""
    widths = list(scores.widths)
    right = [None] * len(batch.samples) if scores.is_right is None else scores.is_right.split(widths)
    for sample, values, plain, is_right in zip(batch.samples, scores.rows(), scores.plain.split(widths), right,
                                               strict=True):
        yield sample, values, plain, sample.kind is Kind.GENERATIVE and bool(is_right[0])
