"""INT8 and INT4 weights in the compiled CPU backend.

Exact is q * scale in float64, never rounded; tests/rounding.py says how near is near enough.
"""

import pytest
import torch

from kernels import packing, reference
from kernels.cpu import stack
from kernels.layer import LayerWeights
from kernels.layer import stack as walk
from tests import kernel_cases
from tests.kernel_cases import DTYPES, FORMS, poison, random_layers, random_packed
from tests.rounding import assert_as_good, of_an_integer, of_integers

pytestmark = pytest.mark.usefixtures("two_threads")
ops = kernel_cases.ops


def random(*shape, dtype=torch.float32, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def check(ops, x, packed, bias=None):
    weight = packing.dequantize(packed.weight, packed.scale.double().float(), packed.bits, torch.float32)
    exact = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    arguments = (x, packed.weight, packed.scale, bias, packed.bits, packed.group_size)
    same, ours = reference.weight_only_linear(*arguments), ops.weight_only_linear(*arguments)
    assert_as_good(ours, same, exact, x.shape[-1], of_integers(x, weight))
    return ours


@pytest.fixture
def poisoned(monkeypatch):
    poison(monkeypatch)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [None, 128, 64, 32, 16, 4, 192])
def test_every_number_of_rows(ops, bits, dtype, group_size, poisoned):
    packed, bias = random_packed(75, 384, bits, group_size), random(75, dtype=dtype, seed=3)
    for rows in (*range(1, 10), 12, 15, 16, 17):
        check(ops, random(rows, 1, 384, dtype=dtype), packed, bias)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k, group_size", [
    (1, 2, None), (3, 6, 2), (5, 34, None), (64, 30, 15), (7, 88, 88), (9, 352, 88), (13, 1024, None), (33, 1026, 3),
    (6, 1368, 342), (4, 2736, 32 * 9), (12, 260, 20), (70, 4200, 8), (3, 12, 1), (7, 4160, None), (5, 1280, 256),
    (6, 1536, 512), (4, 2736, None), (5, 2752, 64), (9, 80, 16), (9, 1360, 16), (3, 240, 48), (2, 8192, 4096),
    (3, 1024, 128)])
def test_tails_and_odd_groups(ops, bits, dtype, n, k, group_size, poisoned):
    if group_size is not None and k % group_size:
        group_size = None
    packed = random_packed(n, k, bits, group_size)
    for rows in (1, 2, 3, 4, 7, 14, 19):
        check(ops, random(rows, k, dtype=dtype), packed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n, k, group_size", [(5, 35, 7), (4, 77, None), (6, 301, 43)])
def test_rows_of_an_odd_number_of_bytes(ops, dtype, n, k, group_size, poisoned):
    for rows in (2, 19):
        check(ops, random(rows, k, dtype=dtype), random_packed(n, k, 8, group_size))


def unpacked(layer):
    """The same layer with float64 matrices."""
    return LayerWeights(*(
        packing.dequantize(part.weight, part.scale, part.bits, torch.float32).double()
        if isinstance(part, reference.PackedWeight) else None if part is None else part.double() for part in layer))


def check_stack(ops, dtype, b, formats, family, groups):
    n, d, inner, start = 2, 64, 352, 5
    h = n * d
    layers, final = random_layers(dtype, 2, n, d, inner, family, groups, formats)
    hidden, angle = random(b, 1, h, dtype=dtype, seed=5), random(b, 1, d)
    keys, values = ([random(b, groups, start + 1, d, dtype=dtype, seed=i + j) for j in range(2)] for i in (30, 40))
    doubled = [[t.double() for t in cached] for cached in (keys, values)]
    copies = [[t.clone() for t in cached] for cached in (keys, values)]
    form = FORMS[family]
    exact = walk([unpacked(layer) for layer in layers], tuple(t if t is None else t.double() for t in final), *doubled,
                 form, hidden.double(), angle.cos().double(), angle.sin().double(), start)
    same = walk(layers, final, *copies, form, hidden, angle.cos(), angle.sin(), start)
    assert stack.fits(layers, final, keys, values, form)
    ours = stack.Stack(ops, layers, final, keys, values, form).step(hidden, angle.cos(), angle.sin(), start)
    products = 4 * len(layers)  # one after another
    assert_as_good(ours, same, exact, len(layers) * (3 * h + inner + d + start + 1),
                   6 * of_an_integer(dtype) * products**0.5 * exact.abs().max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b", [1, 10])
@pytest.mark.parametrize("formats", [
    [(8, None)] * 4, [(4, None)] * 4, [(4, 32)] * 4, [(8, 64), None, (4, 128), (4, 22)]], ids=str)
def test_a_stack_of_packed_layers_in_one_call(ops, dtype, b, formats):
    check_stack(ops, dtype, b, formats, "glm-130b", groups=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family, groups", [("glm", 2), ("chatglm", 2), ("chatglm2", 1)])
def test_packed_layers_of_other_families(ops, dtype, family, groups):
    check_stack(ops, dtype, 2, [(8, None), (4, 32), (4, None), (8, 32)], family, groups)


def test_a_stack_with_scales_that_do_not_fit_is_left_to_the_single_operations():
    form = FORMS["glm-130b"]
    layers, final = random_layers(torch.float32, 1, 2, 16, 48, formats=[(8, None)] * 4)
    keys, values = ([torch.zeros(1, 2, 4, 16)] for _ in range(2))
    assert stack.fits(layers, final, keys, values, form)
    good = layers[0].in_weight
    for wrong in (good._replace(scale=good.scale[:-1]), good._replace(group_size=16), good._replace(bits=4),
                  good._replace(scale=good.scale.double()), good._replace(weight=good.weight.t().contiguous().t())):
        assert not stack.fits([layers[0]._replace(in_weight=wrong)], final, keys, values, form)


def test_what_does_not_belong_together_is_refused(ops):
    packed, x = random_packed(8, 64, 8, 32), random(2, 64)
    arguments = {"x": x, "weight": packed.weight, "scale": packed.scale, "bias": None, "bits": 8, "group_size": 32}
    ops.weight_only_linear(**arguments)
    for change, part in [
        ({"bits": 3}, "bits is 3"), ({"x": x.double()}, "float64"), ({"weight": packed.weight.short()}, "int16"),
        ({"weight": packed.weight.t().contiguous().t()}, "contiguous"), ({"x": x[:, :60]}, "has 64 columns"),
        ({"group_size": 48}, "do not divide"), ({"scale": packed.scale[:, :1]}, "is needed"),
        ({"scale": packed.scale.t().contiguous().t()}, "contiguous"), ({"bias": torch.zeros(7)}, "(8,) is needed"),
        ({"bias": torch.zeros(8, dtype=torch.float16)}, "x's dtype"), ({"group_size": 0}, "do not divide"),
    ]:
        with pytest.raises(ValueError, match="weight_only_linear: ") as error:
            ops.weight_only_linear(**{**arguments, **change})
        assert part in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_any_stride_and_addresses_of_any_alignment(ops, bits):
    packed = random_packed(9, 80, bits, 16)
    weight, scale = (torch.cat((t.flatten()[:1], t.flatten()))[1:].view(t.shape) for t in packed[:2])
    x = random(160, 3).t()[:, ::2]
    plain = check(ops, x.contiguous(), packed)
    assert torch.equal(ops.weight_only_linear(x, weight, scale, None, bits, 16), plain)
    assert ops.weight_only_linear(x[:0], packed.weight, packed.scale, None, bits, 16).shape == (0, 9)
    assert ops.weight_only_linear(x[0], packed.weight, packed.scale, None, bits, 16).shape == (9,)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [None, 256, 128, 32, 16, 12, 3])
def test_many_rows(ops, bits, dtype, group_size, poisoned):
    k = 1536
    check(ops, random(2, 33, k, dtype=dtype), random_packed(70, k, bits, group_size), random(70, dtype=dtype, seed=3))
    check(ops, random(65, 102, dtype=dtype), random_packed(5, 102, bits, 102))
    packed, x = random_packed(130, k, bits, group_size), random(80, k, dtype=dtype)
    found = ops.weight_only_linear(x, *packed[:2], None, *packed[2:])
    assert torch.equal(ops.weight_only_linear(x[20:37], *packed[:2], None, *packed[2:]), found[20:37])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("scale_dtype", DTYPES, ids=str)
def test_scales_of_every_type(ops, bits, scale_dtype):
    for group_size in (None, 24, 16):
        for rows in (3, 20):
            check(ops, random(rows, 96, dtype=torch.bfloat16), random_packed(10, 96, bits, group_size, scale_dtype))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [None, 256, 128, 32])
@pytest.mark.parametrize("factor", [50, 1000, 10000])
def test_a_few_activations_much_larger(ops, bits, dtype, group_size, factor):
    """What large GLMs have: some columns of x dwarf the others, and the weights there may be nearly zero."""
    packed = random_packed(40, 1024, bits, group_size)
    columns = torch.tensor([3, 511, 777])
    x = random(4, 1024)
    x[:, columns] *= factor
    for rows in (1, 2, 3, 4, 12, 20):
        check(ops, x.repeat(5, 1)[:rows].to(dtype), packed)
    packed.weight[:, columns // (2 if bits == 4 else 1)] = 0
    for rows in (1, 2, 4, 20):
        check(ops, x.repeat(5, 1)[:rows].to(dtype), packed)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("times", [5, 7.9, 8.1, 12, 20, 31, 33, 60, 200, 1000])
def test_one_activation_some_times_as_large_as_the_mean(ops, bits, dtype, times):
    """Its weight is zero: what its size costs the others is all of the error, and no output's rounding hides it."""
    k = 4096
    packed = random_packed(512, k, bits, None, torch.float32)
    x = random(1, k).to(dtype)
    x[0, 6] = times * x.abs().mean()
    packed.weight[:, 6 // (2 if bits == 4 else 1)] = 0
    weight = packing.dequantize(*packed[:2], bits, torch.float64)
    expected = of_an_integer(dtype, times) * x.double().abs().mean() * weight.norm(dim=-1)
    for rows in (1,) if ops.multiplies(dtype) else (1, 20):  # of many rows 16-bit products round the weights
        found = ops._product(x.expand(rows, -1).contiguous(), packed, None, torch.float32)  # not rounded to x's type
        error = (found.double() - x.double() @ weight.T).abs() / expected
        assert error.square().mean().sqrt() < 1.15


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k, group_size", [(256, 32), (4160, None), (4160, 32)])
@pytest.mark.parametrize("factor", [1, 1000])
def test_a_row_does_not_depend_on_the_other_rows(ops, bits, dtype, k, group_size, factor):
    """The same sums whatever else is in a small batch, columns that dwarf the others in every third row included; a
    large batch is multiplied in another way."""
    packed, x = random_packed(13, k, bits, group_size), random(24, k, dtype=dtype)
    x[::3, [3, 200]] *= factor
    sparse = random(40, k, dtype=dtype)
    for row, column in ((0, 3), (20, 3), (38, -5)):  # vectors of rows with such a column beside vectors without one
        sparse[row, column] *= factor
    whole = ops.weight_only_linear(sparse, *packed[:2], None, *packed[2:])
    for rows in (slice(1, 20), slice(8, 40), slice(0, 40, 2)):
        assert torch.equal(ops.weight_only_linear(sparse[rows], *packed[:2], None, *packed[2:]), whole[rows])
    torch.set_num_threads(1)
    assert torch.equal(ops.weight_only_linear(sparse, *packed[:2], None, *packed[2:]), whole)
    torch.set_num_threads(2)
    alone = torch.cat([ops.weight_only_linear(row[None], *packed[:2], None, *packed[2:]) for row in x])
    for first, last in ((0, 2), (0, 4), (5, 12)):  # up to 8 rows
        assert torch.equal(ops.weight_only_linear(x[first:last], *packed[:2], None, *packed[2:]), alone[first:last])
    together = ops.weight_only_linear(x, *packed[:2], None, *packed[2:])
    for first, last in ((0, 17), (5, 24)):
        assert torch.equal(ops.weight_only_linear(x[first:last], *packed[:2], None, *packed[2:]), together[first:last])
    if dtype is torch.float32:
        check(ops, x, packed)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("k, group_size", [(128, None), (1280, None), (1280, 64)])
def test_infinities_and_nans_pass_through(ops, dtype, k, group_size):
    """Some vectors make NaN of an infinity, which is no number either; other rows stay as they are."""
    packed = random_packed(5, k, 4, group_size)
    for rows in (6, 24):
        x = random(rows, k, dtype=dtype)
        others = [0, 3, *range(5, rows)]
        plain = ops.weight_only_linear(x[others], *packed[:2], None, *packed[2:])
        x[1, 7], x[2, -1], x[4, k // 2] = float("inf"), float("nan"), -float("inf")
        result = ops.weight_only_linear(x, *packed[:2], None, *packed[2:])
        assert not result[[1, 2, 4]].isfinite().any() and result[2].isnan().all()
        assert torch.equal(result[others], plain)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("group_size", [None, 32, 1024])
@pytest.mark.parametrize("rows, k", [(2, 72 * 1024), (17, 1024)])
def test_sums_at_the_ends_of_their_range(ops, bits, dtype, group_size, rows, k):
    """All of x as large as it can be beside the lowest weights, in rows so long that they need several sums."""
    n = 3
    lowest = torch.full((n, k * bits // 8), -128 if bits == 8 else -120, dtype=torch.int8)
    scale = torch.ones(n if group_size is None else (n, k // group_size))
    packed = reference.PackedWeight(lowest, scale, bits, group_size)
    for value in (1.9999999, 1.988, -1.99, -1e-30):  # either side of what two digits of 8 bits can hold
        x = torch.full((rows, k), value, dtype=dtype)
        found = ops._product(x, packed, None, torch.float32)
        torch.testing.assert_close(found, -x[:, :n].float() * k * 2.0 ** (bits - 1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_and_the_smallest_numbers(ops, bits, dtype):
    packed, bias = random_packed(6, 320, bits, 64), random(6, dtype=dtype)
    for rows in (3, 20):
        x = torch.zeros(rows, 320, dtype=dtype)
        assert torch.equal(ops.weight_only_linear(x, *packed[:2], bias, bits, 64), bias.expand(rows, 6))
        x[1:] = torch.finfo(dtype).smallest_normal / 4  # subnormal: of FP32 and bf16 nothing may remain
        exact = x.double() @ packing.dequantize(*packed[:2], bits, torch.float64).T
        found = ops.weight_only_linear(x, *packed[:2], None, bits, 64)
        torch.testing.assert_close(found.double(), exact, rtol=0.01, atol=1e-25)
