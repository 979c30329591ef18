"""Which requests share a batch: like sizes together, under a budget of tokens.

The plan is a function of requests and settings alone, never of ranks, of memory that happens to be free or of what is
already answered: whoever computes a batch, now or after a crash, computes the same one.
"""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.requests import Request

CPU_TOKENS = 4096  # more keeps no processor busier, and the activations leave its caches
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


def default_max_tokens(model) -> int:
    """A budget for this model on its device: what keeps it busy and certainly fits."""
    parameter = next(model.parameters())
    if parameter.device.type != "cuda":
        return CPU_TOKENS
    import torch

    config, ranks = model.config, _tensor_parallel_size()
    total = torch.cuda.get_device_properties(parameter.device).total_memory
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    per_layer = (2 * config.hidden_size  # keys and values
                 + (8 * config.hidden_size + 6 * config.inner_hidden_size) / config.num_layers)  # activations of one
    per_token = config.num_layers * per_layer / ranks * parameter.element_size()
    fitting = (total - weights) * MEMORY_SHARE / per_token
    return int(min(MOST_TOKENS, max(LEAST_TOKENS, fitting // 1024 * 1024)))


def _tensor_parallel_size() -> int:
    from glm import parallel

    return parallel.size() if parallel.is_started() else 1
