"""Decoding on a GPU without the host: one step recorded as a CUDA graph and replayed.

A graph holds addresses and sizes, so that a recorded step always writes the same place of the cache and looks at the
same number of places: right for a clock, not yet a way to generate. Not run yet on a GPU.
"""

from collections.abc import Iterator

import torch

from tools.benchmarking.machine import Bandwidth
from tools.benchmarking.result import Result, Shape, decode_result
from tools.benchmarking.timing import repeat

ENGINE = "glm, CUDA graph"
WARM_UP = 3  # runs on a side stream before recording: libraries choose their algorithms and take their workspaces


@torch.inference_mode()
def decodes(model, shape: Shape, contexts: list[int], widths: list[int], precision: str, device: str, steps: int,
            bandwidth: Bandwidth) -> Iterator[Result]:
    """One token for each of `width` rows behind `context` cached places."""
    for context in contexts:
        for width in widths:
            graph = record(model, context, width, device)
            ceiling = bandwidth.measure()
            timing = repeat(graph.replay, steps, device, warm_up=2)
            ceiling = max(ceiling, bandwidth.measure())
            itemsize = next(model.parameters()).dtype.itemsize
            yield decode_result(ENGINE, precision, shape, context, width, timing, ceiling, itemsize)


def record(model, context: int, width: int, device: str) -> torch.cuda.CUDAGraph:
    cache = model.new_cache(width, context + 1)
    tokens = torch.ones(width, 1, dtype=torch.int64, device=device)
    channels = (width, 2, 1) if model.config.position_encoding_2d else (width, 1)
    positions = torch.full(channels, context, device=device)

    def step():
        cache.length = context
        return model.head(model.hidden_states(tokens, positions, None, cache)[:, -1]).argmax(-1)

    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        graph.kept = (step(), cache, tokens, positions)  # what the recorded addresses point to
    return graph
