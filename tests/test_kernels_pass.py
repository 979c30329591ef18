"""All layers of a pass over many tokens in one call: the operations one by one, bit by bit."""

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from glm.config import ModelConfig
from kernels import cpu, reference
from kernels.cpu import stack
from kernels.layer import Rotary, normalised
from kernels.layer import stack as walk
from tests import kernel_cases
from tests.kernel_cases import DTYPES, FORMS, poison, random, random_layers
from tools.benchmarking.own import random_model

pytestmark = pytest.mark.usefixtures("two_threads")
ops = kernel_cases.ops


def case(dtype, family, b, s, start, groups=2, formats=(None,) * 4):
    """What a stack is made of, and what it is given: three layers of two heads of 32."""
    n, d, inner = 2, 32, 160
    layers, final = random_layers(dtype, 3, n, d, inner, family, groups, formats)
    angle = random(b, s, d // 2 if FORMS[family].rotary is Rotary.PAIRS else d, dtype=torch.float32, seed=1)
    keys, values = ([random(b, groups, start + s + 2, d, dtype=dtype, seed=i + j) for j in range(3)] for i in (30, 40))
    hidden = random(b, s, n * d, dtype=dtype, seed=5)
    return (layers, final, keys, values, FORMS[family]), (hidden, angle.cos(), angle.sin())


def copied(made):
    layers, final, keys, values, form = made
    return layers, final, [k.clone() for k in keys], [v.clone() for v in values], form


def passed(ops, made, *inputs):
    return normalised(stack.Stack(ops, *made).read(*inputs), *made[1], made[4].epsilon, ops)


def both(ops, made, inputs, *how):
    """The pass, and the operations one by one, each with a cache of its own: results and caches."""
    once, apart = copied(made), copied(made)
    return (passed(ops, once, *inputs, *how), *once[2], *once[3]), (
        walk(*apart, *inputs, *how, operations=ops), *apart[2], *apart[3])


@pytest.mark.parametrize("family, groups", [("glm-130b", 2), ("glm", 2), ("chatglm", 2), ("chatglm2", 1)])
@pytest.mark.parametrize("b, s, start", [(1, 5, 0), (3, 37, 0), (2, 9, 6)])
@pytest.mark.parametrize("with_blocked", [False, True])
def test_a_pass_is_the_operations_one_by_one(ops, family, groups, b, s, start, with_blocked, monkeypatch):
    """All layers in one call, or, where these would take long, one or two in each."""
    poison(monkeypatch)
    made, inputs = case(torch.float32, family, b, s, start, groups)
    blocked = torch.rand(b, s, start + s, generator=torch.Generator().manual_seed(2)) < 0.4 if with_blocked else None
    for at_once in (3, 2, 1):
        monkeypatch.setattr(stack, "MOST_PRODUCTS", at_once * b * s * stack.Stack(ops, *made).parameters)
        for ours, other in zip(*both(ops, made, inputs, start, blocked), strict=True):
            assert torch.equal(ours, other)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("formats", [[None] * 4, [(8, None), (4, 32), (4, None), (8, 32)]], ids=["plain", "packed"])
@pytest.mark.parametrize("layers_at_once", [1, 3])
def test_it_rounds_where_they_round(ops, dtype, formats, layers_at_once, monkeypatch):
    """A norm behind a sum of post-norm layers, which the model's own operation does not round between, is left out."""
    made, inputs = case(dtype, "glm", 2, 33, 4, formats=formats)
    monkeypatch.setattr(stack, "MOST_PRODUCTS", layers_at_once * 2 * 33 * stack.Stack(ops, *made).parameters)
    for ours, other in zip(*both(ops, made, inputs, 4), strict=True):
        assert torch.equal(ours, other)


def test_several_threads_of_the_program_may_pass_at_once(ops):
    """Each has memory of its own."""
    cases = [case(dtype, "glm-130b", b, s, 0) for dtype, b, s in ((torch.float32, 2, 21), (torch.bfloat16, 1, 40))] * 2

    def passed(one):
        made = copied(one[0])
        return stack.Stack(ops, *made).read(*one[1], 0), *made[2], *made[3]

    with ThreadPoolExecutor(4) as pool:
        for ours, other in zip(pool.map(passed, cases * 5), map(passed, cases * 5), strict=True):
            assert all(torch.equal(*pair) for pair in zip(ours, other, strict=True))


def test_rows_of_a_batch_may_differ_in_length(ops):
    made, inputs = case(torch.float32, "glm-130b", 3, 12, 8)
    lengths = reference.Lengths(torch.tensor([3, 8, 0]), 8)
    ours, other = both(ops, made, inputs, lengths)
    assert torch.equal(ours[0], other[0])


@pytest.mark.parametrize("family", ["glm-130b", "glm"])
@pytest.mark.parametrize("places", [[70], [5, 5, 90, 2], [*range(60, 0, -1)], []], ids=["one", "few", "many", "none"])
def test_only_some_places_are_wanted(ops, family, places, monkeypatch):
    """In any order and more than once; what all layers write to the cache stays the same."""
    monkeypatch.setattr(stack, "MOST_PRODUCTS", 0)
    made, inputs = case(torch.float32, family, 3, 37, 0)
    whole, some = copied(made), copied(made)
    all_places = stack.Stack(ops, *whole).read(*inputs, 0)
    found = stack.Stack(ops, *some).read(*inputs, 0, None, torch.tensor(places, dtype=torch.int64))
    torch.testing.assert_close(found, all_places.flatten(0, 1)[places], atol=2e-6, rtol=1e-5)
    assert all(torch.equal(*pair) for pair in zip(whole[2] + whole[3], some[2] + some[3], strict=True))


def test_what_it_was_not_made_for_is_refused(ops, monkeypatch):
    made, (hidden, cosine, sine) = case(torch.float32, "glm", 2, 9, 0)
    found = stack.Stack(ops, *made)
    with pytest.raises(ValueError, match=r"made for \(2, s, 64\) at most and 11 places, given \(2, 9, 64\) at place 3"):
        found.read(hidden, cosine, sine, 3)
    for places in (torch.tensor([18]), torch.tensor([-1]), torch.tensor([3], dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"places \[(18|-1|3)\] \(torch.int..\) of 2 x 9 tokens"):
            found.read(hidden, cosine, sine, 0, None, places)
    assert found.reads(found.most_tokens) and not found.reads(found.most_tokens + 1)
    monkeypatch.setattr(cpu.platform, "machine", lambda: "aarch64")
    assert found.reads(cpu.MAXIMUM_ROWS) and not found.reads(cpu.MAXIMUM_ROWS + 1)
    found.before = lambda layer: None
    assert not found.reads(1)


def small_model():
    return random_model(ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=2, inner_hidden_size=48,
                                    vocab_size=50, max_sequence_length=64), torch.float32, "cpu")


@pytest.mark.parametrize("with_cache", [False, True])
def test_a_model_takes_it(with_cache, monkeypatch):
    """Where a walk is not asked for, and what it gives is the walk's."""
    model = small_model()
    tokens, positions, places = torch.arange(40).view(2, 20), torch.arange(20).expand(2, 20), torch.arange(2)
    with torch.inference_mode():
        caches = [model.new_cache(2, 24) if with_cache else None for _ in range(2)]
        walked = model.hidden_states(tokens, positions, cache=caches[0], places=places, observe=lambda *_: None)
        monkeypatch.setattr(model, "walk", lambda *_: pytest.fail("it was walked"))
        found = model.hidden_states(tokens, positions, cache=caches[1], places=places)
        assert torch.equal(found, walked)
        assert not with_cache or torch.equal(caches[0].whole, caches[1].whole)
        monkeypatch.setattr(model, "_new_stack", lambda *_: SimpleNamespace(reads=lambda tokens: False))
        with pytest.raises(pytest.fail.Exception, match="it was walked"):
            model.hidden_states(tokens, positions)


def test_who_hooks_a_module_hears_of_every_pass():
    model, heard = small_model(), []
    model.transformer.layers[1].mlp.dense_h_to_4h.register_forward_hook(lambda *_: heard.append(True))
    tokens, positions = torch.arange(40).view(2, 20), torch.arange(20).expand(2, 20)
    with torch.inference_mode():
        model.hidden_states(tokens, positions)
        cache = model.new_cache(2, 24)
        model.hidden_states(tokens, positions, cache=cache)
        model.hidden_states(tokens[:, :1], positions[:, :1] + 20, cache=cache)
    assert len(heard) == 3
