"""transformers: a Llama of the same shape (gated MLP, rotary positions, tied embeddings)."""

from collections.abc import Iterator

import torch

from tools.benchmarking.machine import Bandwidth, Steps, matrix_rate
from tools.benchmarking.result import Result, Shape, decode_result, prefill_result
from tools.benchmarking.timing import Timing, repeat

ENGINE = "transformers"


def make(shape: Shape, dtype: torch.dtype, device: str):
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    config = LlamaConfig(vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
                         num_hidden_layers=shape.layers, num_attention_heads=shape.heads, tie_word_embeddings=True,
                         max_position_embeddings=4096)
    with torch.device(device):
        model = LlamaForCausalLM(config)
    return model.to(dtype).eval().requires_grad_(False)


def measure(shape: Shape, arguments, bandwidth: Bandwidth) -> Iterator[Result]:
    from glm.loading import DTYPES

    device = arguments.device
    for precision in arguments.dtype:
        dtype = DTYPES[precision]
        model = make(shape, dtype, device)
        for length in arguments.prefill:
            tokens = torch.randint(shape.vocabulary, (1, length), device=device)

            @torch.inference_mode()
            def work(tokens=tokens, model=model):
                return model(input_ids=tokens, use_cache=True, logits_to_keep=1)

            ceiling = matrix_rate(length, shape.linears, dtype, device)
            timing = repeat(work, arguments.repeats, device)
            yield prefill_result(ENGINE, precision, shape, length, timing, ceiling, dtype.itemsize)
        for context in arguments.contexts:
            timing, ceiling = decode(model, shape, context, arguments.steps, device, bandwidth)
            yield decode_result(ENGINE, precision, shape, context, 1, timing, ceiling, dtype.itemsize)


@torch.inference_mode()
def decode(model, shape: Shape, context: int, steps: int, device: str, bandwidth: Bandwidth) -> tuple[Timing, float]:
    """Greedy steps by the model's forward pass: generate() only adds to it."""
    tokens = torch.randint(shape.vocabulary, (1, context), device=device)
    output = model(input_ids=tokens, use_cache=True, logits_to_keep=1)
    clock = Steps(bandwidth, shape.parameters * model.dtype.itemsize)
    for _ in range(steps + Steps.SKIPPED):
        token = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
        clock.done()
    return clock.result()
