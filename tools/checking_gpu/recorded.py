"""Is a step that is recorded as a CUDA graph the step that the host starts kernel by kernel, and what does it save?

The embedded model in float32 gives the same ids both ways, over answers that outgrow what a recording looked at; then
the times of a step, and of the host in it. With --device cpu it is a rehearsal, in which nothing is recorded.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from kernels import CUDA_GRAPH
from tools.checking_gpu.answers import CHECKPOINT, OVER, PROMPTS, lacking
from tools.checking_gpu.setting import Setting, scheme_name

ROWS, CONTEXT = [1, 4, 16], 100  # of what is timed


@contextmanager
def switched(value: str | None) -> Iterator[None]:
    """With $GLM_CUDA_GRAPH at this value; None: unset."""
    before = os.environ.pop(CUDA_GRAPH, None)
    try:
        if value is not None:
            os.environ[CUDA_GRAPH] = value
        yield
    finally:
        os.environ.pop(CUDA_GRAPH, None)
        if before is not None:
            os.environ[CUDA_GRAPH] = before


def eager_and_recorded(setting: Setting) -> Iterator[dict]:
    """A row for every way to decode (`right`: the same ids), then a row of times for every number of rows."""
    if reason := lacking():
        yield {"case": reason, "right": True}
        return
    import glm
    from generation import BeamParams, SamplingParams, fill_blanks

    length = setting.sizes(300, 3)  # more than sequences.FEWEST_PLACES
    least = setting.sizes(280, 0)
    modes = {"greedy": SamplingParams(top_k=1, max_gen_length=length, min_gen_length=least),
             "sampled": SamplingParams(top_p=0.8, seed=7, max_gen_length=length),
             "sampled among 20": SamplingParams(top_k=20, temperature=1.2, seed=7, max_gen_length=length),
             "beams": BeamParams(num_beams=4, max_gen_length=setting.sizes(40, 3))}
    texts = setting.sizes(PROMPTS, PROMPTS[1:3])
    for bits, group_size in setting.sizes([(None, None), (4, 32)], [(None, None)]):
        loaded = glm.load(CHECKPOINT, str(setting.device), "float32", bits=bits, group_size=group_size)
        for mode, params in modes.items():
            if not setting.has_time:
                yield OVER
                return
            found = []
            for value in ("no", None):
                with switched(value):
                    results = fill_blanks(*loaded, texts, params)
                found.append([[beam.blank_ids for beam in result.beams] for result in results])
            name = "plain" if bits is None else scheme_name(bits, group_size)
            yield {"case": f"{name}, {mode}", "right": found[0] == found[1] and all(found[0])}
    model, _ = glm.load(CHECKPOINT, str(setting.device), setting.sizes("float16", "float32"))
    for rows in setting.sizes(ROWS, [2]):
        if setting.has_time:
            yield times(setting, model, rows)


@torch.inference_mode()
def times(setting: Setting, model, rows: int) -> dict:
    """Milliseconds of a greedy step of `rows` rows, eager and recorded: until the device is done, and of the host."""
    from tools.benchmarking.own import WARM_UP, product_step
    from tools.benchmarking.rates import clock

    count, row = setting.sizes(50, 2), {"case": f"{rows} rows, {CONTEXT} tokens", "right": True}
    for name, value in (("eager", "no"), ("recorded", None)):
        with switched(value):
            step = product_step(model, CONTEXT, rows, count + WARM_UP)
        for _ in range(WARM_UP):
            step()
        begin = clock(setting.device.type)
        for _ in range(count):
            step()
        host = time.perf_counter() - begin
        whole = clock(setting.device.type) - begin
        row |= {f"{name} ms": 1e3 * whole / count, f"{name} host ms": 1e3 * host / count}
    return row
