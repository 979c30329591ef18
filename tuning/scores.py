"""What the model makes of a batch: scores of choices, log-probabilities of tokens. Differentiable, in float32.

Logits are made at the wanted places alone, some at a time, and made again for gradients where they are many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import kernels
from kernels import HEAD_BYTES
from tuning.data.sample import Kind

if TYPE_CHECKING:
    from glm.dropout import Dropout
    from tuning.batch import Batch
    from tuning.model import Tuned


@dataclass(frozen=True)
class Tokens:
    """Of every scored token of a batch, all (t,)."""

    logits: Tensor
    log_probs: Tensor  # nats
    mean_log_probs: Tensor  # over the vocabulary, for label smoothing
    is_best: Tensor  # bool: the likeliest, of equals the first


@dataclass(frozen=True)
class Scores:
    """Of a batch's choices, one after another."""

    values: Tensor  # (c,) float32, of which losses and predictions are made
    log_probs: Tensor  # (c,) the same, where verbalizers have log-probabilities in the place of logits
    plain: Tensor  # (c,) the same, where answers are cut into pieces without what the original adds (_padding)
    tokens: Tokens | None  # None with a classification head
    is_right: Tensor | None  # bool (c,): at every place the token itself is the likeliest
    widths: tuple[int, ...]  # how many of them are each sample's

    def rows(self, of_log_probs: bool = False) -> list[Tensor]:
        """Of each sample."""
        return list((self.log_probs if of_log_probs else self.values).split(list(self.widths)))


def scores_of(tuned: Tuned, batch: Batch, length_penalty: float = 0.0, dropout: Dropout | None = None) -> Scores:
    """The logits of verbalizers or head; of other choices the sums of their log-probabilities, each piece's divided by
    (its length)^length_penalty."""
    dropout = None if dropout is None else dropout.of(batch.numbers)
    hidden = tuned.hidden_states(batch, dropout)
    kinds = {sample.kind for sample in batch.samples}
    if kinds == {Kind.HEAD}:
        values = tuned.head(hidden, dropout)  # (sequences, labels)
        labels = values.shape[1]
        widths = batch.widths if labels == 1 else (labels,) * len(values)
        return Scores(values.flatten(), values.log_softmax(-1).flatten(), values.flatten(), None, None, widths)
    tokens = token_scores(tuned, hidden, batch.owners, batch.targets)
    is_single = kinds == {Kind.VERBALIZER}
    (plain, values), (_, log_probs) = (_sums(batch, each, 0.0 if is_single else length_penalty)
                                       for each in (tokens.logits if is_single else tokens.log_probs,
                                                    tokens.log_probs))
    wrong = torch.zeros(sum(batch.widths), device=plain.device)
    wrong = wrong.index_add(0, batch.pieces[batch.sequences], (~tokens.is_best).float())
    return Scores(values, log_probs, plain, tokens, wrong == 0, batch.widths)


def _sums(batch: Batch, values: Tensor, length_penalty: float) -> tuple[Tensor, Tensor]:
    """(t,) -> (c,): over the tokens of each sequence, then over the sequences of each choice; and with _padding."""
    count = len(batch.pieces)
    sums = values.new_zeros(count).index_add(0, batch.sequences, values)
    if length_penalty > 0:
        lengths = values.new_zeros(count).index_add(0, batch.sequences, torch.ones_like(values))
        sums = sums / lengths.clamp(min=1) ** length_penalty
    found = values.new_zeros(sum(batch.widths)).index_add(0, batch.pieces, sums)
    if not any(sample.segment_id for sample in batch.samples):
        return found, found
    return found, found + _padding(batch, sums)


def _padding(batch: Batch, sums: Tensor) -> Tensor:
    """(c,): what pieces of answers add to first choices in the original, which repeats a sample's first piece until all
    samples of a batch have as many. Its losses and predictions, which are met here, depend on the batch so."""
    added, counts = sums.new_zeros(sum(batch.widths)), [len(sample.rows) for sample in batch.samples]
    choice = sequence = 0
    for width, count in zip(batch.widths, counts, strict=True):
        at = torch.tensor([choice], device=sums.device)
        added = added.index_add(0, at, (max(counts) - count) * sums[sequence:sequence + 1])
        choice, sequence = choice + width, sequence + count
    return added


def token_scores(tuned: Tuned, hidden: Tensor, owners: Tensor, targets: Tensor) -> Tokens:
    """hidden (n, h); owners (t,) out of n, and targets (t,) -> of each token."""
    operations = kernels.backend(tuned.model.head_weight)
    if hasattr(operations, "score_tokens") and hidden.dtype is torch.float32 and not tuned.model.is_parallel:
        return Tokens(*operations.score_tokens(hidden, tuned.model.head_weight, owners, targets))
    step = max(1, HEAD_BYTES // (4 * tuned.model.config.vocab_size))
    parts = []
    for begin in range(0, len(hidden), step):
        mine = torch.nonzero((owners >= begin) & (owners < begin + step)).flatten()
        arguments = (tuned, hidden[begin:begin + step], owners[mine] - begin, targets[mine])
        if len(hidden) > step and torch.is_grad_enabled():
            found = checkpoint(_scored, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            found = _scored(*arguments)
        parts.append((mine, found))
    order = torch.cat([mine for mine, _ in parts]).argsort() if parts else torch.zeros(0, dtype=torch.int64)
    return Tokens(*(torch.cat([found[each] for _, found in parts])[order] for each in range(4)))


def _scored(tuned: Tuned, hidden: Tensor, owners: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    logits = tuned.model.head(hidden)
    chosen = logits[owners, targets]
    sums = logits.logsumexp(-1)
    return chosen, chosen - sums[owners], (logits.mean(-1) - sums)[owners], logits.argmax(-1)[owners] == targets
