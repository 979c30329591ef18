"""tools/convert_tp.py: golden's splits and quantised files, any degree to any other, quantised input cut and joined."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import glm
from glm.checkpoint import find_shards, read_shard
from glm.config import ModelConfig
from glm.errors import UserError
from kernels.packing import dequantize
from quantization.functional import quantize
from tests.golden_data import (
    SHAPE,
    TOKENIZER,
    digest,
    quantized_parts,
    split_digests,
    split_state,
    whole_state,
    write_checkpoint,
)
from tests.parallel_helper import run_ranks
from tools.convert_tp import main
from tools.converting.convert import convert
from tools.converting.plan import Wish

# 12 heads, inner 24, vocabulary 48: degrees 1, 2, 3, 4, 6, 12; also 4 -> 6 and 6 -> 4, where pieces are cut and joined
TINY = ModelConfig(num_layers=2, hidden_size=48, num_attention_heads=12, inner_hidden_size=24, vocab_size=48,
                   max_sequence_length=8)
DEGREES = (1, 2, 3, 4, 6, 12)
LINEARS = ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


def tiny_state(dtype=torch.float16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden, inner = TINY.hidden_size, TINY.inner_hidden_size
    shapes = {"transformer.word_embeddings.weight": (TINY.vocab_size, hidden)}
    for layer in range(TINY.num_layers):
        prefix = f"transformer.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes |= {f"{prefix}{norm}.weight": (hidden,), f"{prefix}{norm}.bias": (hidden,)}
        for linear, rows, columns in zip(LINEARS, (3 * hidden, hidden, 2 * inner, hidden),
                                         (hidden, hidden, hidden, inner), strict=True):
            shapes |= {f"{prefix}{linear}.weight": (rows, columns), f"{prefix}{linear}.bias": (rows,)}
    shapes |= {"transformer.final_layernorm.weight": (hidden,), "transformer.final_layernorm.bias": (hidden,)}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def quantized(parts, bits, group_size=None):
    for part in parts:
        for name in [name for name in part if name.endswith(tuple(f"{linear}.weight" for linear in LINEARS))]:
            part[name], part[name + "_scale"] = quantize(part[name], bits, group_size)
    return parts


def tiny_checkpoint(folder, degree, **options):
    bits = options.pop("bits", None)
    parts = split_state(tiny_state(**options), degree)
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
    return convert(source, output, Wish(degree, **wish), {}, None)


# What the original computes


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    for degree in (1, 8):
        write_checkpoint(folder / f"tp{degree}", split_state(whole_state(), degree))
    return folder


@pytest.mark.parametrize(("source", "target"), [(1, 2), (1, 8), (8, 1), (8, 4), (8, 2), (8, 8)])
def test_golden_s_splits_tensor_for_tensor(golden, tmp_path, source, target):
    run(golden / f"tp{source}", tmp_path / "out", target)
    found = [{name: digest(tensor) for name, tensor in part.items()} for part in tensors_of(tmp_path / "out")]
    if target == 1:
        assert_same(tensors_of(tmp_path / "out"), [whole_state()])
    else:
        assert found == split_digests()[str(target)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("source", [1, 8])
def test_golden_s_quantised_files_bit_for_bit(golden, tmp_path, source, bits):
    run(golden / f"tp{source}", tmp_path / "out", 2, bits=bits)
    assert_same(tensors_of(tmp_path / "out"), quantized_parts(bits))
