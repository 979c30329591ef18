"""Other engines at the same shape with random weights, each where its package is installed; transformers is one."""

import importlib
from collections.abc import Iterator
from typing import Protocol

import torch

from glm.loading import DTYPES
from tools.benchmarking.rates import Bandwidth, Steps, StepsBesideReading
from tools.benchmarking.results import Result, Shape, decode_result, prefill

# engine: (modules it needs, how to get them, the file that has engines(shape, arguments))
ENGINES = {
    "transformers": (["transformers"], "pip install transformers", __name__),
    "llama.cpp": (["llama_cpp", "gguf"], "pip install llama-cpp-python gguf", "tools.benchmarking.peer_llama_cpp"),
    "openvino": (["openvino"], "pip install openvino nncf", "tools.benchmarking.peer_openvino"),
}


class Missing(Exception):
    """An engine cannot be measured here; the message says why and what would help."""


class Engine(Protocol):
    """A model in memory, and its cache."""

    precision: str
    shape: Shape
    dtype: torch.dtype  # of the products that are its ceiling
    bytes_per_weight: float

    def read(self, tokens: torch.Tensor) -> None:
        """Tokens (1, s) into an emptied cache, with the logits of the last one."""

    def step(self) -> None:
        """One token more."""


def engines_of(name: str, arguments, shape: Shape) -> Iterator[Engine]:
    """The models of one engine, in memory one after the other. arguments: device, dtype, prefill, contexts, steps.
    Raises Missing."""
    modules, install, file = ENGINES[name]
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError:
            missing.append(module)
    if missing:
        raise Missing(f"the package {' and '.join(missing)} is not installed; {install}")
    if arguments.device != "cpu" and name != "transformers":
        raise Missing("measured on CPUs only")
    yield from importlib.import_module(file).engines(shape, arguments)


def measure(name: str, arguments, shape: Shape, bandwidth: Bandwidth) -> Iterator[Result]:
    """Prefill and decoding of one engine. arguments: those of its models, and repeats."""
    for engine in engines_of(name, arguments, shape):
        size, kind = engine.bytes_per_weight, (name, engine.precision, engine.shape)
        for length in arguments.prefill:
            tokens = torch.randint(shape.vocabulary, (1, length), device=arguments.device)
            yield prefill(*kind, length, lambda engine=engine, tokens=tokens: engine.read(tokens), arguments.repeats,
                          engine.dtype, arguments.device, size)
        for context in arguments.contexts:
            clock = StepsBesideReading(bandwidth, engine.shape.parameters * size)
            decode(engine, context, arguments.steps, clock, arguments.device)
            yield decode_result(*kind, context, 1, *clock.result(), size)


def decode(engine: Engine, context: int, steps: int, clock: Steps, device: str = "cpu") -> None:
    """Steps of decoding behind `context` tokens, each told to the clock."""
    engine.read(torch.randint(engine.shape.vocabulary, (1, context), device=device))
    clock.start()
    for _ in range(steps + Steps.SKIPPED):
        engine.step()
        clock.done()


class Transformers:
    """A Llama of the same shape: gated MLP, rotary positions, tied embeddings."""

    def __init__(self, shape: Shape, precision: str, device: str):
        from transformers import LlamaConfig, LlamaForCausalLM
        from transformers.utils import logging

        logging.set_verbosity_error()
        self.shape, self.precision, self.dtype = shape, precision, DTYPES[precision]
        self.bytes_per_weight = self.dtype.itemsize
        config = LlamaConfig(vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.inner,
                             num_hidden_layers=shape.layers, num_attention_heads=shape.heads, tie_word_embeddings=True,
                             max_position_embeddings=4096)
        with torch.device(device):
            self.model = LlamaForCausalLM(config).to(self.dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def read(self, tokens: torch.Tensor) -> None:
        self.output = self.model(input_ids=tokens, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def step(self) -> None:
        """By the model's forward pass: generate() only adds to it."""
        token = self.output.logits[:, -1:].argmax(-1)
        self.output = self.model(input_ids=token, past_key_values=self.output.past_key_values, use_cache=True)


def engines(shape: Shape, arguments) -> Iterator[Engine]:
    for precision in arguments.dtype:
        yield Transformers(shape, precision, arguments.device)
