"""A shard against what the model needs: differences are named, precision is right, memory stays low."""

from pathlib import Path

import pytest
import torch

from glm import spec
from glm.config import ModelConfig
from glm.inputs import inverse_frequencies
from glm.shard import Shard, read_shard, save_shard
from glm.spec import POSITION_EMBEDDINGS
from glm.weights import (
    bytes_of,
    check_shard,
    convert_shard,
    count_parts,
    quantization_schemes,
    quantized_bits,
)
from quantization import functional
from quantization.functional import Scheme, dequantize, unpack_int4
from runtime.errors import UserError
from tests.parallel_helper import run_ranks

CONFIG = ModelConfig(num_layers=2, hidden_size=16, num_attention_heads=2, inner_hidden_size=12, vocab_size=32,
                     max_sequence_length=8, position_encoding_2d=True)
QKV = "transformer.layers.0.attention.query_key_value.weight"
FREQUENCIES = "transformer.layers.{}.attention.rotary_emb.inv_freq"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def expected():
    return spec.expected(CONFIG)


@pytest.fixture
def tensors(expected):
    return {name: torch.randn(meta.shape).half() for name, meta in expected.items()}


def refused(tensors, expected, config=CONFIG):
    with pytest.raises(UserError) as caught:
        check_shard(Shard(Path("file.pt"), tensors), expected, config)
    assert str(caught.value).startswith("file.pt") and "\n" not in str(caught.value)
    return str(caught.value)


def accept(tensors, expected, dtype=torch.float32):
    shard = Shard(Path("file.pt"), tensors)
    check_shard(shard, expected, CONFIG)
    return convert_shard(shard, expected, dtype, CPU, quantization_schemes(tensors, expected))


def quantize(tensors, expected, bits):
    """Any integers will do: the quantiser is not what is tested."""
    for name in expected:
        if name.endswith(("query_key_value.weight", "dense.weight", "_4h.weight", "4h_to_h.weight")):
            rows, columns = expected[name].shape
            tensors[name] = torch.randint(-128, 128, (rows, columns * bits // 8), dtype=torch.int8)
            tensors[name + "_scale"] = torch.rand(rows).half()
    return tensors


# names, shapes, dtypes


def test_missing_tensors_are_named(tensors, expected):
    del tensors[QKV]
    assert f"lacks {QKV};" in refused(tensors, expected)
    assert "and 22 more" in refused({name: tensors[name] for name in list(tensors)[-2:]}, expected)


def test_extra_tensors_are_named(tensors, expected):
    tensors["transformer.layers.2.mlp.dense_4h_to_h.bias"] = torch.zeros(16)
    message = refused(tensors, expected)
    assert "holds transformer.layers.2.mlp.dense_4h_to_h.bias, which the model does not have" in message
    assert "num_layers 2" in message


def test_wrong_shape_shows_both(tensors, expected):
    tensors[QKV] = tensors[QKV].T
    assert f"{QKV} has the shape (16, 48), the model needs (48, 16)" in refused(tensors, expected)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.float64, torch.complex64])
def test_wrong_dtype_is_named(tensors, expected, dtype):
    tensors[QKV] = tensors[QKV].to(dtype)
    message = refused(tensors, expected)
    assert f"{QKV} has the dtype {str(dtype).removeprefix('torch.')}; allowed: float16, bfloat16, float32" in message


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.float16, torch.bfloat16, torch.float32])
def test_converted_once_and_contiguous(tensors, expected, stored, wanted):
    tensors = {name: tensor.to(stored).t().contiguous().t() for name, tensor in tensors.items()}
    converted = accept(tensors, expected, wanted)
    assert list(converted) == list(expected)
    for name, tensor in converted.items():
        assert tensor.is_contiguous() and torch.equal(tensor, tensors[name].to(wanted))
        assert tensor.dim() == 1 or tensor.data_ptr() != tensors[name].data_ptr()  # vectors are ready where they lie


# what the original's files hold besides


def with_frequencies(tensors, config=CONFIG, dtype=torch.float16):
    for layer in range(config.num_layers):
        tensors[FREQUENCIES.format(layer)] = inverse_frequencies(config.head_size, "exact").to(dtype)
    return tensors


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16])
def test_inverse_frequencies_of_the_full_head_are_checked_and_dropped(tensors, expected, dtype):
    assert list(accept(with_frequencies(tensors, dtype=dtype), expected)) == list(expected)


def test_other_inverse_frequencies_belong_to_another_model(tensors, expected):
    with_frequencies(tensors)[FREQUENCIES.format(1)][2] *= 1.01
    assert f"{FREQUENCIES.format(1)} is not 1 / 10000^(2i / 8)" in refused(tensors, expected)
    tensors[FREQUENCIES.format(1)] = inverse_frequencies(4, "half")
    assert f"{FREQUENCIES.format(1)} has the shape (2,), the model needs (4,)" in refused(tensors, expected)
    del tensors[FREQUENCIES.format(1)]
    assert f"lacks {FREQUENCIES.format(1)}" in refused(tensors, expected)


def test_unused_position_embeddings_are_dropped(tensors, expected):
    tensors[POSITION_EMBEDDINGS] = torch.zeros(8, 16)
    assert POSITION_EMBEDDINGS not in accept(tensors, expected)
    tensors[POSITION_EMBEDDINGS] = torch.zeros(9, 16)
    assert "has the shape (9, 16), the model needs (8, 16)" in refused(tensors, expected)


def test_parts_are_counted_by_the_word_embeddings(tensors):
    assert count_parts(tensors, CONFIG) == 1
    assert count_parts(tensors, CONFIG.override(vocab_size=128)) == 4
    assert count_parts(tensors, CONFIG.override(vocab_size=100)) is None
    assert count_parts({}, CONFIG) is None


# quantised


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_linears_are_recognised_and_stay_packed(tensors, expected, bits):
    quantize(tensors, expected, bits)
    assert quantized_bits(tensors, expected) == bits
    assert quantization_schemes(tensors, expected)[QKV] == Scheme(bits)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        converted = accept(tensors, expected, dtype)
        assert torch.equal(converted[QKV], tensors[QKV])
        assert torch.equal(converted[QKV + "_scale"], tensors[QKV + "_scale"])


def test_scale_for_groups_of_columns(tensors, expected):
    quantize(tensors, expected, 8)
    tensors[QKV + "_scale"] = torch.rand(48, 4).half()
    accept(tensors, expected)
    assert quantization_schemes(tensors, expected)[QKV] == Scheme(8, 4)
    tensors[QKV + "_scale"] = torch.rand(48, 3).half()
    assert f"{QKV}_scale has the shape (48, 3), the model needs (48,)" in refused(tensors, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_quantising_starts_from_what_the_file_holds(tensors, expected, dtype):
    shard = Shard(Path("file.pt"), tensors)
    converted = convert_shard(shard, expected, dtype, CPU, {QKV: Scheme(4, 8)})
    packed, scale = functional.quantize(tensors[QKV], 4, 8)
    assert torch.equal(converted[QKV], packed) and torch.equal(converted[QKV + "_scale"], scale)


def test_half_quantised_files_are_refused(tensors, expected):
    whole = tensors["transformer.layers.1.attention.dense.weight"]
    quantize(tensors, expected, 8)
    tensors["transformer.layers.1.attention.dense.weight"] = whole
    assert "attention.dense.weight has the dtype float16; allowed: int8" in refused(tensors, expected)
    del tensors["transformer.layers.1.attention.dense.weight_scale"]
    assert "lacks transformer.layers.1.attention.dense.weight_scale" in refused(tensors, expected)


def test_int4_has_the_even_column_in_the_high_nibble():
    packed = torch.tensor([[0x12, 0x7F, -128]], dtype=torch.int8)  # 1 2, 7 -1, -8 0
    assert unpack_int4(packed).tolist() == [[1, 2, 7, -1, -8, 0]]
    scale = torch.tensor([0.5], dtype=torch.float16)
    assert dequantize(packed, scale, 4, torch.float32).tolist() == [[0.5, 1, 3.5, -0.5, -4, 0]]


def test_the_product_is_rounded_in_float16_only():
    weight, scale = torch.tensor([[127, 101]], dtype=torch.int8), torch.tensor([0.012345], dtype=torch.float16)
    exact = weight.double() * scale.double()
    assert torch.equal(dequantize(weight, scale, 8, torch.float32).double(), exact)
    assert torch.equal(dequantize(weight, scale, 8, torch.float16), weight.half() * scale)
    assert not torch.equal(dequantize(weight, scale, 8, torch.float16).double(), exact)


# memory


def test_mapped_weights_of_the_right_precision_stay_in_the_file(tmp_path, expected, tensors):
    save_shard(tmp_path / "shard.pt", tensors)
    shard = read_shard(tmp_path / "shard.pt")
    for dtype, is_same in ((torch.float16, True), (torch.float32, False)):
        converted = convert_shard(shard, expected, dtype, CPU, {})
        assert (converted[QKV].data_ptr() == shard.tensors[QKV].data_ptr()) == is_same
        assert torch.equal(converted[QKV], tensors[QKV].to(dtype))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory from Linux's /proc")
@pytest.mark.parametrize("dtype, bits, share", [
    (torch.bfloat16, None, 1), (torch.float16, 4, 1 / 4),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in ((torch.float16, None, 1), (torch.float16, 8, 1 / 2)))])
def test_a_shard_is_in_memory_once(tmp_path, dtype, bits, share):
    """The result and one tensor of 4 MiB, with what it is quantised in; two copies would be twice."""
    shard_bytes, peak_bytes = run_ranks(grown_by_converting, 1, tmp_path, tmp_path / "shard.pt", dtype, bits)[0]
    assert shard_bytes == 256 * 2**20
    assert peak_bytes < share * shard_bytes + (112 * 2**20 if bits else shard_bytes // 2)


def grown_by_converting(path, dtype, bits):
    """Resident memory, with the pages of the mapped file, while a file of 256 MiB is turned into tensors."""
    expected = {f"weight {i}": torch.empty(1024, 2048, device="meta") for i in range(64)}
    save_shard(path, {name: torch.ones(meta.shape, dtype=torch.float16) for name, meta in expected.items()})
    shard = read_shard(path)
    schemes = {name: Scheme(bits) for name in expected} if bits else {}
    if bits:
        functional.quantize(torch.ones(1024, 2048), bits)  # the library's own first use of memory
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = peak_bytes()
    converted = convert_shard(shard, expected, dtype, CPU, schemes)
    assert all(converted[name].ne(0).all() for name in expected)
    return bytes_of(shard, expected), peak_bytes() - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak memory from Linux's /proc")
def test_weights_that_are_quantised_leave_no_holes_of_their_size(tmp_path):
    """The scales stay: what lies between two of them must not be the room of a weight that was copied elsewhere."""
    result, growth = run_ranks(grown_by_quantising, 1, tmp_path, tmp_path / "shard.pt")[0]
    assert result == 96 * 2**21 and growth < 1.3 * result  # twice, where there are holes


def grown_by_quantising(path):
    """Bytes of 96 weights in INT8, and by how much resident memory has grown when they are there."""
    expected = {f"weight {i}": torch.empty(1024, 2048, device="meta") for i in range(96)}
    save_shard(path, {name: torch.ones(meta.shape, dtype=torch.float16) for name, meta in expected.items()})
    shard = read_shard(path)
    functional.quantize(torch.ones(1024, 2048), 8)
    before = anonymous_bytes()
    converted = convert_shard(shard, expected, torch.float16, CPU, dict.fromkeys(expected, Scheme(8)))
    return sum(converted[name].nbytes for name in expected), anonymous_bytes() - before


def anonymous_bytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def peak_bytes():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
