"""OpenVINO: a decoder of the same shape written in plain torch, converted with its cache as the model's state.

Weights follow --dtype, compressed as OpenVINO keeps them; arithmetic is bf16 for bf16 and fp16, f32 for fp32. Where
NNCF is installed, which OpenVINO's users pack weights with, INT8 and INT4 by whole rows (the vocabulary in INT8)
follow, with the arithmetic of the first --dtype and all else as OpenVINO chooses: x is rounded to INT8 there.
"""

from collections.abc import Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from io import StringIO

import torch
import torch.nn.functional as F

from glm.loading import DTYPES
from tools.benchmarking.results import Shape

PACKED = ("INT8", "INT4")


class Decoder(torch.nn.Module):
    """tokens (1, s), positions (1, s), parents (1), then keys and values of every layer (1, n, t, d)
    -> logits of the last place, then keys and values of t + s places.

    parents picks rows of the cache, as beam search does: with it OpenVINO recognises attention over a cache and fuses
    it. RMS norms, rotary positions, gated MLPs: what such engines are tuned for.
    """

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape, self.size = shape, shape.hidden // shape.heads
        matrix = torch.nn.Linear
        self.embedding = torch.nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleList(matrix(k, n, bias=False) for n, k in shape.linears) for _ in range(shape.layers))
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        self.register_buffer("frequencies", 10000.0 ** -(torch.arange(0, self.size, 2) / self.size))

    def forward(self, tokens, positions, parents, *cache):
        angles = positions.unsqueeze(-1).float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)  # (1, 1, s, d)
        cosine, sine = angles.cos(), angles.sin()
        hidden, kept = self.embedding(tokens), []
        for index, (qkv, dense, inward, outward) in enumerate(self.layers):
            b, s = tokens.shape
            parts = qkv(norm(hidden)).view(b, s, 3, self.shape.heads, self.size).permute(2, 0, 3, 1, 4)
            q, k, v = rotate(parts[0], cosine, sine), rotate(parts[1], cosine, sine), parts[2]
            k = torch.cat((cache[2 * index].index_select(0, parents), k), dim=2)
            v = torch.cat((cache[2 * index + 1].index_select(0, parents), v), dim=2)
            kept += [k, v]
            context = F.scaled_dot_product_attention(q, k, v)
            hidden = hidden + dense(context.transpose(1, 2).reshape(b, s, -1))
            value, gate = inward(norm(hidden)).chunk(2, dim=-1)
            hidden = hidden + outward(value * F.gelu(gate))
        return (F.linear(norm(hidden)[:, -1:], self.embedding.weight), *kept)


def norm(x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)


def rotate(x, cosine, sine):
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat((-second, first), dim=-1) * sine


def compiled(shape: Shape, precision: str, arithmetic: str):
    """An inference request of the converted, stateful model, and the bytes of its weights."""
    import openvino
    from openvino._offline_transformations import apply_make_stateful_transformation, compress_model_transformation

    module = Decoder(shape).eval()
    size = shape.hidden // shape.heads
    empty = [torch.zeros(1, shape.heads, 1, size) for _ in range(2 * shape.layers)]
    tokens = torch.ones(1, 2, dtype=torch.int64)
    parents = torch.zeros(1, dtype=torch.int64)
    free = openvino.PartialShape([-1, -1])
    places = openvino.PartialShape([-1, shape.heads, -1, size])
    with torch.no_grad():
        inputs = [(free, openvino.Type.i64)] * 2 + [(openvino.PartialShape([-1]), openvino.Type.i64)]
        inputs += [(places, openvino.Type.f32)] * len(empty)
        model = openvino.convert_model(module, example_input=(tokens, tokens, parents, *empty), input=inputs)
    pairs = {}
    for index in range(len(empty)):
        model.inputs[3 + index].get_tensor().set_names({f"past{index}"})
        model.outputs[1 + index].get_tensor().set_names({f"present{index}"})
        pairs[f"past{index}"] = f"present{index}"
    apply_make_stateful_transformation(model, pairs)
    if precision in PACKED:
        import nncf

        nncf.set_log_level("ERROR")
        rows = {"group_size": -1} if precision == "INT4" else {}
        with redirect_stdout(StringIO()):  # its bar of progress
            model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode(f"{precision.lower()}_sym"), **rows)
    elif precision != "fp32":
        compress_model_transformation(model)  # weights in 16 bits, as OpenVINO stores models
    size = sum(node.get_byte_size() for node in model.get_ops() if node.get_type_name() == "Constant")
    hint = "f32" if arithmetic == "fp32" else "bf16"
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.Core().compile_model(model, "CPU", settings).create_infer_request(), size


class OpenVino:
    """A compiled model and its state."""

    def __init__(self, shape: Shape, precision: str, arithmetic: str):
        self.shape, self.precision, self.dtype = shape, precision, DTYPES[arithmetic]
        self.request, size = compiled(shape, precision, arithmetic)
        self.bytes_per_weight, self.places = size / shape.parameters, 0

    def read(self, tokens: torch.Tensor) -> None:
        self.request.reset_state()
        self.places = 0
        self._append(tokens)

    def step(self) -> None:
        self._append(torch.ones(1, 1, dtype=torch.int64))

    def _append(self, tokens: torch.Tensor) -> None:
        positions = torch.arange(self.places, self.places + tokens.shape[1])[None]
        self.request.infer([tokens.numpy(), positions.numpy(), torch.zeros(1, dtype=torch.int64).numpy()])
        self.places += tokens.shape[1]


def engines(shape: Shape, arguments) -> Iterator[OpenVino]:
    for precision in arguments.dtype:
        yield OpenVino(shape, precision, precision)
    for precision in PACKED if find_spec("nncf") else ():
        yield OpenVino(shape, precision, arguments.dtype[0])
