"""The loss of a text that follows [gMASK], in nats per token."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from evaluation.batching import CPU_TOKENS
from evaluation.data import read_text
from evaluation.requests import ScoreRequest
from evaluation.statistics import paired_bootstrap
from runtime.errors import UserError

STEP, SMALLEST = 16, 32  # sizes of windows are multiples of 16, which the scorer does not pad
NATS_PER_TOKEN = SimpleNamespace(figure=lambda sums: sums[..., 0] / sums[..., 1])


def requests_of(path, tokenizer, size: int, most: int) -> list[ScoreRequest]:
    """Windows of a text file: `size` tokens are fed, the first half is context, the second is scored.

    They move by half a window, so that every token is scored once, but for the first and last ones; at most `most`
    tokens are scored, of windows spread evenly over the text. A text shorter than a window has smaller ones.
    Raises UserError for a file that cannot be read or holds less than SMALLEST tokens.
    """
    ids = tokenizer.encode(read_text(path))
    size = min(size, (len(ids) + 1) // STEP * STEP)
    if size < SMALLEST:
        raise UserError(f"{path}: the text has {len(ids)} tokens; at least {SMALLEST - 1} are needed")
    half = size // 2
    count = (len(ids) - half + 1) // half
    taken = np.unique(np.linspace(0, count - 1, min(count, max(1, most // half))).astype(int))
    mask, sop = tokenizer.command("[gMASK]"), tokenizer.command("sop")
    requests = []
    for start in (int(number) * half for number in taken):
        context = (*ids[start:start + half - 1], mask)
        scored = tuple(ids[start + half - 1:start + 2 * half - 1])
        requests.append(ScoreRequest(context, (scored,), sop, len(context), 1))
    return requests


def batches_of(requests: Sequence[ScoreRequest]) -> list[list[ScoreRequest]]:
    """Requests of one size in batches that keep a processor busy."""
    step = max(1, CPU_TOKENS // requests[0].size)
    return [list(requests[start:start + step]) for start in range(0, len(requests), step)]


def losses(scorer, requests: Sequence[ScoreRequest]) -> np.ndarray:
    """(windows, 2): summed cross entropy and number of tokens."""
    sums = [loss for batch in batches_of(requests) for loss in scorer.window_losses(batch)]
    return np.array([[loss, len(request.continuations[0])] for loss, request in zip(sums, requests, strict=True)])


def loss_records(scheme: str, plain: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> list[dict]:
    """A record for every text and, if there are several, for all windows together.

    plain, found: losses by text, of the unquantised and of the quantised model. The interval is that of the increase,
    a 95% bootstrap over windows that are drawn in both.
    """
    texts = {name: [name] for name in found} | ({"all": list(found)} if len(found) > 1 else {})
    records = []
    for text, names in texts.items():
        before, after = (np.concatenate([each[name] for name in names]) for each in (plain, found))
        change = paired_bootstrap(NATS_PER_TOKEN, [(before, after)])
        records.append({
            "scheme": scheme, "text": text, "windows": len(after), "tokens": int(after[:, 1].sum()),
            "loss": float(NATS_PER_TOKEN.figure(after.sum(axis=0))), "increase": change.value,
            "interval": [change.low, change.high]})
    return records
