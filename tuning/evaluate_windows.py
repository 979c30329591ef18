"""Scores of texts as they stand, a row a window: summed losses, and whether the last word would have been written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from runtime.errors import UserError
from tuning.data.language import text_metrics
from tuning.data.sample import Sample, Unbuildable, built
from tuning.evaluate import scored
from tuning.losses import loss_of_scores
from tuning.model import Tuned
from tuning.options import Settings


@torch.no_grad()
def evaluate_windows(tuned: Tuned, settings: Settings, samples: Sequence[Sample | Unbuildable], batch_size: int,
                     losses: Sequence[str] = ()) -> dict[str, Any]:
    """As `python -m tuning evaluate` says it. losses: cross_entropy, of the batches' tokens, or nothing.

    A window that cannot be made is a row with `error`, and in no metric.
    """
    if set(losses) - {"cross_entropy"}:
        raise UserError(f"--losses {','.join(losses)}: a text has cross_entropy alone")
    whole, is_lambda = built(samples), settings.data.task == "lambda"
    batches = scored(tuned, settings, whole, batch_size, lambda batch, scores: (
        scores.is_right.int().tolist() if is_lambda else (-scores.values).tolist(),
        loss_of_scores(scores, batch).item()))
    values, found = [value for own, _ in batches for value in own], [loss for _, loss in batches]
    of_window = iter(values)
    rows = [{"index": number} | ({"error": each.error} if isinstance(each, Unbuildable) else {"value": next(of_window)})
            for number, each in enumerate(samples)]
    return {"rows": rows, "skipped": [each.guid for each in samples if isinstance(each, Unbuildable)],
            "metrics": text_metrics(settings.data.task, whole, values),
            "losses": {"cross_entropy": found} if losses else {}}
