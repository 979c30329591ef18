"""The compiled attention of prompts against plain torch: by matrix tiles, by pairs of bf16, in float32."""

import pytest
import torch

from kernels import reference
from tests import kernel_cases
from tests.kernel_cases import doubled, poison, random
from tests.rounding import assert_as_good

pytestmark = pytest.mark.usefixtures("two_threads")
ops = kernel_cases.ops
PRODUCTS = ("float32", "pairs", "tiles")  # numbered as in prefill_products.h


@pytest.fixture(params=[(product, torch.bfloat16) for product in PRODUCTS]
                + [("float32", torch.float32), ("float32", torch.float16)], ids=lambda pair: f"{pair[0]}-{pair[1]}")
def dtype(ops, request, monkeypatch):
    """Of the tensors, once for each way that the library has to multiply them."""
    product, dtype = request.param
    number = PRODUCTS.index(product)
    if number > ops.prefill_products:
        pytest.skip(f"no {product} in {ops.path}")
    monkeypatch.setattr(ops, "prefill_products", number)
    return dtype


def case(dtype, b, s, n, d, start, is_cached=True):
    """The arguments of attend up to `start`; what stands in the cache behind the new tokens must not matter."""
    qkv, angle = random(b, s, n * 3 * d, dtype=dtype), random(b, s, d, dtype=torch.float32, seed=1)
    cache = [random(b, n, start + s + 2, d, dtype=dtype, seed=seed) for seed in (2, 3)] if is_cached else [None, None]
    for cached in cache if is_cached else ():
        cached[:, :, start + s:] = float("nan")
    return [qkv, angle.cos(), angle.sin(), *cache, start]


def copied(arguments):
    return [x.clone() if isinstance(x, torch.Tensor) else x for x in arguments]


def check(ops, arguments, *more, terms):
    results = []
    for backend, change in ((ops, list), (reference, list), (reference, lambda found: doubled(*found))):
        mine = change(copied(arguments))
        results.append([backend.attend(*mine, *more), *(x.nan_to_num() for x in mine[3:5] if x is not None)])
    for ours, same, exact in zip(*results, strict=True):
        assert_as_good(ours, same, exact, terms)


def causal(b, s, start):
    return torch.ones(s, start + s, dtype=torch.bool).triu(start + 1).repeat(b, 1, 1)


SIZES = [(1, 33, 2, 24, 0), (2, 70, 3, 48, 9), (1, 300, 1, 128, 0), (2, 32, 2, 20, 300), (1, 4, 2, 26, 3)]


@pytest.mark.parametrize("b, s, n, d, start", SIZES)
@pytest.mark.parametrize("mask", [None, "causal", "random"])
def test_attention_of_prompts(ops, dtype, b, s, n, d, start, mask, monkeypatch):
    poison(monkeypatch)
    blocked = None
    if mask == "causal":
        blocked = causal(b, s, start)
        blocked[-1, :, 0] = True  # with nothing cached, the first row may then see nothing
    if mask == "random":
        blocked = torch.rand(b, s, start + s, generator=torch.Generator().manual_seed(4)) < 0.9
        blocked[0, 0] = True
    check(ops, case(dtype, b, s, n, d, start), blocked, bool(d % 4 == 0), terms=d + start + s)


def test_a_prompt_without_a_cache(ops, dtype, monkeypatch):
    poison(monkeypatch)
    check(ops, case(dtype, 2, 40, 2, 32, 0, is_cached=False), causal(2, 40, 0), terms=72)


def test_long_rows_are_as_alone(ops):
    """They are taken one after the other."""
    qkv, cosine, sine, keys, values, start = case(torch.float32, 3, 120, 8, 96, 2)
    blocked = causal(3, 120, start)
    blocked[1, :, 50:70] = True
    together = [keys.clone(), values.clone()]
    found = ops.attend(qkv, cosine, sine, *together, start, blocked)
    for row in range(3):
        part = slice(row, row + 1)
        alone = [keys[part].clone(), values[part].clone()]
        assert torch.equal(found[part], ops.attend(qkv[part], cosine[part], sine[part], *alone, start, blocked[part]))
        assert all(torch.equal(x[part].nan_to_num(), y.nan_to_num()) for x, y in zip(together, alone, strict=True))


def test_what_nobody_sees_changes_no_bit(ops, dtype):
    """Hidden places behind a row's own, of other rows or of none, as where unlike rows are padded."""
    qkv, cosine, sine, *_ = case(dtype, 1, 70, 2, 32, 0, is_cached=False)
    short = [x[:, :45].contiguous() for x in (qkv, cosine, sine)]
    blocked = torch.zeros(1, 70, 70, dtype=torch.bool)
    blocked[:, :, 45:] = True
    found = ops.attend(qkv, cosine, sine, blocked=blocked)[:, :45]
    assert torch.equal(found, ops.attend(*short))
    assert torch.equal(found, ops.attend(*short, blocked=blocked[:, :45, :45].contiguous()))


@pytest.mark.parametrize("places", [[3, 4, 39, 41, 41, 79], [119], [79, 5, 80]], ids=str)
def test_only_some_places_are_asked_for(ops, dtype, places, monkeypatch):
    """Bit for bit what they are among all others, and the cache is filled; none may be asked of a row, one twice."""
    poison(monkeypatch)
    blocked, places = causal(3, 40, 7), torch.tensor(places)
    all_of_them, some = (case(dtype, 3, 40, 2, 24, 7) for _ in range(2))
    found = ops.attend(*some, blocked, places=places)
    assert torch.equal(found, ops.attend(*all_of_them, blocked).flatten(0, 1)[places])
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(some[3:5], all_of_them[3:5], strict=True))
    qkv, cosine, sine = random(3, 40, 6 * 16, dtype=dtype), some[1][..., :8], some[2][..., :8]
    found = ops.attend_groups(qkv, 1, 16, cosine, sine, places=places)  # four heads
    assert torch.equal(found, ops.attend_groups(qkv, 1, 16, cosine, sine).flatten(0, 1)[places])


def test_places_that_a_whole_block_of_queries_may_not_see(ops, dtype):
    """The first ones, so that a block begins with nothing; and a mask that stands for all rows and queries."""
    blocked = torch.zeros(1, 600, 600, dtype=torch.bool)
    blocked[:, :200, :300] = blocked[:, 200:, 256:512] = blocked[:, 570:, :] = True
    check(ops, case(dtype, 1, 600, 1, 32, 0), blocked, terms=632)
    for some in (torch.arange(60) < 20, (torch.arange(60) < 20).view(1, 1, -1).expand(2, 40, -1)):
        check(ops, case(dtype, 2, 40, 2, 32, 20), some.expand(2, 40, -1), terms=92)


def test_rows_of_unlike_lengths(ops, dtype):
    """Each as alone, and nothing behind its own places is read."""
    starts, s = [9, 0, 280, 7], 35
    qkv, cosine, sine, keys, values, _ = case(dtype, 4, s, 2, 32, max(starts))
    together = [keys.clone(), values.clone()]
    for row, start in enumerate(starts):
        for cached in together:
            cached[row, :, start:] = float("nan")
    found = ops.attend(qkv, cosine, sine, *together, reference.Lengths(torch.tensor(starts), max(starts)))
    for row, start in enumerate(starts):
        part = slice(row, row + 1)
        alone = [qkv[part], cosine[part], sine[part], keys[part].clone(), values[part].clone(), start]
        same = ops.attend(*alone)
        assert torch.equal(found[part], same)
        for ours, other in zip(together, alone[3:5], strict=True):
            assert torch.equal(ours[part, :, :start + s], other[:, :, :start + s])
            assert ours[part, :, start + s:].isnan().all()


def test_the_number_of_threads_changes_nothing(ops, dtype):
    """Few heads, so that threads share them; and more threads than blocks."""
    arguments, blocked = case(dtype, 1, 100, 3, 32, 7), causal(1, 100, 7)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        mine = copied(arguments)
        results.append([ops.attend(*mine, blocked), *(x.nan_to_num() for x in mine[3:5])])
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


def test_extreme_scores(ops, dtype):
    """One place takes all the weight, at the end; NaN and infinity stay in the rows that have them."""
    qkv, cosine, sine, *_ = case(dtype, 2, 300, 1, 32, 0, is_cached=False)
    qkv = qkv.clone()
    qkv[0, -1, 32:64] *= 40
    qkv[1, 5, :32] = float("nan")
    found = ops.attend(qkv, cosine, sine)
    same, exact = reference.attend(qkv, cosine, sine), reference.attend(*doubled(qkv, cosine, sine))
    assert found[1, 5].isnan().all() and found.isfinite().sum() == found.numel() - 32
    assert_as_good(found.nan_to_num(), same.nan_to_num(), exact.nan_to_num(), 332)


@pytest.mark.parametrize("s", [1, 40])
def test_an_infinity_among_the_keys_shows(ops, dtype, s):
    """Its scores are NaN, with the sign that the processor gives it."""
    qkv, cosine, sine, keys, values, start = case(dtype, 1, s, 1, 32, 9)
    keys[0, 0, 2] = float("inf")
    assert reference.attend(qkv, cosine, sine, keys.clone(), values.clone(), start).isnan().all()
    assert ops.attend(qkv, cosine, sine, keys, values, start).isnan().all()
