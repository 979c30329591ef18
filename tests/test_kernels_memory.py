"""How much the plain torch operations hold at a time, counted on tensors without memory; pieces change nothing.

They are what a GPU without compiled kernels is left with, and a model that is called outside torch.no_grad.
"""

import pytest
import torch

import kernels
from glm.config import ModelConfig
from glm.linear import linears, pack_linears
from glm.model import GLM
from kernels import reference
from quantization.functional import Scheme
from tests.kernel_cases import random_packed
from tests.made_tensors import Made


@pytest.mark.parametrize("bits, group_size", [(8, None), (4, None), (4, 128)])
@pytest.mark.parametrize("has_gradient", [False, True])
def test_a_weight_of_glm_130b_is_unpacked_piece_by_piece(bits, group_size, has_gradient):
    n, k = 65536, 12288
    groups = () if group_size is None else (k // group_size,)
    packed = reference.PackedWeight(torch.empty(n, k * bits // 8, dtype=torch.int8, device="meta"),
                                    torch.empty((n, *groups), dtype=torch.float16, device="meta"), bits, group_size)
    x = torch.empty(2, k, dtype=torch.float16, device="meta", requires_grad=has_gradient)
    with Made() as made:
        output = reference.linear(x, packed, torch.empty(n, dtype=torch.float16, device="meta"))
        if has_gradient:
            output.sum().backward()
    assert output.shape == (2, n) and 0 < max(made.sizes) <= kernels.HEAD_BYTES


def test_logits_outside_no_grad_are_made_once():
    """Of a frozen model in 16 bits: the float32 result and nothing else of its size, nor of an unpacked weight's."""
    config = ModelConfig(num_layers=1, hidden_size=12288, num_attention_heads=96, inner_hidden_size=32768,
                         vocab_size=150528, max_sequence_length=2048)
    model = GLM(config, dtype=torch.bfloat16, device="meta").requires_grad_(False)
    pack_linears(model, {f"{name}.weight": Scheme(4) for name, _ in linears(model)})
    tokens = torch.zeros(1, 400, dtype=torch.int64, device="meta")
    with Made() as made:
        hidden = model.hidden_states(tokens, tokens)
    assert torch.is_grad_enabled() and max(made.sizes) <= kernels.HEAD_BYTES

    with Made() as made:
        logits = model.head(hidden)
    assert logits.dtype == torch.float32 and sorted(made.sizes)[-1] == logits.nbytes > 3 * kernels.HEAD_BYTES
    assert sorted(made.sizes)[-2] <= kernels.HEAD_BYTES


@pytest.mark.parametrize("bits, group_size", [(8, None), (4, 16)])
def test_pieces_give_what_the_whole_gives(bits, group_size, monkeypatch):
    packed, bias = random_packed(50, 48, bits, group_size), torch.randn(50)
    x = torch.randn(2, 3, 48, requires_grad=True)

    def both():
        output = reference.linear(x, packed, bias)
        gradient, = torch.autograd.grad(output.square().sum(), x)
        return reference.linear(x.detach(), packed, bias), output.detach(), gradient

    whole = both()
    monkeypatch.setattr(reference, "HEAD_BYTES", 4 * 48 * 7)  # seven rows and more: eight pieces, the last shorter
    for one, other in zip(whole, both(), strict=True):
        torch.testing.assert_close(one, other)


def test_logits_in_pieces(monkeypatch):
    x, weight = torch.randn(2, 5, 16).bfloat16(), torch.randn(30, 16).bfloat16()
    whole = reference.head(x, weight)
    monkeypatch.setattr(reference, "HEAD_BYTES", 4 * 30 * 3)
    torch.testing.assert_close(reference.head(x, weight), whole)
    assert reference.head(x[:0], weight).shape == (0, 5, 30)
