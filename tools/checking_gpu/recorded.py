"""Is a step that is recorded as a CUDA graph the step that the host starts kernel by kernel, and what does it save?

The embedded model in float32 gives the same ids both ways, over answers that outgrow what a recording looked at; then
the times of a step, and of the host in it. With --device cpu it is a rehearsal, in which nothing is recorded.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from glm.logits import Logits, approximate_logits
from kernels import CUDA_GRAPH, vocabulary
from tools.checking_gpu.answers import CHECKPOINT, OVER, PROMPTS, lacking
from tools.checking_gpu.setting import Setting, recorded, scheme_name, seconds

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
    model, tokenizer = glm.load(CHECKPOINT, str(setting.device), setting.sizes("float16", "float32"))
    packed, _ = glm.load(CHECKPOINT, str(setting.device), setting.sizes("float16", "float32"), int8_vocabulary="on")
    for mode in ("greedy", "sampled among 20"):
        found = [[result.beams[0].blank_ids for result in fill_blanks(each, tokenizer, texts, modes[mode])]
                 for each in (model, packed)]
        yield {"case": f"vocabulary in INT8, {mode}", "right": found[0] == found[1] and packed.vocabulary is not None}
    yield choosing(setting)
    for rows in setting.sizes(ROWS, [2]):
        if setting.has_time:
            yield times(setting, model, rows)


@torch.inference_mode()
def choosing(setting: Setting) -> dict:
    """Milliseconds of a greedy choice from GLM-130B's hidden state, recorded: by exact logits, and by the matrix in
    INT8. Random rows are more alike than learned ones, so that this choice need not be sure."""
    size, dtype = setting.config.hidden_size, setting.sizes(torch.float16, torch.float32)
    weight = torch.randn(setting.config.vocab_size, size, dtype=dtype, device=setting.device).mul_(size**-0.5)
    hidden, packed = torch.randn(1, size, dtype=dtype, device=setting.device), vocabulary.pack(weight)

    def choose(is_exact: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = Logits(setting.operations.head(hidden, weight)) if is_exact else approximate_logits(
            hidden, weight, packed, looks=False)
        found.refine(1)
        return found.values.argmax(-1), found.decides

    row, tokens = {"case": "choosing a token, vocabulary in INT8"}, []
    for name, is_exact in (("exact", True), ("INT8", False)):
        replay = recorded(setting, [lambda is_exact=is_exact: choose(is_exact)])
        row[f"{name} ms"] = 1e3 * seconds(setting, replay, setting.sizes(20, 1))
        tokens.append(int(replay()[0][0]))
    return row | {"sure": bool(choose(False)[1].all()), "right": tokens[0] == tokens[1]}


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
