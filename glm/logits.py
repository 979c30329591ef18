"""Logits for choosing tokens: from a vocabulary's matrix in INT8 where a model has one, exact where a choice looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import kernels
from kernels.vocabulary import PackedVocabulary, approximate, refine_some_

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
    decides: Tensor | None = None  # bool (b,), which refine clears where a choice may be another one; None: it looks

    def rows(self, index: slice | Tensor) -> Logits:
        """Of some rows; a slice's are these very values."""
        hidden = None if self.hidden is None else self.hidden[index]
        decides = None if self.decides is None else self.decides[index]
        return Logits(self.values[index], hidden, self.weight, self.vocabulary, decides)

    def refine(self, count: int, added: Tensor | None = None, least: float = -torch.inf) -> bool:
        """From here on the `count` best of each row are those of the exact product (kernels.vocabulary.refine_).
        Whether they are approximate, otherwise."""
        if self.hidden is None:
            return False
        if self.decides is not None:
            self.decides.logical_and_(refine_some_(self.values, self.hidden, self.weight, self.vocabulary.error, count,
                                                   added, least))
            return True
        kernels.backend(self.weight).refine_(self.values, self.hidden, self.weight, self.vocabulary.error, count, added,
                                             least)
        return True


def approximate_logits(hidden: Tensor, weight: Tensor, vocabulary: PackedVocabulary, looks: bool = True) -> Logits:
    """Of hidden (b, h). looks: whether refine may look at numbers, which waits for a GPU."""
    hidden = hidden.contiguous()
    decides = None if looks else torch.ones(hidden.shape[0], dtype=torch.bool, device=hidden.device)
    return Logits(approximate(hidden, vocabulary, kernels.backend(weight)), hidden, weight, vocabulary, decides)
