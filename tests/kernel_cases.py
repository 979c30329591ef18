"""What the tests of compiled kernels share: the instruction sets, random tensors, memory that is poisoned."""

import os

import pytest
import torch

from kernels import cpu
from kernels.cpu import build

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# The instruction sets that one x86 processor can pretend to have; elsewhere only the compiler's default is tested.
VARIANTS = {"native": None} | {name: ("-O1", *build.INSTRUCTIONS[name]) for name in ("avx2", "generic")}


@pytest.fixture(scope="module", params=VARIANTS)
def ops(request):
    flags = VARIANTS[request.param]
    if flags and os.uname().machine != "x86_64":
        pytest.skip("x86 instruction sets")
    try:
        found = cpu.Operators(build.load(flags))
    except (build.BuildError, OSError) as error:
        pytest.skip(f"no compiled backend here: {error}")
    assert request.param in ("native", found.path)
    return found


def random(*shape, dtype, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def poison(monkeypatch):
    """Fresh outputs are full of NaN, so that a place which is never written shows."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: new_empty(self, *a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))


def doubled(*tensors):
    return [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in tensors]
