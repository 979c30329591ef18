"""Quantisation as formulas: against the original's files, and the bounds that rounding gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.packing import dequantize, pack_int4, unpack_int4
from quantization.functional import quantize
from tests.golden_data import quantized_parts, split_state, whole_state

SCHEMES = st.tuples(st.sampled_from((4, 8)), st.sampled_from((None, 32, 16)))
DTYPES = st.sampled_from((torch.float16, torch.bfloat16, torch.float32))


@pytest.mark.parametrize("bits", [8, 4])
def test_the_original_s_files_bit_for_bit(bits):
    """Weights, scales and packing of every linear on both ranks of golden's tp2_int8 and tp2_int4."""
    compared = 0
    for plain, quantized in zip(split_state(whole_state(), 2), quantized_parts(bits), strict=True):
        for name in quantized:
            if name.endswith("_scale"):
                name = name.removesuffix("_scale")
                weight, scale = quantize(plain[name], bits)
                assert torch.equal(weight, quantized[name]), name
                assert torch.equal(scale, quantized[name + "_scale"]), name
                compared += 1
    assert compared == 2 * 4 * 4  # ranks, layers, linears


def test_int4_packs_the_even_column_high():
    values = torch.tensor([[1, -1, 7, -7]], dtype=torch.int8)
    assert pack_int4(values).tolist() == [[0x1F, 0x79]]
    assert torch.equal(unpack_int4(pack_int4(values)), values)


@given(SCHEMES, DTYPES, st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_no_weight_moves_by_more_than_half_a_step(scheme, dtype, seed, size):
    (bits, group_size), rows, columns = scheme, 5, 64
    weight = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
    packed, scale = quantize(weight, bits, group_size)
    assert packed.shape == (rows, columns * bits // 8) and packed.dtype == torch.int8 and scale.dtype == torch.float16
    assert scale.shape == ((rows,) if group_size is None else (rows, columns // group_size))
    steps = scale.reshape(rows, -1, 1).float()
    moved = (dequantize(packed, scale, bits, torch.float32) - weight.float()).view(rows, steps.shape[1], -1).abs()
    assert (moved <= steps * 0.5 * (1 + 2**-4)).all()  # the scale and, in float16, the quotient are rounded too


def test_a_row_of_zeros_stays_zero():
    weight = torch.zeros(2, 32)
    weight[1] = 1e-7  # too small for a float16 scale
    packed, scale = quantize(weight, 8)
    assert not packed.any() and not scale.any()


def test_groups_follow_an_outlier_more_closely():
    weight = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    weight[:, 3] = 50.0

    def error(group_size):
        return (dequantize(*quantize(weight, 4, group_size), 4, torch.float32) - weight)[:, 32:].square().mean()

    assert error(32) < error(None) / 100


@pytest.mark.parametrize("bits, group_size, columns, message", [
    (3, None, 32, "bits is 3; it must be 4 or 8"),
    (4, None, 33, "33 columns cannot be packed in pairs"),
    (8, 24, 32, "groups of 24 columns do not divide 32 columns"),
])
def test_schemes_that_cannot_be(bits, group_size, columns, message):
    with pytest.raises(ValueError, match=message):
        quantize(torch.ones(2, columns), bits, group_size)
