"""The compiled CPU backend against its plain torch twin.

tests/rounding.py says how near is near enough.
"""

import os

import pytest
import torch

from kernels import cpu, reference
from kernels.cpu import build, stack
from tests.rounding import assert_as_good

pytestmark = pytest.mark.usefixtures("two_threads")
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
    check(ops, "linear", random(2, 1, k, dtype=dtype), random(n, k, dtype=dtype, seed=1), None, terms=k)


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


def attention_case(dtype, b, n, d, start, seed=0):
    qkv = random(b, 1, n * 3 * d, dtype=dtype, seed=seed)
    angle = random(b, 1, d, dtype=torch.float32, seed=seed + 1)
    keys, values = (random(b, n, start + 3, d, dtype=dtype, seed=seed + i) for i in (2, 3))
    for cached in (keys, values):
        cached[:, :, start:] = float("nan")  # places not written yet must not be read
    return qkv, angle.cos(), angle.sin(), keys, values


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "b, n, d, start", [(1, 3, 64, 0), (4, 2, 64, 37), (2, 5, 12, 9), (1, 1, 80, 130), (16, 2, 32, 5)]
)
@pytest.mark.parametrize("positions_2d", [False, True])
@pytest.mark.parametrize("with_blocked", [False, True])
def test_attend(ops, dtype, b, n, d, start, positions_2d, with_blocked, monkeypatch):
    poison(monkeypatch)
    qkv, cosine, sine, keys, values = attention_case(dtype, b, n, d, start)
    blocked = None
    if with_blocked:
        blocked = torch.rand(b, 1, start + 1, generator=torch.Generator().manual_seed(9)) < 0.4
        blocked[0] = True  # a row that may see nothing: finite, and the same in both backends
    results = {}
    for name, backend in {"exact": reference, "same": reference, "ours": ops}.items():
        cached = [keys.clone(), values.clone()]
        arguments = [qkv, cosine, sine, *cached, start, blocked, positions_2d]
        if name == "exact":
            arguments = doubled(*arguments)
        results[name] = (backend.attend(*arguments), arguments[3], arguments[4])
    for ours, same, exact in zip(results["ours"], results["same"], results["exact"], strict=True):
        assert torch.equal(torch.isnan(ours), torch.isnan(same))
        assert_as_good(ours.nan_to_num(), same.nan_to_num(), exact.nan_to_num(), d + start + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    "b, n, d, start, s", [(1, 2, 64, 0, 5), (2, 3, 16, 9, 70), (1, 2, 80, 0, 131), (2, 1, 20, 3, 4)]
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_attend_over_many_new_tokens(ops, dtype, b, n, d, start, s, masked, cached, monkeypatch):
    poison(monkeypatch)
    start = start if cached else 0
    qkv = random(b, s, n * 3 * d, dtype=dtype)
    angle = random(b, s, d, dtype=torch.float32, seed=1)
    blocked = None
    if masked:
        blocked = torch.ones(s, start + s, dtype=torch.bool).triu(start + 1).repeat(b, 1, 1)
        blocked[-1, :, 0] = True  # with nothing cached, the first row may then see nothing
    buffers = [random(b, n, start + s + 2, d, dtype=dtype, seed=i) for i in (2, 3)]
    results = {}
    for name, backend in {"exact": reference, "same": reference, "ours": ops}.items():
        cache = [buffer.clone() for buffer in buffers] if cached else [None, None]
        arguments = [qkv, angle.cos(), angle.sin(), *cache, start, blocked]
        if name == "exact":
            arguments = doubled(*arguments)
        results[name] = [backend.attend(*arguments)] + [t for t in arguments[3:5] if t is not None]
    for ours, same, exact in zip(results["ours"], results["same"], results["exact"], strict=True):
        assert_as_good(ours, same, exact, d + start + s)


def test_attend_works_on_a_view_of_a_larger_cache(ops):
    qkv, cosine, sine, keys, values = attention_case(torch.float32, 2, 3, 16, 6)
    wide = [torch.cat((cached, cached), dim=1)[:, :3] for cached in (keys, values)]
    plain = ops.attend(qkv, cosine, sine, keys, values, 6)
    assert torch.equal(ops.attend(qkv, cosine, sine, *wide, 6), plain)


def random_layers(dtype, count, h, inner, seed=0):
    attention = [(h,), (h,), (3 * h, h), (3 * h,), (h, h), (h,)]
    shapes = attention + [(h,), (h,), (2 * inner, h), (2 * inner,), (h, inner), (h,)]
    return [
        reference.LayerWeights(*(random(*shape, dtype=dtype, seed=seed + 20 * i + j, scale=shape[-1] ** -0.5)
                                 for j, shape in enumerate(shapes)))
        for i in range(count)
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b, n, d, inner, start", [(1, 4, 64, 700, 9), (4, 3, 20, 50, 0), (16, 2, 32, 90, 33)])
@pytest.mark.parametrize("with_blocked", [False, True])
def test_the_whole_stack_in_one_call(ops, dtype, b, n, d, inner, start, with_blocked, monkeypatch):
    poison(monkeypatch)
    h = n * d
    layers, final = random_layers(dtype, 3, h, inner), (random(h, dtype=dtype), random(h, dtype=dtype))
    hidden = random(b, 1, h, dtype=dtype, seed=5)
    _, cosine, sine, keys, values = attention_case(dtype, b, n, d, start)
    keys, values = [keys.clone() for _ in layers], [values.clone() for _ in layers]
    blocked = None
    if with_blocked:
        blocked = torch.rand(b, 1, start + 1, generator=torch.Generator().manual_seed(9)) < 0.4
    exact_layers = [reference.LayerWeights(*doubled(*layer)) for layer in layers]
    exact_keys, exact_values = doubled(*keys), doubled(*values)
    same_keys, same_values = [k.clone() for k in keys], [v.clone() for v in values]
    common = (2.6, 1e-5)
    exact = reference.stack(exact_layers, doubled(*final), exact_keys, exact_values, *common,
                            *doubled(hidden, cosine, sine), start, blocked)
    same = reference.stack(layers, final, same_keys, same_values, *common, hidden, cosine, sine, start, blocked)
    assert stack.fits(layers, final, keys, values)
    made = stack.Stack(ops, layers, final, keys, values, *common)
    terms = len(layers) * (3 * h + inner + d + start + 1)
    assert_as_good(made.step(hidden, cosine, sine, start, blocked), same, exact, terms)
    for ours, same, exact in zip(keys + values, same_keys + same_values, exact_keys + exact_values, strict=True):
        assert_as_good(ours[:, :, : start + 1], same[:, :, : start + 1], exact[:, :, : start + 1], terms)
    with pytest.raises(ValueError, match="made for"):
        made.step(hidden, cosine, sine, start + 3)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stack_whose_weights_come_as_they_are_needed(ops, threads, monkeypatch):
    """Two layers share one place in memory; the table is given meta tensors until then."""
    monkeypatch.setattr(stack.torch, "get_num_threads", lambda: threads)
    b, n, d, inner = 2, 4, 32, 500
    h = n * d
    layers, final = random_layers(torch.bfloat16, 3, h, inner), (random(h, dtype=torch.bfloat16),) * 2
    _, cosine, sine, keys, values = attention_case(torch.bfloat16, b, n, d, 4)
    hidden = random(b, 1, h, dtype=torch.bfloat16, seed=5)
    cache = [[tensor.clone() for _ in layers] for tensor in (keys, values)]
    expected = stack.Stack(ops, layers, final, *cache, 2.6, 1e-5).step(hidden, cosine, sine, 4)
    room, asked = reference.LayerWeights(*(torch.empty_like(part) for part in layers[0])), []

    def before(number):
        asked.append(number)
        if number == 1:
            return None
        for part, source in zip(room, layers[number], strict=True):
            part.copy_(source)
        return room

    unknown = [reference.LayerWeights(*(part.to("meta") for part in layer)) for layer in layers]
    unknown[1] = layers[1]
    assert stack.fits(unknown, final, *cache)
    made = stack.Stack(ops, unknown, final, *cache, 2.6, 1e-5, before=before)
    assert torch.equal(made.step(hidden, cosine, sine, 4), expected) and asked == [0, 1, 2]


def test_an_error_before_a_layer_ends_the_step(ops):
    layers, final = random_layers(torch.float32, 3, 64, 50), (random(64, dtype=torch.float32),) * 2
    hidden = random(1, 1, 64, dtype=torch.float32)
    _, cosine, sine, keys, values = attention_case(torch.float32, 1, 2, 32, 4)
    cache, asked = [[tensor.clone() for _ in layers] for tensor in (keys, values)], []

    def before(number):
        asked.append(number)
        if asked == [0, 1]:
            raise KeyboardInterrupt

    made = stack.Stack(ops, layers, final, *cache, 2.6, 1e-5, before=before)
    with pytest.raises(KeyboardInterrupt):
        made.step(hidden, cosine, sine, 4)
    assert asked == [0, 1]
    made.step(hidden, cosine, sine, 4)  # and the next one runs
    assert asked == [0, 1, 0, 1, 2]


def test_a_stack_of_unlike_layers_is_left_to_the_single_operations():
    layers, final = random_layers(torch.float32, 2, 32, 48), (torch.ones(32), torch.zeros(32))
    keys, values = ([torch.zeros(1, 2, 4, 16) for _ in layers] for _ in range(2))
    assert stack.fits(layers, final, keys, values)
    assert not stack.fits(layers, (final[0].double(), final[1]), keys, values)
    assert not stack.fits([layers[0], layers[1]._replace(in_weight=layers[1].in_weight[:, :16])], final, keys, values)
    fewer_heads = [layer._replace(qkv_weight=layer.qkv_weight[:48], qkv_bias=layer.qkv_bias[:48]) for layer in layers]
    assert not stack.fits(fewer_heads, final, keys, values)
    assert not stack.fits(layers, final, keys, [values[0], values[1].transpose(0, 1)])


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


def test_infinities_and_nans_pass_through(ops):
    for dtype in DTYPES:
        x = torch.tensor([1.0, float("inf"), float("nan"), -2.0], dtype=dtype).view(4, 1, 1)
        result = ops.linear(x, torch.ones(1, 1, dtype=dtype)).flatten()
        assert result[0] == 1 and result[1] == float("inf") and result[2].isnan() and result[3] == -2
