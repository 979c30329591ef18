"""INT8 and INT4 weights in the compiled CPU backend.

As in test_kernels.py no tolerance is tuned: against q * scale in float64, never rounded, the compiled code may err at
most twice as much as the torch reference does in the same precision.
"""

import os

import pytest
import torch

from kernels import cpu, packing, reference
from kernels.cpu import build

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
VARIANTS = {"native": None, "avx512": ("-O1", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"),
            "avx2": ("-O1", "-mavx2", "-mfma", "-mf16c"), "generic": ("-O1",)}


def has_avx512():
    try:
        with open("/proc/cpuinfo") as file:
            return "avx512bw" in file.read()
    except OSError:
        return False


@pytest.fixture(scope="module", params=VARIANTS)
def ops(request):
    flags = VARIANTS[request.param]
    if (flags and os.uname().machine != "x86_64") or (request.param == "avx512" and not has_avx512()):
        pytest.skip("instructions that this processor does not have")
    try:
        return cpu.Operators(build.load(flags))
    except (build.BuildError, OSError) as error:
        pytest.skip(f"no compiled backend here: {error}")


def random(*shape, dtype=torch.float32, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def random_packed(n, k, bits, group_size, scale_dtype=torch.float16, seed=1):
    """Every value of the integers, the lowest included, and scales that differ from group to group."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (n, k * bits // 8), dtype=torch.int8, generator=generator)
    shape = (n,) if group_size is None else (n, k // group_size)
    scale = (torch.rand(shape, generator=generator) + 0.1) / 2**bits
    return reference.PackedWeight(weight, scale.to(scale_dtype), bits, group_size)


def check(ops, x, packed, bias=None):
    weight = packing.dequantize(packed.weight, packed.scale.double().float(), packed.bits, torch.float32)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    arguments = (x, packed.weight, packed.scale, bias, packed.bits, packed.group_size)
    same, ours = reference.weight_only_linear(*arguments), ops.weight_only_linear(*arguments)
    assert ours.dtype == x.dtype and ours.shape == same.shape
    unit = torch.finfo(x.dtype).eps * exact.abs().max()
    allowed = 2 * (same.double() - exact).abs().max() + unit
    error = (ours.double() - exact).abs().max()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
    return ours


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh outputs are full of NaN, so that a place which is never written shows."""
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: new_empty(self, *a, **k).fill_(float("nan")))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [None, 128, 64, 32, 16, 4, 192])
def test_every_number_of_rows(ops, bits, dtype, group_size, poisoned):
    packed, bias = random_packed(75, 384, bits, group_size), random(75, dtype=dtype, seed=3)
    for rows in (1, 2, 3, 4, 5, 8, 9, 17):
        check(ops, random(rows, 1, 384, dtype=dtype), packed, bias)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k, group_size", [
    (1, 2, None), (3, 6, 2), (5, 34, None), (64, 30, 15), (7, 88, 88), (9, 352, 88), (13, 1024, None), (33, 1026, 3),
    (6, 1368, 342), (4, 2736, 32 * 9), (12, 260, 20), (70, 4200, 8), (3, 12, 1)])
def test_tails_and_odd_groups(ops, bits, dtype, n, k, group_size, poisoned):
    if group_size is not None and k % group_size:
        group_size = None
    packed = random_packed(n, k, bits, group_size)
    for rows in (1, 2, 4, 11):
        check(ops, random(rows, k, dtype=dtype), packed)
