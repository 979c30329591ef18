"""Speed of GLM-130B-shaped layers, and of the whole INT4 model on one GPU, with random weights made on the device.

The layers are those of a decoding step (kernels.cuda.stack), and for more tokens kernels.layer.stack's with the
backend's operations, in the order of glm/model.py, so that SwissArmyTransformer is not needed.
"""

from collections.abc import Iterator

import torch

import kernels
from glm import inputs
from glm.families import glm130b
from glm.spec import linears
from kernels.cuda import Operators
from kernels.cuda.stack import Stack
from kernels.layer import LayerWeights, stack
from kernels.reference import PackedWeight
from tools.checking_gpu.setting import Bandwidth, Setting, bytes_of, random_packed, recorded, scheme_name, seconds

DTYPE = torch.float16
SPARE = 5 << 30  # bytes left free: dequantised weights, activations, what libraries take


class Model:
    """`count` layers of the shape of one tensor-parallel part, and with `has_head` embedding and logits."""

    def __init__(self, setting: Setting, count: int, bits: int | None, group_size: int | None, parts: int = 1,
                 has_head: bool = False):
        config, device = setting.config, setting.device
        self.setting, self.config = setting, config
        h, self.heads = config.hidden_size, config.num_attention_heads // parts

        def vector(size: int, value: float) -> torch.Tensor:
            return torch.full((size,), value, dtype=DTYPE, device=device)

        def matrix(n: int, k: int) -> torch.Tensor | PackedWeight:
            if bits is None:
                return torch.randn(n, k, dtype=DTYPE, device=device).mul_(k**-0.5)
            return random_packed(setting, n, k, bits, group_size)

        def layer() -> LayerWeights:
            (qkv, dense, inner, out), ones, zeros = linears(config, parts).values(), vector(h, 1.0), vector(h, 0.0)
            return LayerWeights(ones, zeros, matrix(*qkv), vector(qkv[0], 0.0), matrix(*dense), zeros,
                                ones, zeros, matrix(*inner), vector(inner[0], 0.0), matrix(*out), zeros)

        self.layers = [layer() for _ in range(count)]
        self.final_norm = vector(h, 1.0), vector(h, 0.0)
        self.embedding = None
        if has_head:
            self.embedding = torch.randn(config.vocab_size, h, dtype=DTYPE, device=device).mul_(0.02)

    @property
    def is_packed(self) -> bool:
        return isinstance(self.layers[0].qkv_weight, PackedWeight)

    @property
    def weight_bytes(self) -> int:
        """Of what a decoding step reads."""
        matrices = [w for layer in self.layers for w in layer if isinstance(w, PackedWeight) or w.dim() == 2]
        return sum(bytes_of(w) if isinstance(w, PackedWeight) else w.nbytes for w in matrices) + (
            0 if self.embedding is None else self.embedding.nbytes)

    def cache(self, batch: int, capacity: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        shape = batch, self.heads, capacity, self.config.head_size
        keys, values = ([torch.zeros(shape, dtype=DTYPE, device=self.setting.device) for _ in self.layers]
                        for _ in range(2))
        return keys, values

    def step(self, tokens: torch.Tensor, keys: list, values: list, start: int, is_ahead: bool = True) -> torch.Tensor:
        """tokens (b, s) behind `start` cached ones -> largest logits (b,), or without a head (b, h). is_ahead: weights
        are expanded beside the products, if they are."""
        ops, config = self.setting.operations, self.config
        positions = torch.arange(start, start + tokens.shape[1], device=tokens.device).expand_as(tokens)
        frequencies = inputs.doubled_frequencies(config.head_size, config.rotary_table, str(tokens.device))
        cosine, sine = inputs.cosine_sine(positions, frequencies)
        if self.embedding is None:
            hidden = (tokens[..., None] + torch.arange(config.hidden_size, device=tokens.device)).sin().to(DTYPE)
        else:
            hidden = torch.nn.functional.embedding(tokens, self.embedding)
        given, form = (self.layers, self.final_norm, keys, values), glm130b.layer_form(config)
        if tokens.shape[1] == 1 and isinstance(ops, Operators):
            hidden = Stack(ops, *given, form).step(hidden, cosine, sine, start)[:, -1]
        else:
            if is_ahead:
                ops = kernels.expanding(ops, tokens.device)
            hidden = stack(*given, form, hidden, cosine, sine, start, operations=ops)[:, -1]
        return hidden if self.embedding is None else ops.head(hidden, self.embedding).amax(-1)


def measure(model: Model, bandwidth: Bandwidth, label: dict, widths: list[int], lengths: list[int],
            context: int) -> dict:
    """One row: decoding behind `context` tokens for each width, recorded as a CUDA graph, and prefill."""
    setting, row, ceiling = model.setting, dict(label), bandwidth.measure()
    row |= {"GB": model.weight_bytes / 1e9, "bandwidth GB/s": ceiling / 1e9}
    for width in widths:
        if setting.has_time:
            keys, values = model.cache(width, context + 1)
            tokens = torch.ones(width, 1, dtype=torch.int64, device=setting.device)
            replay = recorded(setting, [lambda k=keys, v=values, t=tokens: model.step(t, k, v, context)])
            each = seconds(setting, replay, 5)
            row |= {f"decode {width} ms": each * 1e3, f"decode {width} %": 100 * model.weight_bytes / each / ceiling,
                    "finite": bool(torch.isfinite(replay()[0]).all())}
            del replay, keys, values
    for length in lengths:
        if setting.has_time:
            keys, values = model.cache(1, length)
            tokens = torch.arange(length, device=setting.device)[None] % model.config.vocab_size
            each, *in_turn = (seconds(setting, lambda k=keys, v=values, t=tokens, a=is_ahead: model.step(t, k, v, 0, a),
                                      3) for is_ahead in ((True, False) if model.is_packed else (True,)))
            flops = 2 * length * sum(w.shape[0] * w.shape[1] for layer in model.layers for w in layer
                                     if isinstance(w, PackedWeight) or w.dim() == 2)
            row |= {f"prefill {length} ms": each * 1e3, f"prefill {length} TFLOP/s": flops / each / 1e12}
            row |= {f"prefill {length} ms, expanded in turn": 1e3 * in_turn[0]} if in_turn else {}
    return row


@torch.inference_mode()
def layers(setting: Setting) -> Iterator[dict]:
    """A few layers, whole and an eighth, in float16 and quantised."""
    bandwidth = Bandwidth(setting)
    for parts, count in ((1, 2), (8, 8)) if not setting.is_toy else ((1, 1), (2, 1)):
        for bits, group_size in ((None, None), (8, None), (4, None), (4, 32 if setting.is_toy else 128)):
            if not setting.has_time:
                return
            name = "FP16" if bits is None else scheme_name(bits, group_size)
            model = Model(setting, count, bits, group_size, parts)
            yield measure(model, bandwidth, {"layers": f"{count} of 1/{parts}", "weights": name},
                          [1, 4, 16], setting.sizes([512, 2048], [16]), setting.sizes([512], [8])[0])
            del model


def fitting_layers(setting: Setting) -> int:
    """The number of INT4 layers that fit into memory beside embedding and cache."""
    if setting.device.type != "cuda":
        return setting.config.num_layers
    config = setting.config
    cache = 2 * 2 * config.hidden_size * 2049  # keys and values of a layer, float16
    layer = sum(n * k // 2 + 2 * n for n, k in linears(config).values()) + cache
    free, _ = torch.cuda.mem_get_info(setting.device)
    return min(config.num_layers, max(0, free - SPARE - 2 * config.vocab_size * config.hidden_size) // layer)


@torch.inference_mode()
def whole_model(setting: Setting) -> Iterator[dict]:
    """GLM-130B at INT4: embedding, all layers, logits. With too little memory fewer layers, and the row says so."""
    count, total = fitting_layers(setting), setting.config.num_layers
    if count == 0:
        raise MemoryError("not even one INT4 layer of GLM-130B and its embedding fit into the free memory")
    bandwidth = Bandwidth(setting)
    model = Model(setting, count, 4, None, has_head=True)
    label = {"model": "whole" if count == total else f"only {count} of {total} layers: memory", "weights": "INT4"}
    yield measure(model, bandwidth, label, [1, 4], setting.sizes([512, 2048], [16]), setting.sizes([512], [8])[0])
