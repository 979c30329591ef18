"""llama.cpp through llama-cpp-python: a random GGUF of the llama architecture at the same shape, by its C interface.

F32, F16 and BF16 follow --dtype; Q8_0 and Q4_0 are always measured beside them, as its users run those.
"""

import ctypes
import math
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tools.benchmarking.results import Shape

TYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
DTYPES = {"F32": torch.float32, "F16": torch.float16}  # of the ceiling; bfloat16 of the others
QUANTISED = ("Q8_0", "Q4_0")
BLOCK = 32  # quantised rows are whole blocks: an inner width that is no multiple is rounded up
BYTES_PER_WEIGHT = {"F32": 4.0, "F16": 2.0, "BF16": 2.0, "Q8_0": 34 / 32, "Q4_0": 18 / 32}


def write_model(path: Path, shape: Shape, kind: str) -> None:
    """A GGUF file with weights of this type, the same random block in every layer, and no vocabulary."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "llama")
    for name, value in {"block_count": shape.layers, "context_length": 4096, "embedding_length": shape.hidden,
                        "feed_forward_length": shape.inner, "head_count": shape.heads, "head_count_kv": shape.heads,
                        "layer_norm_rms_eps": 1e-5, "rope_dimension_count": shape.hidden // shape.heads,
                        "vocab_size": shape.vocabulary, "tokenizer_model": "no_vocab"}.items():
        getattr(writer, f"add_{name}")(value)
    h, i = shape.hidden, shape.inner
    matrices = {"attn_q": (h, h), "attn_k": (h, h), "attn_v": (h, h), "attn_output": (h, h),
                "ffn_gate": (i, h), "ffn_up": (i, h), "ffn_down": (h, i)}
    generator = np.random.default_rng(0)
    quantisation = gguf.GGMLQuantizationType[kind]

    def quantised(n, k):
        return gguf.quants.quantize(generator.standard_normal((n, k), dtype=np.float32) * 0.02, quantisation)

    data = {name: quantised(*size) for name, size in matrices.items()}
    norm = np.ones(h, dtype=np.float32)
    writer.add_tensor("token_embd.weight", quantised(shape.vocabulary, h), raw_dtype=quantisation)
    writer.add_tensor("output_norm.weight", norm)
    for layer in range(shape.layers):
        for name, matrix in data.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", matrix, raw_dtype=quantisation)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """A loaded model and its context, driven token by token."""

    def __init__(self, path: Path, shape: Shape, kind: str, places: int):
        import llama_cpp

        self.precision, self.shape = kind, shape
        self.dtype, self.bytes_per_weight = DTYPES.get(kind, torch.bfloat16), BYTES_PER_WEIGHT[kind]
        self.api = llama_cpp
        self.silence = llama_cpp.llama_log_callback(lambda *_: None)  # kept alive: C holds its address
        llama_cpp.llama_log_set(self.silence, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp does not load the model written for it ({path.name})")
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = places
        parameters.n_batch = parameters.n_ubatch = min(places, 2048)
        parameters.n_threads = parameters.n_threads_batch = torch.get_num_threads()
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)

    def read(self, tokens: torch.Tensor) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        self._append(tokens[0].tolist())

    def step(self) -> None:
        self._append([1])

    def _append(self, tokens: list[int]) -> None:
        array = (self.api.llama_token * len(tokens))(*tokens)
        if self.api.llama_decode(self.context, self.api.llama_batch_get_one(array, len(tokens))):
            raise RuntimeError("llama_decode failed")

    def close(self) -> None:
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def engines(shape: Shape, arguments) -> Iterator[LlamaCpp]:
    places = max([*arguments.prefill, *(c + arguments.steps for c in arguments.contexts)], default=0) + 64
    for kind in [*(TYPES[precision] for precision in arguments.dtype), *QUANTISED]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{kind}.gguf"
            fitted = replace(shape, inner=math.ceil(shape.inner / BLOCK) * BLOCK) if kind in QUANTISED else shape
            write_model(path, fitted, kind)
            with closing(LlamaCpp(path, fitted, kind, places)) as engine:
                yield engine
