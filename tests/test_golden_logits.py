"""Every forward pass of golden/logits.npz, and the same logits from 2, 4 and 8 tensor-parallel ranks."""

import numpy
import pytest
import torch

import glm
from kernels.packing import dequantize
from tests.golden_data import (
    SHAPE,
    TOKENIZER,
    TP1,
    digest,
    logit_arrays,
    logit_cases,
    quantized_parts,
    split_digests,
    split_state,
    whole_state,
    write_checkpoint,
)
from tests.parallel_helper import run_ranks

TOLERANCE = 1e-3
CASES = {case["name"]: case for case in logit_cases()}
WHOLE = [name for name, case in CASES.items() if case["weights"] == "tp1"]
ROTARY = {"rotary_half_table": "half", "rotary_exact_inv_freq": "exact"}


def load(path, **arguments):
    return glm.load(path, tokenizer_path=TOKENIZER, **(SHAPE | arguments))[0]


def logits(model, arrays):
    inputs = [torch.from_numpy(arrays[name]) for name in ("tokens", "position_ids", "attention_mask")]
    return model.logits(*inputs).numpy()


def assert_golden(found, arrays, step=0.0):
    """Whole rows where golden has them; the best 32 and the normaliser at every valid position. step: by so much may
    one value in a hundred be further off."""
    batch, place = arrays["rows"].T
    differences = [found[batch, place] - arrays["logits"]]
    for row, length in enumerate(arrays["valid_length"]):
        valid = found[row, :length]
        best = numpy.take_along_axis(valid, arrays["topk_ids"][row, :length].astype(numpy.int64), axis=-1)
        normaliser = torch.from_numpy(valid).double().logsumexp(-1).numpy()
        differences += [best - arrays["topk_logits"][row, :length], normaliser - arrays["logsumexp"][row, :length]]
    sizes = numpy.abs(numpy.concatenate([difference.ravel() for difference in differences]))
    assert sizes.max() <= TOLERANCE + step and (sizes > TOLERANCE).mean() < 0.01, (sizes.max(), step)


def test_there_are_as_many_cases_as_expected():
    assert len(WHOLE) == 15 and len(CASES) == 19


@pytest.mark.parametrize("name", WHOLE)
def test_logits_equal_golden(name):
    case, arrays = CASES[name], logit_arrays(name)
    model = load(TP1, position_encoding_2d=case["flags"].get("position_encoding_2d", False),
                 rotary_table=ROTARY.get(case["flags"].get("rotary"), "half_inv_freq"))
    found = logits(model, arrays)
    assert numpy.isfinite(found).all()
    # cosines of this table are float16: where processors compute them in float32 with another last place, one may be
    # rounded to the other side, which is a step of float16 in what it is multiplied by
    is_rounded = name == "rotary_half_table"
    assert_golden(found, arrays, numpy.finfo(numpy.float16).eps * numpy.abs(arrays["logits"]).max() * is_rounded)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_logits_equal_golden(tmp_path, bits):
    """In float32 q * scale is not rounded."""
    path = write_checkpoint(tmp_path / "checkpoint", quantized_parts(bits))
    arrays = logit_arrays(f"int{bits}_float_product")
    for found in run_ranks(parallel_logits, 2, tmp_path, path, arrays):
        assert_golden(found, arrays)


@pytest.mark.parametrize("bits", [8, 4])
def test_logits_of_half_precision_products_equal_golden(tmp_path, bits):
    """In float16 q * scale is rounded, as the reference of the kernels does it; golden computed the rest in float32."""
    parts = quantized_parts(bits)
    for part in parts:
        for name in [name for name in part if name.endswith("_scale")]:
            weight = name.removesuffix("_scale")
            part[weight] = dequantize(part[weight], part.pop(name), bits, torch.float16)
    path = write_checkpoint(tmp_path / "checkpoint", parts)
    arrays = logit_arrays(f"int{bits}")
    for found in run_ranks(parallel_logits, 2, tmp_path, path, arrays):
        assert_golden(found, arrays)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantising_while_loading_gives_what_the_original_s_converter_wrote(tmp_path, bits):
    path = write_checkpoint(tmp_path / "checkpoint", split_state(whole_state(), 2))
    arrays = logit_arrays(f"int{bits}_float_product")
    for found in run_ranks(parallel_logits, 2, tmp_path, path, arrays, bits):
        assert_golden(found, arrays)


@pytest.mark.parametrize("degree", [2, 4, 8])
def test_shards_are_the_original_ones(degree):
    """The split that the tests use is that of the original's own conversion."""
    parts = split_state(whole_state(), degree)
    assert [{name: digest(tensor) for name, tensor in part.items()} for part in parts] == split_digests()[str(degree)]


@pytest.mark.parametrize("degree", [2, 4, 8])
def test_tensor_parallel_logits_equal_golden(tmp_path, degree):
    path = write_checkpoint(tmp_path / "checkpoint", split_state(whole_state(), degree))
    arrays = logit_arrays("mask_bidirectional")
    for found in run_ranks(parallel_logits, degree, tmp_path, path, arrays):
        assert_golden(found, arrays)


def parallel_logits(path, arrays, bits=None):
    return logits(load(path, bits=bits), arrays)
