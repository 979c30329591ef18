"""Operations with gradients of their own: what plain torch and its autograd give, and what is kept for it."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from kernels import reference
from kernels.gradients import Turned, made_again

CLOSE = dict(rtol=1e-12, atol=1e-12)


def leaf(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)


def gradients_of(result: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return torch.autograd.grad((result * weights).sum(), leaves)


def test_geglu():
    x = leaf(3, 5, 8)
    value, gate = x.chunk(2, -1)
    plain = value * F.gelu(gate)
    torch.testing.assert_close(reference.geglu(x), plain, **CLOSE)
    torch.testing.assert_close(gradients_of(reference.geglu(x), x), gradients_of(plain, x), **CLOSE)


@pytest.mark.parametrize("positions_2d", [False, True])
def test_queries_and_keys_are_turned(positions_2d):
    """By the definition, x * cos + rotate_half(x) * sin; a query that sees nothing is zero and has no gradient."""
    qkv, cosine, sine = leaf(2, 3, 2, 3, 8), leaf(2, 3, 8).detach(), leaf(3, 2, 8).detach().view(2, 3, 8)
    even = torch.tensor([[False, False, True], [False, False, False]])
    parts = qkv[..., :2, :].chunk(4 if positions_2d else 2, dim=-1)
    half_turned = torch.cat([each for first, second in zip(parts[::2], parts[1::2], strict=True)
                             for each in (-second, first)], dim=-1)
    turned = qkv[..., :2, :] * cosine[:, :, None, None] + half_turned * sine[:, :, None, None]
    plain = torch.stack((turned[..., 0, :].masked_fill(even[..., None, None], 0.0), turned[..., 1, :],
                         qkv[..., 2, :]))
    found = torch.stack(Turned.apply(qkv, cosine, sine, positions_2d, even))
    torch.testing.assert_close(found, plain, **CLOSE)
    torch.testing.assert_close(gradients_of(found, qkv), gradients_of(plain, qkv), **CLOSE)


def test_what_is_made_again_is_not_kept_and_gives_the_same_gradients():
    """Twice, where the graph is kept; and nothing stays behind once it is gone."""
    weight, x = leaf(4, 6), leaf(2, 3, 12)
    activate = partial(reference.geglu, x * 2)
    inner = activate()
    with made_again(inner, activate):
        found = F.linear(inner, weight)
    plain, alive = F.linear(reference.geglu(x * 2), weight), weakref.ref(inner)
    del inner
    assert alive() is None
    found_loss, plain_loss = found.square().sum(), plain.square().sum()
    expected = torch.autograd.grad(plain_loss, (weight, x))
    for keeps in (True, False):
        torch.testing.assert_close(torch.autograd.grad(found_loss, (weight, x), retain_graph=keeps), expected, **CLOSE)
    halves = weakref.ref(activate.args[0])
    gc.disable()
    try:
        del activate, found, found_loss
        assert halves() is None  # no cycle holds it
    finally:
        gc.enable()
