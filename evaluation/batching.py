"""Which requests share a batch: like sizes together, under a budget of tokens.

The plan is a function of requests and settings alone, never of ranks, of memory that happens to be free or of what is
already answered: whoever computes a batch, now or after a crash, computes the same one.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.requests import Request, ScoreRequest
from generation.batching import CACHE_BYTES, bytes_per_place

CPU_TOKENS = 4096  # to score: more keeps no processor busier, and the activations leave its caches
CPU_PLACES = 16384  # to generate: places of the cache, many of which are looked at for every token that is computed
LEAST_TOKENS, MOST_TOKENS = 2048, 65536
MEMORY_SHARE = 0.5  # of what the weights leave of a GPU


def plan(requests: Sequence[Request], max_tokens: int, max_items: int | None = None) -> list[list[int]]:
    """Indices of the requests of every batch; the largest first, so that memory that is short shows at once.

    max_tokens: most places of a batch, padding included; a larger request is a batch of its own.
    max_items: most requests of a batch; None: as many as fit.
    """
    families: dict[tuple, list[int]] = {}
    for index, request in enumerate(requests):
        families.setdefault(request.family, []).append(index)
    batches = []
    for members in families.values():
        members.sort(key=lambda index: (-requests[index].size, index))
        batch: list[int] = []
        for index in members:
            full = batch and (len(batch) + 1) * requests[batch[0]].size > max_tokens
            if full or len(batch) == max_items:
                batches.append(batch)
                batch = []
            batch.append(index)
        batches.append(batch)
    return batches


def default_max_tokens(model, requests: Sequence[Request]) -> int:
    """A budget for such requests to this model on its device: what keeps it busy and certainly fits."""
    parameter = next(model.parameters())
    if parameter.device.type == "cuda":
        return _fitting_gpu(model, parameter)
    if all(isinstance(request, ScoreRequest) for request in requests):
        return CPU_TOKENS
    return min(CPU_PLACES, CACHE_BYTES // bytes_per_place(model))


def _fitting_gpu(model, parameter) -> int:
    import torch

    total = torch.cuda.get_device_properties(parameter.device).total_memory
    return gpu_tokens(model.config, parameter.element_size(), bytes_per_place(model), total,
                      model.weight_bytes())


def gpu_tokens(config, element: int, per_place: int, total: float, weights: float) -> int:
    """Tokens of a batch for a GPU of `total` bytes with these weights. element: bytes of an activation; per_place: of
    one token's keys and values."""
    activations = (8 * config.hidden_size + 6 * config.inner_hidden_size) * element  # of one layer
    fitting = (total - weights) * MEMORY_SHARE / (per_place + activations)
    return int(min(MOST_TOKENS, max(LEAST_TOKENS, fitting // 1024 * 1024)))
