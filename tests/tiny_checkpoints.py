"""Small random checkpoints for the tests of tools/convert_tp.py and tools/verify_checkpoint.py."""

import torch

from glm.checkpoint import find_shards
from glm.config import ModelConfig
from glm.shard import read_shard
from quantization.functional import quantize
from tests.golden_data import split_state, write_checkpoint
from tools.converting.convert import convert
from tools.converting.plan import Wish

# 12 heads, inner 24, vocabulary 48: degrees 1, 2, 3, 4, 6, 12; also 4 -> 6 and 6 -> 4, where pieces are cut and joined
TINY = ModelConfig(num_layers=2, hidden_size=48, num_attention_heads=12, inner_hidden_size=24, vocab_size=48,
                   max_sequence_length=8)
DEGREES = (1, 2, 3, 4, 6, 12)
LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def tiny_state(dtype=torch.float16, config=TINY):
    """A whole model's tensors, random."""
    generator = torch.Generator().manual_seed(0)
    hidden, inner = config.hidden_size, config.inner_hidden_size
    shapes = {"transformer.word_embeddings.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"transformer.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{prefix}{norm}.weight": (hidden,), f"{prefix}{norm}.bias": (hidden,)}
        for linear, rows, columns in zip(LINEARS, (3 * hidden, hidden, 2 * inner, hidden),
                                         (hidden, hidden, hidden, inner), strict=True):
            shapes |= {f"{prefix}{linear}.weight": (rows, columns), f"{prefix}{linear}.bias": (rows,)}
    shapes |= {"transformer.final_layernorm.weight": (hidden,), "transformer.final_layernorm.bias": (hidden,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def quantized(parts, bits, group_size=None):
    """The parts with their linears quantised, in place."""
    for part in parts:
        for name in [name for name in part if name.endswith(tuple(f"{linear}.weight" for linear in LINEARS))]:
            part[name], part[name + "_scale"] = quantize(part[name], bits, group_size)
    return parts


def tiny_checkpoint(folder, degree, bits=None, dtype=torch.float16):
    """A checkpoint folder of TINY, with its configuration."""
    parts = split_state(tiny_state(dtype), degree)
    write_checkpoint(folder, quantized(parts, bits) if bits else parts)
    TINY.save(folder / "model_config.json")
    return folder


def tensors_of(folder):
    return [read_shard(path).tensors for path in find_shards(folder)]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert set(one) == set(other)
        for name in one:
            assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), name


def run(source, output, degree, **wish):
    """Converts a checkpoint folder."""
    return convert(source, output, Wish(degree, **wish), {}, None)
