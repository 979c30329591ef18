"""The linear of a layer: whole and in parts, plain and packed, with adapters; and that nobody goes round it."""

import pytest
import torch

from generation import SamplingParams
from generation.batch import generate
from glm.linear import Linear, linears, pack_linears, quantization_of
from glm.model import GLM
from glm.spec import Cut
from kernels import reference
from quantization.functional import Scheme, dequantize, quantize
from runtime import parallel
from tests.parallel_helper import run_ranks
from tests.tiny_checkpoints import TINY

ROWS, COLUMNS = 6, 8


class LowRank(torch.nn.Module):
    """up(down(x)): what an adapter of the usual kind adds."""

    def __init__(self, down: torch.Tensor, up: torch.Tensor):
        super().__init__()
        self.down, self.up = torch.nn.Parameter(down), torch.nn.Parameter(up)

    def forward(self, output, x, operations):
        return output + operations.linear(operations.linear(x, self.down), self.up)


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(weight, bias, cut=Cut.ROWS):
    linear = Linear(tuple(weight.shape), cut, weight.dtype, "cpu")
    linear.load_state_dict({"weight": weight, "bias": bias})
    return linear


def test_plain_and_packed():
    weight, bias, x = numbers(ROWS, COLUMNS), numbers(ROWS, seed=1), numbers(3, COLUMNS, seed=2)
    linear = filled(weight, bias)
    torch.testing.assert_close(linear(x, reference), x @ weight.T + bias)
    for scheme in (Scheme(8), Scheme(4), Scheme(8, 4)):
        packed, scale = quantize(weight, *scheme)
        linear = filled(weight, bias)
        linear.pack(scheme)
        assert set(dict(linear.named_parameters())) == {"weight", "weight_scale", "bias"}
        linear.load_state_dict({"weight": packed, "weight_scale": scale, "bias": bias})
        torch.testing.assert_close(linear(x, reference), x @ dequantize(packed, scale, scheme.bits, x.dtype).T + bias)


def _on_a_rank(cut, weight, bias, x, down, up):
    parallel.start(2)
    half = slice(parallel.rank() * (ROWS // 2 if cut is Cut.ROWS else COLUMNS // 2),
                 (parallel.rank() + 1) * (ROWS // 2 if cut is Cut.ROWS else COLUMNS // 2))
    if cut is Cut.ROWS:
        weight, bias, up = weight[half], bias[half], up[half]
    else:
        weight, down, x = weight[:, half], down[:, half], x[:, half]
    linear = filled(weight, bias, cut)
    linear.adapters["task"] = LowRank(down, up)
    with torch.no_grad():
        return linear(x, reference)


@pytest.mark.parametrize("cut", [Cut.ROWS, Cut.COLUMNS])
def test_two_ranks_are_one_with_adapters_too(cut, tmp_path):
    weight, bias, x = numbers(ROWS, COLUMNS), numbers(ROWS, seed=1), numbers(3, COLUMNS, seed=2)
    down, up = numbers(2, COLUMNS, seed=3), numbers(ROWS, 2, seed=4)
    whole = x @ weight.T + bias + x @ down.T @ up.T
    one, other = run_ranks(_on_a_rank, 2, tmp_path, cut, weight, bias, x, down, up)
    if cut is Cut.ROWS:
        torch.testing.assert_close(torch.cat([one, other], dim=-1), whole)
    else:
        torch.testing.assert_close(one, whole)
        assert torch.equal(one, other)


@pytest.fixture
def model():
    torch.manual_seed(3)
    return GLM(TINY, skip_init=False).requires_grad_(False).eval()


@torch.no_grad()
def test_an_adapter_is_heard_while_decoding(model):
    """The compiled step reads weights and would not know of it: SAT walks the layers then."""
    context, params = [[5, 9, 2, 3, 7]], SamplingParams(top_k=1, max_gen_length=6)

    def ids():
        return generate(model, context, params, end_tokens=[1], limits=[6])

    alone = ids()
    for number, (_, linear) in enumerate(linears(model)):
        n, k = linear.weight.shape
        linear.adapters["task"] = LowRank(numbers(2, k, seed=number), torch.zeros(n, 2))
    assert ids() == alone  # it adds nothing yet
    for _, linear in linears(model):
        linear.adapters["task"].up.copy_(numbers(*linear.adapters["task"].up.shape))
    adapted = ids()
    for _, linear in linears(model):
        adapter = linear.adapters["task"]
        linear.weight += adapter.up @ adapter.down
        del linear.adapters["task"]
    assert adapted == ids() != alone


def test_names_and_words(model):
    names = [name for name, _ in linears(model)]
    assert len(names) == 4 * TINY.num_layers and names[0] == "transformer.layers.0.attention.query_key_value"
    assert quantization_of(model) is None
    pack_linears(model, {f"{names[0]}.weight": Scheme(4, 16), f"{names[1]}.weight": Scheme(4)})
    assert quantization_of(model) == "INT4, groups of 16 columns or whole rows"
    pack_linears(model, {f"{name}.weight": Scheme(4) for name in names}, ranks=2)
    assert quantization_of(model) == "INT4, rows in 2 parts"  # of those that are cut by columns
    pack_linears(model, {f"{name}.weight": Scheme(4, 16) for name in names}, ranks=2)
    assert quantization_of(model) == "INT4, groups of 16 columns"
