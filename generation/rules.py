"""What may not be generated, whatever the strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from generation.sampling import FORBIDDEN, forbid_


class Rules(NamedTuple):
    """Equal for rows that are treated together; everything works on logits (..., v), in place."""

    end_tokens: tuple[int, ...]
    invalid_ids: tuple[int, ...] = ()  # never generated
    forbidden_starts: tuple[tuple[int, ...], ...] = ()  # ids that no answer may begin with

    @property
    def longest_start(self) -> int:
        return max(map(len, self.forbidden_starts), default=0)

    def forbid_invalid_(self, logits: torch.Tensor) -> None:
        if self.invalid_ids:
            forbid_(logits, torch.tensor(self.invalid_ids, device=logits.device))

    def forbid_ends_(self, logits: torch.Tensor) -> None:
        forbid_(logits, torch.tensor(self.end_tokens, device=logits.device))

    def forbid_starts_(self, logits: torch.Tensor, generated: torch.Tensor) -> None:
        """generated (..., t): the ids that each row or beam has generated so far."""
        for *beginning, last in self.forbidden_starts:
            if len(beginning) == generated.shape[-1]:
                begun = (generated == torch.tensor(beginning, device=generated.device)).all(-1)
                logits[..., last] = torch.where(begun, FORBIDDEN, logits[..., last])


def rules(end_tokens: Sequence[int], invalid_ids: Sequence[int] = (),
          forbidden_starts: Sequence[Sequence[int]] = ()) -> Rules:
    return Rules(tuple(end_tokens), tuple(sorted(invalid_ids)), tuple(map(tuple, forbidden_starts)))
