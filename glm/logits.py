"""Logits for choosing tokens: from a vocabulary's matrix in INT8 where a model has one, exact where a choice looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from kernels.vocabulary import PackedVocabulary, approximate

Refine = Callable[..., bool]  # Logits.refine


class Logits(NamedTuple):
    """What follows each of b rows: `values` float32 (b, v).

    Of approximate ones `refine` makes those exact, in place, that decide a choice; which are forbidden is to be marked
    before, in place, too.
    """

    values: Tensor
    hidden: Tensor | None = None  # (b, h) that approximate ones were made from; None: all are exact
    weight: Tensor | None = None  # (v, h), the exact rows
    vocabulary: PackedVocabulary | None = None

    def rows(self, index: slice | Tensor) -> Logits:
        """Of some rows; a slice's are these very values."""
        hidden = None if self.hidden is None else self.hidden[index]
        return Logits(self.values[index], hidden, self.weight, self.vocabulary)

    def refine(self, count: int, added: Tensor | None = None, least: float = -torch.inf) -> bool:
        """From here on the `count` best of each row are those of the exact product (kernels.vocabulary.refine_).
        Whether they are approximate, otherwise."""
        if self.hidden is None:
            return False
        kernels.backend(self.weight).refine_(self.values, self.hidden, self.weight, self.vocabulary.error, count, added,
                                             least)
        return True


def approximate_logits(hidden: Tensor, weight: Tensor, vocabulary: PackedVocabulary) -> Logits:
    """Of hidden (b, h)."""
    hidden = hidden.contiguous()
    return Logits(approximate(hidden, vocabulary, kernels.backend(weight)), hidden, weight, vocabulary)
