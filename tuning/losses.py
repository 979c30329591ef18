"""What is minimised: losses of the scores of choices, and of tokens. All give one float32 number.

    cross_entropy   mean over samples of -log softmax(scores)[right]
    hinge           mean over samples of the sum over wrong choices of max(0, 1 + score - right score)
    generative      minus the mean score of the right choice
    mix             generative + cross_entropy
    adapet          sum of log-probabilities of wrong choices less that of right ones, over samples
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from runtime.errors import UserError
from tuning.data.sample import Kind
from tuning.options import LOSSES
from tuning.scores import scores_of

if TYPE_CHECKING:
    from glm.dropout import Dropout
    from tuning.batch import Batch
    from tuning.model import Tuned
    from tuning.scores import Scores, Tokens

OF_TOKENS = (Kind.GENERATIVE, Kind.SEQ2SEQ, Kind.LANGUAGE)  # kinds whose loss is that of their tokens


def loss_of(tuned: Tuned, batch: Batch, name: str = "cross_entropy", length_penalty: float = 0.0,
            label_smoothing: float = 0.0, dropout: Dropout | None = None) -> Tensor:
    """The mean loss of a batch, whose samples are all of one kind."""
    scores = scores_of(tuned, batch, length_penalty, dropout)
    return loss_of_scores(scores, batch, name, label_smoothing)


def loss_of_scores(scores: Scores, batch: Batch, name: str = "cross_entropy", label_smoothing: float = 0.0) -> Tensor:
    if batch.samples[0].kind in OF_TOKENS:
        return tokens_loss(scores.tokens, label_smoothing)
    labels = [sample.label for sample in batch.samples]
    if None in labels:
        raise UserError(f"{batch.samples[labels.index(None)].guid} has no label, without which there is no loss")
    return choices_loss(scores.rows(of_log_probs=name == "adapet"), labels, name)


def tokens_loss(tokens: Tokens, label_smoothing: float = 0.0) -> Tensor:
    """Mean over the scored tokens; with smoothing e: (1 - e) CE + e * mean over the vocabulary of -log-softmax."""
    losses = -tokens.log_probs
    if label_smoothing:
        losses = (1 - label_smoothing) * losses - label_smoothing * tokens.mean_log_probs
    return losses.sum() / max(1, len(losses))


def choices_loss(rows: Sequence[Tensor], labels: Sequence[int], name: str) -> Tensor:
    """rows: of each sample the scores of its choices (width,), which may differ in number."""
    if name not in LOSSES:
        raise UserError(f"there is no loss {name}; there are {', '.join(LOSSES)}")
    return torch.stack([_LOSSES[name](row, label) for row, label in zip(rows, labels, strict=True)]).mean()


def _cross_entropy(row: Tensor, label: int) -> Tensor:
    return row.logsumexp(0) - row[label]


def _hinge(row: Tensor, label: int) -> Tensor:
    return (1 + row - row[label]).clamp(min=0).sum() - 1  # less that of the right choice itself


def _generative(row: Tensor, label: int) -> Tensor:
    return -row[label]


def _mix(row: Tensor, label: int) -> Tensor:
    return _generative(row, label) + _cross_entropy(row, label)


def _adapet(row: Tensor, label: int) -> Tensor:
    return row.sum() - 2 * row[label]


_LOSSES = {"cross_entropy": _cross_entropy, "hinge": _hinge, "generative": _generative, "mix": _mix,
           "adapet": _adapet}
