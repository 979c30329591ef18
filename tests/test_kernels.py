"""The compiled CPU backend against its plain torch twin: single operations.

tests/rounding.py says how near is near enough.
"""

import pytest
import torch

from generation import sampling
from kernels import reference
from tests import kernel_cases
from tests.kernel_cases import DTYPES, doubled, poison, random
from tests.rounding import assert_as_good

pytestmark = pytest.mark.usefixtures("two_threads")
ops = kernel_cases.ops


def check(ops, name, *arguments, terms):
    exact = getattr(reference, name)(*doubled(*arguments))
    assert_as_good(getattr(ops, name)(*arguments), getattr(reference, name)(*arguments), exact, terms)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", range(1, 17))
def test_linear_for_every_number_of_rows(ops, dtype, rows, monkeypatch):
    poison(monkeypatch)
    weight, bias = random(75, 136, dtype=dtype, seed=1), random(75, dtype=dtype)
    check(ops, "linear", random(rows, 1, 136, dtype=dtype), weight, bias, terms=136)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k", [(1, 1), (3, 7), (5, 33), (64, 31), (13, 1024), (384, 384), (1024, 2736)])
def test_linear_at_odd_and_real_sizes(ops, dtype, n, k, monkeypatch):
    poison(monkeypatch)
    weight = random(n, k, dtype=dtype, seed=1)
    for rows in (2, 6, 12):
        check(ops, "linear", random(rows, 1, k, dtype=dtype), weight, None, terms=k)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k", [(1, 1), (37, 33), (75, 136), (300, 1026)])
def test_products_of_many_rows(ops, dtype, n, k, monkeypatch):
    poison(monkeypatch)
    weight, bias = random(n, k, dtype=dtype, seed=1), random(n, dtype=dtype, seed=2)
    for x in (random(2, 20, k, dtype=dtype), random(41, 2 * k, dtype=dtype)[:, ::2]):
        check(ops, "linear", x, weight, bias, terms=k)
        check(ops, "linear", x, weight, None, terms=k)
        check(ops, "head", x, weight, terms=k)
    x = random(40, k, dtype=dtype)
    x[3, 0], x[4, -1] = float("inf"), float("nan")
    found = ops.linear(x, weight.abs() + 1)
    assert (found[3] == float("inf")).all() and found[4].isnan().all() and found[5:].isfinite().all()
    weight[n // 2] = float("nan")  # no row of the matrix is read as the end of the one before it
    found = ops.linear(x[5:], weight)
    assert found[:, n // 2].isnan().all() and found.isnan().sum() == len(found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_rows_give_the_same_for_any_threads_and_any_other_rows(ops, dtype):
    """Bit by bit: one thread makes a sum, in an order that k alone decides."""
    x, weight = random(700, 530, dtype=dtype), random(150, 530, dtype=dtype, seed=1)
    check(ops, "linear", x, weight, None, terms=530)
    found = ops.linear(x, weight)
    for first, last in ((0, 17), (3, 52), (300, 700)):
        assert torch.equal(ops.linear(x[first:last], weight), found[first:last])
    for threads in (1, 3):
        torch.set_num_threads(threads)
        assert torch.equal(ops.linear(x, weight), found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_weights_that_lie_whole_pages_apart(ops, dtype):
    """Where the nearest cache would not keep them (AVX-512, 8 ways) they are copied for many rows of x."""
    k = 4096 // dtype.itemsize
    x, weight = random(150, k, dtype=dtype), random(101, k, dtype=dtype, seed=1)
    check(ops, "linear", x, weight, None, terms=k)
    found = ops.linear(x, weight)
    for first, last in ((0, 40), (7, 80), (130, 150)):
        assert torch.equal(ops.linear(x[first:last], weight), found[first:last])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_torch_would_imitate_is_multiplied_in_float32(ops, dtype):
    """So logits are not rounded to 16 bits on their way."""
    if ops.multiplies(dtype):
        pytest.skip("a processor with such products")
    x, weight = random(40, 200, dtype=dtype), random(30, 200, dtype=dtype, seed=1)
    assert_as_good(ops.head(x, weight), reference.head(x.float(), weight.float()), x.double() @ weight.double().T, 200)
    assert not torch.equal(ops.head(x, weight), reference.head(x, weight))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 4, 9])
def test_logits_are_as_exact_as_those_of_a_float32_product(ops, dtype, rows, monkeypatch):
    poison(monkeypatch)
    x, weight = random(rows, 384, dtype=dtype), random(1000, 384, dtype=dtype, seed=1)
    assert_as_good(ops.head(x, weight), reference.head(x.float(), weight.float()), x.double() @ weight.double().T, 384)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("h", [1, 5, 16, 33, 384, 1000])
def test_layer_norms(ops, dtype, h, monkeypatch):
    poison(monkeypatch)
    weight, bias = random(h, dtype=dtype, seed=1), random(h, dtype=dtype, seed=2)
    x, update = random(3, 1, h, dtype=dtype, seed=3, scale=4.0), random(3, 1, h, dtype=dtype, seed=4)
    check(ops, "layer_norm", x, weight, bias, 1e-5, terms=h)
    check(ops, "residual_layer_norm", x, update, 6.9, weight, bias, 1e-5, terms=h)
    check(ops, "scaled_add", x, update, 6.9, terms=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [1, 7, 16, 50, 2736])
def test_geglu(ops, dtype, inner, monkeypatch):
    poison(monkeypatch)
    check(ops, "geglu", random(3, 1, 2 * inner, dtype=dtype, scale=3.0), terms=1)


def test_gelu_keeps_its_relative_precision_in_the_tail(ops):
    gate = torch.linspace(-9, 9, 4001).view(1, 1, -1)
    ours = ops.geglu(torch.cat((torch.ones_like(gate), gate), dim=-1))
    exact = gate.double() * torch.special.erfc(-gate.double() / 2**0.5) / 2
    torch.testing.assert_close(ours.double(), exact, rtol=5e-6, atol=1e-30)


def test_what_the_compiled_code_cannot_take_goes_to_the_reference(ops):
    x, weight = random(2, 1, 40, dtype=torch.float32), random(8, 40, dtype=torch.float32)
    columns = random(40, 8, dtype=torch.float32).t()
    torch.testing.assert_close(ops.linear(x, columns), reference.linear(x, columns))
    wide_bias = random(8, dtype=torch.float64)
    norm = torch.ones(40), torch.zeros(40, dtype=torch.float64)
    for name, arguments in {"linear": (x, weight, wide_bias), "layer_norm": (x, *norm, 1e-5)}.items():
        for backend in (ops, reference):  # torch refuses mixed types; the compiled code must not read them as its own
            with pytest.raises(RuntimeError):
                getattr(backend, name)(*arguments)
    sliced = random(2, 1, 80, dtype=torch.float32)[..., ::2]
    torch.testing.assert_close(ops.linear(sliced, weight), reference.linear(sliced, weight))
    with pytest.raises(ValueError, match="40 columns, weight 39"):
        ops.linear(x, weight[:, :39].contiguous())


def test_products_of_nothing(ops):
    for rows, n in ((0, 5), (3, 0), (0, 0), (12, 0)):
        x, weight = torch.randn(rows, 1, 8), torch.randn(n, 8)
        assert ops.linear(x, weight).shape == ops.head(x, weight).shape == (rows, 1, n)


def test_infinities_and_nans_pass_through(ops):
    for dtype in DTYPES:
        x = torch.tensor([1.0, float("inf"), float("nan"), -2.0], dtype=dtype).view(4, 1, 1)
        result = ops.linear(x, torch.ones(1, 1, dtype=dtype)).flatten()
        assert result[0] == 1 and result[1] == float("inf") and result[2].isnan() and result[3] == -2


@pytest.mark.parametrize("s", [1, 4])
def test_heads_that_share_keys_and_values(ops, s):
    """As if every head had a copy of its group's; the first coordinates turn in adjacent pairs, the others not."""
    b, n, groups, d, start, turning = 3, 6, 2, 8, 5, 4
    q, k, v = (random(b, s, heads, d, dtype=torch.float32, seed=seed) for seed, heads in enumerate((n, groups, groups)))
    angle = random(b, s, turning // 2, dtype=torch.float32, seed=3)
    cosine, sine = (torch.cat((x, x), dim=-1) for x in (angle.cos(), angle.sin()))
    keys, values = (random(b, groups, start + s, d, dtype=torch.float32, seed=seed) for seed in (4, 5))
    blocked = torch.rand(b, s, start + s, generator=torch.Generator().manual_seed(6)) < 0.4
    blocked[1, 0] = True  # a row that may see nothing: an even average

    def turned(x):
        pairs = torch.view_as_complex(x[..., :turning].unflatten(-1, (-1, 2)).contiguous())
        pairs = pairs * torch.polar(torch.ones_like(angle), angle)[:, :, None]
        return torch.cat((torch.view_as_real(pairs).flatten(-2), x[..., turning:]), dim=-1)

    all_keys = torch.cat((keys[:, :, :start].transpose(1, 2), turned(k)), dim=1).repeat_interleave(n // groups, dim=2)
    all_values = torch.cat((values[:, :, :start].transpose(1, 2), v), dim=1).repeat_interleave(n // groups, dim=2)
    scores = torch.einsum("bsnd,btnd->bnst", turned(q), all_keys) / d**0.5
    weights = scores.masked_fill(blocked[:, None], float("-inf")).softmax(-1)
    weights[1, :, 0] = 1 / (start + s)
    expected = torch.einsum("bnst,btnd->bsnd", weights, all_values).flatten(2)
    qkv = torch.cat((q, k, v), dim=2).flatten(2)
    for backend in (reference, ops):
        found = backend.attend_groups(qkv, groups, d, cosine, sine, keys.clone(), values.clone(), start,
                                      blocked)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b, n, groups, d, start, s", [(2, 6, 2, 16, 9, 70), (1, 4, 1, 32, 0, 5), (3, 4, 2, 20, 7, 1)])
def test_attend_groups(ops, dtype, b, n, groups, d, start, s, monkeypatch):
    poison(monkeypatch)
    qkv, angle = random(b, s, (n + 2 * groups) * d, dtype=dtype), random(b, s, d // 2, dtype=torch.float32, seed=1)
    blocked = torch.ones(s, start + s, dtype=torch.bool).triu(start + 1).repeat(b, 1, 1)
    keys, values = (random(b, groups, start + s + 2, d, dtype=dtype, seed=seed) for seed in (2, 3))
    results = []
    for backend, change in ((ops, list), (reference, list), (reference, lambda found: doubled(*found))):
        arguments = change([angle.cos(), angle.sin(), keys.clone(), values.clone()])
        context = backend.attend_groups(*change([qkv]), groups, d, *arguments, start, blocked)
        results.append((context, *arguments[2:]))
    for ours, same, exact in zip(*results, strict=True):
        assert_as_good(ours, same, exact, d + start + s)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [2, 14, 66])
def test_activations_and_rms_norm_without_a_stack(ops, dtype, width, monkeypatch):
    poison(monkeypatch)
    x, weight = random(3, 1, width, dtype=dtype, scale=3.0), random(width, dtype=dtype, seed=1)
    check(ops, "gelu", x, True, terms=1)
    check(ops, "gelu", x, False, terms=1)
    check(ops, "swiglu", x, terms=1)
    check(ops, "rms_norm", x, weight, 1e-5, terms=width)


def test_functions_of_single_values(ops):
    x, weight = random(3, 8, dtype=torch.float32, scale=3.0), random(8, dtype=torch.float32, seed=1)
    for backend in (reference, ops):
        exact = 0.5 * x * (1 + torch.erf(x / 2**0.5))
        near = 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))
        torch.testing.assert_close(backend.gelu(x, True), exact)
        torch.testing.assert_close(backend.gelu(x, False), near)
        assert (exact - near).abs().max() > 1e-4
        torch.testing.assert_close(backend.swiglu(x), x[:, :4] * torch.sigmoid(x[:, :4]) * x[:, 4:])
        normal = weight * x / (x.square().mean(-1, True) + 1e-5).sqrt()
        torch.testing.assert_close(backend.rms_norm(x, weight, 1e-5), normal)


@pytest.mark.parametrize("v", [1, 5, 64, 150, 16385])
def test_sums_of_exponentials(ops, v):
    logits = random(12, v, dtype=torch.float32, scale=20)
    logits[1], logits[2, 0], logits[3] = -65504.0, 88.0, logits[3] - 1e30
    logits[4, -1], logits[5, 0], logits[8] = -torch.inf, torch.inf, -torch.inf
    logits[6, 0], logits[9, 0] = torch.nan, -torch.nan  # of either sign: what processors make of inf - inf has one
    highest, sums = ops.log_sums(logits.view(3, 4, v))
    exact = reference.log_sums(logits.double().view(3, 4, v))[1].flatten()
    assert torch.equal(highest.flatten()[:6], logits.amax(-1)[:6])
    torch.testing.assert_close(sums.flatten().double(), exact, rtol=2e-7, atol=2e-6, equal_nan=True)
    torch.testing.assert_close(ops.log_sums(logits)[1], sums.flatten(), rtol=0, atol=0, equal_nan=True)
    assert torch.equal(ops.log_sums(logits[7:8])[1], sums.flatten()[7:8])  # whatever rows there are beside it


@pytest.mark.parametrize("v", [1, 15, 16, 1000])
def test_random_numbers_are_those_of_the_hash_bit_by_bit(ops, v):
    keys = torch.randint(0, 2**32, (5, 2), generator=torch.Generator().manual_seed(v))
    keys[0], keys[1] = 0, 2**32 - 1
    assert torch.equal(ops.uniforms(keys, v), sampling.uniforms(torch.arange(v), keys))
    assert torch.equal(ops.uniforms(keys.flip(1).contiguous().flip(1), v), ops.uniforms(keys, v))
