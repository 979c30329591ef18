"""The compiled CPU backend against its plain torch twin: attention, and all layers of a step in one call."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from kernels import compiled, reference
from kernels.cpu import stack
from kernels.layer import Activation, LayerForm, LayerWeights, Rotary
from kernels.layer import stack as walk
from tests import kernel_cases
from tests.kernel_cases import DTYPES, FORMS, doubled, poison, random, random_layers
from tests.rounding import assert_as_good

pytestmark = pytest.mark.usefixtures("two_threads")
ops = kernel_cases.ops


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("s", [1, 3])
def test_a_row_that_may_see_nothing_is_an_even_average(ops, dtype, s):
    qkv, angle = random(2, s, 3 * 4 * 16, dtype=dtype), random(2, s, 16, dtype=torch.float32, seed=1)
    blocked = torch.zeros(2, s, s, dtype=torch.bool)
    blocked[1, 0] = True
    expected = qkv.view(2, s, 4, 3, 16)[1, :, :, 2].double().mean(0).flatten()
    for backend in (reference, ops):
        found = backend.attend(qkv, angle.cos(), angle.sin(), blocked=blocked)[1, 0]
        torch.testing.assert_close(found.double(), expected, atol=2 * torch.finfo(dtype).eps, rtol=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("s", [1, 3])
def test_rows_that_differ_in_length_attend_as_alone(ops, dtype, s):
    """Nothing behind a row's own places is seen, whatever lies there."""
    b, n, d, starts = 4, 3, 32, [9, 0, 4, 7]
    _, _, _, keys, values = attention_case(dtype, b, n, d, 12)
    qkv, angle = random(b, s, 3 * n * d, dtype=dtype), random(b, s, d, dtype=torch.float32, seed=1)
    lengths = reference.Lengths(torch.tensor(starts), max(starts))
    for backend in (reference, ops):
        together = [keys.clone(), values.clone()]
        for row, start in enumerate(starts):
            together[0][row, :, start:], together[1][row, :, start:] = 50.0, -50.0
        found = backend.attend(qkv, angle.cos(), angle.sin(), *together, lengths)
        for row, start in enumerate(starts):
            part, alone = slice(row, row + 1), [keys[row:row + 1].clone(), values[row:row + 1].clone()]
            blocked = torch.zeros(1, s, start + s, dtype=torch.bool)
            exact = doubled(qkv[part], angle.cos()[part], angle.sin()[part], *alone)
            wanted = reference.attend(*exact, start, blocked)
            same = reference.attend(qkv[part], angle.cos()[part], angle.sin()[part], *alone, start, blocked)
            assert_as_good(found[part], same, wanted, d + start + s)
            for ours, other in zip(together, alone, strict=True):
                assert torch.equal(ours[part, :, :start], other[:, :, :start])
                assert (ours[part, :, start:start + s].abs() < 50).all()
                assert (ours[part, :, start + s:].abs() == 50).all()


def test_attend_works_on_a_view_of_a_larger_cache(ops):
    qkv, cosine, sine, keys, values = attention_case(torch.float32, 2, 3, 16, 6)
    wide = [torch.cat((cached, cached), dim=1)[:, :3] for cached in (keys, values)]
    plain = ops.attend(qkv, cosine, sine, keys, values, 6)
    assert torch.equal(ops.attend(qkv, cosine, sine, *wide, 6), plain)


def stack_case(dtype, count, family, b, n, groups, d, inner, start):
    """Layers and final norm, the caches, their form; hidden states and angles of a step."""
    layers, final = random_layers(dtype, count, n, d, inner, family, groups)
    form = FORMS[family]
    _, cosine, sine, keys, values = attention_case(dtype, b, groups, d, start)
    if form.rotary is Rotary.PAIRS:
        cosine, sine = cosine[..., : d // 2], sine[..., : d // 2]
    hidden = random(b, 1, n * d, dtype=dtype, seed=5)
    return layers, final, [keys.clone() for _ in layers], [values.clone() for _ in layers], form, hidden, cosine, sine


def check_stack(ops, dtype, family, b, n, groups, d, inner, start, blocked):
    layers, final, keys, values, form, *inputs = stack_case(dtype, 3, family, b, n, groups, d, inner, start)
    exact_layers = [LayerWeights(*doubled(*layer)) for layer in layers]
    exact_keys, exact_values = doubled(*keys), doubled(*values)
    same_keys, same_values = [k.clone() for k in keys], [v.clone() for v in values]
    exact = walk(exact_layers, doubled(*final), exact_keys, exact_values, form, *doubled(*inputs), start, blocked)
    same = walk(layers, final, same_keys, same_values, form, *inputs, start, blocked)
    assert stack.fits(layers, final, keys, values, form)
    made = stack.Stack(ops, layers, final, keys, values, form)
    terms = len(layers) * (3 * n * d + inner + d + start + 1)
    assert_as_good(made.step(*inputs, start, blocked), same, exact, terms)
    for ours, same, exact in zip(keys + values, same_keys + same_values, exact_keys + exact_values, strict=True):
        assert_as_good(ours[:, :, : start + 1], same[:, :, : start + 1], exact[:, :, : start + 1], terms)
    with pytest.raises(ValueError, match="made for"):
        made.step(*inputs, start + 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b, n, d, inner, start", [(1, 4, 64, 700, 9), (4, 3, 20, 50, 0), (16, 2, 32, 90, 33)])
@pytest.mark.parametrize("with_blocked", [False, True])
def test_the_whole_stack_in_one_call(ops, dtype, b, n, d, inner, start, with_blocked, monkeypatch):
    poison(monkeypatch)
    blocked = None
    if with_blocked:
        blocked = torch.rand(b, 1, start + 1, generator=torch.Generator().manual_seed(9)) < 0.4
    check_stack(ops, dtype, "glm-130b", b, n, n, d, inner, start, blocked)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family, groups", [("glm", 4), ("chatglm", 4), ("chatglm2", 2), ("chatglm2", 4)])
@pytest.mark.parametrize("b, d, inner, start", [(1, 64, 300, 9), (3, 20, 50, 6)])
def test_the_stack_of_other_families(ops, dtype, family, groups, b, d, inner, start, monkeypatch):
    poison(monkeypatch)
    blocked = torch.zeros(b, 1, start + 1, dtype=torch.bool)
    blocked[-1, 0, 2:5] = True
    check_stack(ops, dtype, family, b, 4, groups, d, inner, start, None if b == 1 else blocked)


@pytest.mark.parametrize("activation", Activation)
def test_a_form_is_its_parts(ops, activation):
    """Whatever the family: here 2D positions, learned ones, and each activation, pre-norm and by heads."""
    for rotary in (Rotary.NONE, Rotary.HALVES_2D):
        family = "glm-130b" if activation.is_gated else "glm"
        layers, final, keys, values, _, *inputs = stack_case(torch.float32, 2, family, 2, 2, 2, 16, 40, 3)
        form = LayerForm(activation, rotary, 1.5, 1e-3, is_pre_norm=True, is_by_heads=True)
        copies = [[cached.clone() for cached in part] for part in (keys, values)]
        expected = walk(layers, final, *copies, form, *inputs, 3)
        found = stack.Stack(ops, layers, final, keys, values, form).step(*inputs, 3)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family, groups", [("glm-130b", 4), ("glm", 4), ("chatglm2", 2)])
def test_the_stack_takes_rows_of_unlike_lengths_and_fewer_than_the_cache_has(ops, dtype, family, groups):
    starts = [9, 0, 4]
    layers, final, keys, values, form, *inputs = stack_case(dtype, 3, family, 4, 4, groups, 32, 90, 11)
    caches, before = [[[t.clone() for t in part] for part in (keys, values)] for _ in range(2)]
    inputs = [tensor[:3] for tensor in inputs]
    lengths = reference.Lengths(torch.tensor(starts), max(starts))
    found = stack.Stack(ops, layers, final, *caches, form).step(*inputs, lengths)
    for row, start in enumerate(starts):
        part = slice(row, row + 1)
        alone = [[t[part].clone() for t in cached] for cached in before]
        made = stack.Stack(ops, layers, final, *alone, form)
        # products of three rows are not made by the tiles of one
        torch.testing.assert_close(found[part], made.step(*(tensor[part] for tensor in inputs), start),
                                   rtol=0.0, atol=64 * torch.finfo(dtype).eps)
    for ours, other in zip(caches[0], keys, strict=True):  # a row that is not in use
        torch.testing.assert_close(ours[3], other[3], rtol=0, atol=0, equal_nan=True)


def test_a_step_of_no_rows(ops):
    layers, final, keys, values, form, *inputs = stack_case(torch.float32, 2, "glm-130b", 2, 4, 4, 32, 90, 4)
    made = stack.Stack(ops, layers, final, keys, values, form)
    assert made.step(*(tensor[:0] for tensor in inputs), 4).shape == (0, 1, 128)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_stack_whose_weights_come_as_they_are_needed(ops, threads, monkeypatch):
    """Two layers share one place in memory; the table is given meta tensors until then."""
    monkeypatch.setattr(stack.torch, "get_num_threads", lambda: threads)
    layers, final, *cache, form, hidden, cosine, sine = stack_case(
        torch.bfloat16, 3, "glm-130b", 2, 4, 4, 32, 500, 4)
    copies = [[tensor.clone() for tensor in part] for part in cache]
    expected = stack.Stack(ops, layers, final, *copies, form).step(hidden, cosine, sine, 4)
    room, asked = LayerWeights(*(torch.empty_like(part) for part in layers[0])), []

    def before(number):
        asked.append(number)
        if number == 1:
            return None
        for part, source in zip(room, layers[number], strict=True):
            part.copy_(source)
        return room

    unknown = [LayerWeights(*(part.to("meta") for part in layer)) for layer in layers]
    unknown[1] = layers[1]
    assert stack.fits(unknown, final, *cache, form)
    made = stack.Stack(ops, unknown, final, *cache, form, before)
    assert torch.equal(made.step(hidden, cosine, sine, 4), expected) and asked == [0, 1, 2]


@pytest.fixture
def busy_cores():
    """A process for every core that never rests: threads are taken off their cores in the middle of a step."""
    loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"])
             for _ in os.sched_getaffinity(0)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def test_threads_that_decode_at_once_beside_busy_cores(busy_cores):
    """Each step has stages of its own, and every row is computed by one thread, so that not a bit differs."""
    if not (ops := compiled()):
        pytest.skip("no compiled backend here")
    layers, final, keys, values, form, *inputs = stack_case(torch.float32, 4, "glm-130b", 2, 4, 4, 32, 500, 4)

    def steps(threads):
        torch.set_num_threads(threads)  # of this Python thread's work
        caches = [[tensor.clone() for tensor in part] for part in (keys, values)]
        made = stack.Stack(ops, layers, final, *caches, form)
        return [made.step(*inputs, 4) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        expected = pool.submit(steps, 1).result()[0]
        for found in pool.map(steps, [2, 3, 2, 3]):
            assert all(torch.equal(step, expected) for step in found)


def test_an_error_before_a_layer_ends_the_step(ops):
    layers, final, *cache, form, hidden, cosine, sine = stack_case(torch.float32, 3, "glm-130b", 1, 2, 2, 32, 50, 4)
    asked = []

    def before(number):
        asked.append(number)
        if asked == [0, 1]:
            raise KeyboardInterrupt

    made = stack.Stack(ops, layers, final, *cache, form, before)
    with pytest.raises(KeyboardInterrupt):
        made.step(hidden, cosine, sine, 4)
    assert asked == [0, 1]
    made.step(hidden, cosine, sine, 4)  # and the next one runs
    assert asked == [0, 1, 0, 1, 2]


def test_a_stack_of_unlike_layers_is_left_to_the_single_operations():
    layers, final, keys, values, form, *_ = stack_case(torch.float32, 2, "glm-130b", 1, 2, 2, 16, 48, 4)
    assert stack.fits(layers, final, keys, values, form)
    assert not stack.fits(layers, (final[0].double(), final[1]), keys, values, form)
    narrow = layers[1]._replace(in_weight=layers[1].in_weight[:, :16])
    assert not stack.fits([layers[0], narrow], final, keys, values, form)
    fewer_heads = [layer._replace(qkv_weight=layer.qkv_weight[:48], qkv_bias=layer.qkv_bias[:48]) for layer in layers]
    assert not stack.fits(fewer_heads, final, keys, values, form)
    assert not stack.fits(layers, final, keys, [values[0], values[1].transpose(0, 1)], form)
    assert not stack.fits(layers, final, keys, values, FORMS["chatglm"])  # no gate
