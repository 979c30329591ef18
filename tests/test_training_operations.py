"""The compiled gradients (kernels/cpu/training.py): those of the reference in float64, to float32's rounding."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from kernels import reference
from kernels.cpu.training import Training
from kernels.gradients import Drop
from tests.kernel_cases import ops as compiled_ops  # noqa: F401

CLOSE = dict(rtol=2e-5, atol=5e-6)
EPSILON = 1e-5


@pytest.fixture(scope="module")
def ops(compiled_ops) -> Training:  # noqa: F811
    return Training(compiled_ops)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def check(found: Callable, wanted: Callable, *leaves: torch.Tensor) -> None:
    """Results and gradients of the same weighted sum of them."""
    def results(function, dtype):
        own = [leaf.to(dtype, copy=True).requires_grad_() for leaf in leaves]
        out = function(*own)
        weights = torch.linspace(-1, 1, out.numel(), dtype=dtype).view_as(out)
        return [out, *torch.autograd.grad((out * weights).sum() / len(out), own)]

    for one, other in zip(results(found, torch.float32), results(wanted, torch.float64), strict=True):
        torch.testing.assert_close(one.double(), other, **CLOSE)


@pytest.mark.parametrize("inner", [8, 23])
def test_activations(ops, inner):
    x = 4 * numbers(3, 5, 2 * inner)
    check(ops.geglu, reference.geglu, x)
    check(ops.swiglu, reference.swiglu, x)
    for is_exact in (True, False):
        check(partial(ops.gelu, is_exact=is_exact), partial(reference.gelu, is_exact=is_exact), x)


@pytest.mark.parametrize("h", [16, 37])
def test_norms(ops, h):
    """More rows than threads, and a mean far from zero."""
    x, residual, weight, bias = 1 + numbers(5, 9, h), numbers(5, 9, h, seed=1), numbers(h), numbers(h, seed=1)
    check(partial(ops.layer_norm, epsilon=EPSILON), partial(reference.layer_norm, epsilon=EPSILON), x, weight, bias)
    check(partial(ops.rms_norm, epsilon=EPSILON), partial(reference.rms_norm, epsilon=EPSILON), x, weight)
    check(lambda *each: ops.residual_layer_norm(*each[:2], 3.0, *each[2:], EPSILON),
          lambda *each: reference.residual_layer_norm(*each[:2], 3.0, *each[2:], EPSILON), residual, x, weight, bias)


@pytest.mark.parametrize(("rows", "length", "heads", "size", "is_2d"),
                         [(2, 5, 3, 8, False), (1, 133, 2, 24, True), (1, 40, 1, 128, False)])
@pytest.mark.parametrize("is_blocked", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_attention(ops, rows, length, heads, size, is_2d, is_blocked, share):
    """More queries than a block of them, heads that fill no vectors, and a row that sees nothing; where some weights
    are dropped, the same ones."""
    steps = torch.arange(rows * length).view(rows, length, 1) * 0.9 ** torch.arange(size // (4 if is_2d else 2))
    places = [steps / (1 + part) for part in range(1 + is_2d)]
    angles = torch.cat([torch.cat((each, each), -1) for each in places], -1)
    blocked = (numbers(rows, length, length) < 0) if is_blocked else None
    if is_blocked:
        blocked[0, 2] = True
    drop = Drop(torch.rand(rows, heads, length, length) >= share, share) if share else None
    check(partial(ops.attend, cosine=angles.cos(), sine=angles.sin(), blocked=blocked, positions_2d=is_2d, drop=drop),
          partial(reference.attend, cosine=angles.double().cos(), sine=angles.double().sin(), blocked=blocked,
                  positions_2d=is_2d, drop=drop), numbers(rows, length, heads * 3 * size))


@pytest.mark.parametrize("parts", [1, 3])
def test_scores_of_tokens(ops, parts, monkeypatch):
    """A place that nobody owns, one with several tokens, out of order; all three scores count."""
    n, v, h = 7, 45, 12
    monkeypatch.setattr("kernels.cpu.training.HEAD_BYTES", 4 * v * (n // parts + 1))
    owners, targets = torch.tensor([5, 0, 3, 3, 6, 1, 2]), torch.tensor([44, 0, 7, 7, 3, 2, 1])

    def plain(hidden, weight):
        logits = F.linear(hidden, weight)
        logs = logits.log_softmax(-1)
        return torch.stack((logits[owners, targets], logs[owners, targets], logs.mean(-1)[owners]))

    def own(hidden, weight):
        return torch.stack(ops.score_tokens(hidden, weight, owners, targets)[:3])

    hidden, weight = numbers(n, h), numbers(v, h, seed=1)
    check(own, plain, hidden, weight)
    check(lambda hidden: own(hidden, weight), lambda hidden: plain(hidden, weight.double()), hidden)
    check(lambda hidden: own(hidden, weight)[1], lambda hidden: plain(hidden, weight.double())[1], hidden)
    weight[3] = weight[7]  # a tie is the first's
    is_best = ops.score_tokens(hidden, weight, owners, targets)[3]
    assert is_best.tolist() == (F.linear(hidden, weight).argmax(-1)[owners] == targets).tolist()


def test_no_tokens_teach_nothing(ops):
    hidden, weight, nobody = numbers(0, 12).requires_grad_(), numbers(45, 12).requires_grad_(), torch.arange(0)
    sum(each.sum() for each in ops.score_tokens(hidden, weight, nobody, nobody)[:3]).backward()
    assert hidden.grad.shape == (0, 12) and weight.grad.eq(0).all()
