"""Training a GLM from scratch on a prepared corpus: its model, rows of samples side by side, and held-out text.

The loop is that of all trainings (loop.py); here is what it is given.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from glm.config import ModelConfig
from glm.model import GLM
from glm.tokenizers.icetk import IcetkTokenizer
from runtime import parallel
from runtime.errors import UserError
from runtime.files import replacing
from tuning.corpus_run import CorpusRun
from tuning.data.corpus import Corpus, Mixture, draw_samples, open_corpus, read_index
from tuning.data.sample import Row, Sample
from tuning.data.stretches import Ids, ids_of
from tuning.loop import Progress, Training
from tuning.muon import MatrixOptimizer, Rates
from tuning.schedules import LateDecay
from tuning.steps import Work

HELD_OUT_SEED = 10_000_019
HELD_OUT_WIDTH, HELD_OUT_ROWS = 256, 8  # tokens of a row, rows at a time
NO_TARGET = -1
Autocast = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Texts:
    """What is read: the corpus, what is held out of it by language, and the ids that the objective puts in."""

    training: Corpus
    held_out: Mapping[str, Corpus]
    ids: Ids
    mixture: Mixture


@dataclass(frozen=True)
class Rows:
    """A batch of rows with several samples side by side, which do not see each other."""

    tokens: torch.Tensor  # (b, s) int64
    positions: torch.Tensor  # (b, s) int64
    targets: torch.Tensor  # (b, s) int64, NO_TARGET: no loss there
    segments: torch.Tensor  # (b, s) int64, which sample of its row; -1: padding
    context: torch.Tensor  # (b, s) bool


@dataclass(frozen=True)
class RowSteps:
    """Rows follow one another through all steps, as far as the run has come."""

    end: int  # steps
    rows: int  # of a step
    first_step: int  # from which on, and with which row, they are counted
    first_row: int
    evaluate_every: int

    def __len__(self) -> int:
        return self.end

    def __getitem__(self, step: int) -> Work:
        first = self.first_row + (step - self.first_step) * self.rows
        number = step + 1
        is_told = number % self.evaluate_every == 0 or number == self.end
        return Work(tuple(range(first, first + self.rows)), epoch=number if is_told else None)


def open_texts(options: argparse.Namespace, weights: dict[str, float], tokenizer: IcetkTokenizer) -> Texts:
    eos = tokenizer.command("eos")
    languages = sorted({facts["language"] for facts in read_index(options.corpus).values()})
    held_out = {language: open_corpus(options.corpus, eos, weights, ".heldout", language) for language in languages}
    return Texts(open_corpus(options.corpus, eos, weights), held_out, ids_of(tokenizer),
                 Mixture(options.mask_share, options.smask_share))


def open_model(options: argparse.Namespace, tokenizer: IcetkTokenizer) -> GLM:
    """With its first weights, which are a function of the seed."""
    config = ModelConfig.from_name(options.model).override(
        num_layers=options.num_layers, hidden_size=options.hidden_size, num_attention_heads=options.num_attention_heads,
        inner_hidden_size=options.inner_hidden_size, vocab_size=options.vocab_size or tokenizer.num_tokens)
    if tokenizer.num_tokens > config.vocab_size:
        raise UserError(f"{options.vocabulary} has {tokenizer.num_tokens} ids, more than vocab_size "
                        f"{config.vocab_size}; leave --vocab-size out")
    if not parallel.is_started():
        parallel.start(device=options.device)
    torch.manual_seed(options.seed)  # the initial weights are the only use of torch's generator
    return GLM(config, dtype=torch.float32, device=options.device, skip_init=False)


def training_of(options: argparse.Namespace, model: GLM, texts: Texts, run: CorpusRun) -> Training:
    """What the loop is given: all of the run, from where it was left."""
    autocast = autocast_of(options)
    loss_of = torch.compile(rows_loss) if options.compile else rows_loss

    def samples_of(work: Work) -> list[Sample]:
        return [sample for row in work.rows for sample in
                draw_samples(texts.training, options.seed, row, options.width, texts.mixture, texts.ids)]

    def loss(samples: Sequence[Sample], first: int, step: int) -> torch.Tensor:
        rows = side_by_side(by_row(samples), options.width, options.device)
        with autocast():
            return loss_of(model, rows, options.embedding_gradient_shrink)

    def validate(step: int, progress: Progress, whole: Callable[[], AbstractContextManager[None]]) -> dict[str, Any]:
        with whole():
            return {"held_out": held_out_losses(model, texts, options.evaluation_rows, autocast)}

    optimizer = MatrixOptimizer(dict(model.named_parameters()), options.optimizer,
                                Rates(options.matrix_rate, options.rate, options.weight_decay), options.clip)
    steps = RowSteps(min(options.steps, options.stop_at or options.steps), options.rows, run.progress["step"],
                     run.progress["rows"], options.evaluate_every)
    return Training(steps, samples_of, loss, optimizer, LateDecay(options.steps, options.warm_up, options.decay_from),
                    saved_every=options.save_every, validate=validate)


def autocast_of(options: argparse.Namespace) -> Autocast:
    return partial(torch.autocast, options.device.split(":")[0], dtype=torch.bfloat16, enabled=not options.fp32)


def by_row(samples: Sequence[Sample]) -> list[list[Row]]:
    rows: dict[Any, list[Row]] = {}
    for sample in samples:
        rows.setdefault(sample.meta["row"], []).append(sample.rows[0])
    return list(rows.values())


def side_by_side(rows: Sequence[Sequence[Row]], width: int, device: str) -> Rows:
    """The samples of each row, one after another, and padding up to the width."""
    def filled(values: Callable[[int, Row], Sequence[int]], fill: int) -> torch.Tensor:
        lines = [[value for number, row in enumerate(line) for value in values(number, row)] for line in rows]
        return torch.tensor([line + [fill] * (width - len(line)) for line in lines], device=device)

    return Rows(
        filled(lambda _, row: row.input_ids, 0), filled(lambda _, row: row.places, 0),
        filled(lambda _, row: [target if counts else NO_TARGET
                               for target, counts in zip(row.target, row.loss_mask, strict=True)], NO_TARGET),
        filled(lambda number, row: [number] * len(row.input_ids), -1),
        filled(lambda _, row: [int(place < row.sep) for place in range(len(row.input_ids))], 0).bool())


def blocked_of(segments: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """(b, s) int64, (b, s) bool -> bool (b, s, s): a token sees its sample's context and its own left."""
    places = torch.arange(segments.shape[1], device=segments.device)
    future = places[None, :] > places[:, None]
    return (segments[:, :, None] != segments[:, None, :]) | (future & ~context[:, None, :])


def rows_loss(model: GLM, rows: Rows, shrink: float) -> torch.Tensor:
    """Mean cross entropy over the targets. Logits are made for the targets only.

    shrink: share of the gradient that reaches the embedding from the input side.
    """
    hidden = model.hidden_states(rows.tokens, rows.positions, blocked_of(rows.segments, rows.context),
                                 embedding_gradient_scale=shrink)
    wanted = rows.targets != NO_TARGET
    return torch.nn.functional.cross_entropy(model.head(hidden[wanted]), rows.targets[wanted])


def held_out_losses(model: GLM, texts: Texts, rows: int, autocast: Autocast) -> dict[str, float]:
    """Loss per target token for every language, as "zh" ([gMASK]) and "zh [MASK]"; the rows are the same every time."""
    device = str(next(model.parameters()).device)
    losses = {}
    for language, corpus in texts.held_out.items():
        for name, mixture in ((language, Mixture(0.0, 0.0)), (f"{language} [MASK]", Mixture(1.0, 0.0))):
            total, count = 0.0, 0
            for part in _held_out_rows(corpus, texts.ids, rows, mixture):
                batch = side_by_side(part, HELD_OUT_WIDTH, device)
                targets = int((batch.targets != NO_TARGET).sum())
                with torch.no_grad(), autocast():
                    total, count = total + rows_loss(model, batch, 1.0).item() * targets, count + targets
            losses[name] = round(total / count, 4)
    return losses


def _held_out_rows(corpus: Corpus, ids: Ids, rows: int, mixture: Mixture) -> Iterator[list[list[Row]]]:
    for first in range(0, rows, HELD_OUT_ROWS):
        numbers = range(first, min(first + HELD_OUT_ROWS, rows))
        yield [[sample.rows[0] for sample in
                draw_samples(corpus, HELD_OUT_SEED, row, HELD_OUT_WIDTH, mixture, ids)] for row in numbers]


def restore(model: GLM, run: CorpusRun) -> None:
    """The weights of the last state. UserError where it is of another model."""
    state = run.state()
    try:
        if state is not None:
            model.load_state_dict(state["parameters"])
    except (RuntimeError, TypeError):
        raise run.wrong_state() from None


def save_config(model: GLM, path: Path) -> None:
    with replacing(path) as temporary:
        model.config.save(temporary)
