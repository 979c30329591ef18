"""All layers of a decoding step on a GPU against kernels.layer.stack: torch's operators need no GPU."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import kernels
from kernels import reference
from kernels.cache import BuildError
from kernels.cuda import Operators, norms
from kernels.cuda.attention import LARGEST_GRID, Workspaces, fits
from kernels.cuda.reduce import Ranks
from kernels.cuda.stack import Stack
from kernels.layer import stack as walk
from tests.cuda_emulator import Emulator, shared_folder
from tests.kernel_cases import FORMS, random, random_layers

N, D, INNER, CAPACITY = 4, 16, 40, 12


def nowhere(_):
    raise BuildError("no driver")


def case(family, groups, rows, dtype=torch.float32):
    layers, final = random_layers(dtype, 3, N, D, INNER, family, groups)
    cache = random(2, 3, rows, groups, CAPACITY, D, dtype=dtype, seed=2)
    angle = random(rows, 1, D // 2 if family == "chatglm2" else D, dtype=torch.float32, seed=3)
    return layers, final, cache, random(rows, 1, N * D, dtype=dtype, seed=4), angle.cos(), angle.sin()


@pytest.mark.parametrize("family, groups", [("glm-130b", N), ("glm", N), ("chatglm", N), ("chatglm2", 2)])
@pytest.mark.parametrize("start", [5, [5, 0, 9]])
def test_the_stack_is_the_walk(family, groups, start):
    layers, final, cache, hidden, *angles = case(family, groups, 3)
    begin = start if isinstance(start, int) else reference.Lengths(torch.tensor(start), max(start))
    wanted_cache, found_cache = cache.clone(), cache.clone()
    wanted = walk(layers, final, *(list(half) for half in wanted_cache), FORMS[family], hidden, *angles, begin)
    made = Stack(Operators(nowhere), layers, final, *(list(half) for half in found_cache), FORMS[family])
    assert torch.equal(made.step(hidden, *angles, begin), wanted)
    assert torch.equal(found_cache, wanted_cache)


@pytest.mark.parametrize("family", ["glm-130b", "glm"])
def test_ranks_that_hold_a_part_of_each_layer(family):
    """Two threads for ranks; residuals, norms and biases behind the sums, the last norm too."""
    layers, final, cache, hidden, *angles = case(family, N, 3)
    begin, form = reference.Lengths(torch.tensor([5, 0, 9]), 9), FORMS[family]
    halves, whole = [cache[:, :, :, :N // 2].clone(), cache[:, :, :, N // 2:].clone()], cache.clone()
    wanted = walk(layers, final, *(list(half) for half in whole), form, hidden, *angles, begin)
    meeting, given = threading.Barrier(2), [None, None]

    def work(rank):
        def total(x):
            given[rank] = x
            meeting.wait()
            both = given[0] + given[1]
            meeting.wait()
            return both

        def rows(x, parts):
            return torch.cat([part.chunk(2)[rank] for part in x.chunk(parts)])

        parts = [w._replace(
            **{name: rows(getattr(w, name), 1 if form.is_by_heads else 3) for name in ("qkv_weight", "qkv_bias")},
            **{name: rows(getattr(w, name), 2 if form.activation.is_gated else 1) for name in ("in_weight", "in_bias")},
            **{name: getattr(w, name).chunk(2, dim=1)[rank] for name in ("dense_weight", "out_weight")})
            for w in layers]
        stack = Stack(Operators(nowhere), parts, final, *(list(half) for half in halves[rank]), form, Ranks(total))
        with torch.no_grad():
            return stack.step(hidden, *angles, begin)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(work, range(2)))
    for each in found:
        torch.testing.assert_close(each, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(halves, dim=3), whole, rtol=1e-4, atol=1e-4)


def test_ranks_add_up_once_where_the_norm_behind_cannot_be_compiled():
    """A library's sum is in place."""
    def launch(*_):
        raise BuildError("no compiler")

    update, residual, (weight, bias) = random(3, 2, 64, dtype=torch.float32)
    wanted = reference.residual_layer_norm(residual, 2 * update, 1.5, weight, bias, 1e-5)
    _, normed = Operators(lambda _: SimpleNamespace(launch=launch)).norm_of_sum(
        update, Ranks(lambda x: x.mul_(2)), None, residual, 1.5, weight, bias, 1e-5, False)
    torch.testing.assert_close(normed, wanted)


def test_ranks_add_up_in_the_kernel_that_norms_where_they_can(tmp_path_factory):
    """And in the library where they cannot, or where nothing is compiled."""
    class Small:
        def fits_norm(self, x, *vectors):
            return x.shape[0] == 1

        def norm(self, x, weight, bias, epsilon, residual, alpha, added, total):
            told.append("small")
            return norms.norm(emulator, 2 * x, weight, bias, epsilon, residual, alpha, added, total)

    def total(x):
        told.append("library")
        return 2 * x

    emulator, told = Emulator(shared_folder(tmp_path_factory)), []
    weight, bias, added = random(3, 64, dtype=torch.float16, seed=1)
    for rows, is_small in ((1, True), (2, False)):
        update, residual = (random(rows, 1, 64, dtype=torch.float16, seed=seed) for seed in (2, 3))
        arguments = (update, Ranks(total, Small()), added, residual, 1.5, weight, bias, 1e-5, True)
        results = [ops.norm_of_sum(*arguments) for ops in (Operators(lambda _: emulator), Operators(nowhere))]
        torch.testing.assert_close(*(torch.cat(result) for result in results), rtol=1e-2, atol=1e-2)
        assert told == (["small"] if is_small else ["library"]) + ["library"]
        told.clear()
        assert Operators(lambda _: emulator).norm_of_sum(*arguments[:-1], False)[0] is None
        told.clear()


def test_a_step_may_have_fewer_rows_than_the_cache():
    layers, final, cache, hidden, *angles = case("glm-130b", N, 3)
    whole, part = ([list(half) for half in cache.clone()] for _ in range(2))
    inputs = [tensor[:2] for tensor in (hidden, *angles)]
    wanted = walk(layers, final, *([one[:2] for one in half] for half in whole), FORMS["glm-130b"], *inputs, 5)
    found = Stack(Operators(nowhere), layers, final, *part, FORMS["glm-130b"]).step(*inputs, 5)
    assert torch.equal(found, wanted)


def test_layers_that_come_and_go_are_walked(monkeypatch):
    """A GPU's stack is made for layers that stay."""
    layers, final, cache, *_ = case("glm-130b", N, 1)
    halves = [[SimpleNamespace(device=torch.device("cuda")) for _ in half] for half in cache]
    monkeypatch.setitem(kernels.BACKENDS, "cuda", lambda: Operators(nowhere))
    assert isinstance(kernels.stack(layers, final, *halves, FORMS["glm-130b"]), Stack)
    assert kernels.stack(layers, final, *halves, FORMS["glm-130b"], before=lambda number: None) is None
    monkeypatch.setitem(kernels.BACKENDS, "cuda", lambda: None)
    assert kernels.stack(layers, final, *halves, FORMS["glm-130b"]) is None


def test_launches_share_a_workspace_that_grows():
    """What an earlier launch was recorded with stays where it is."""
    device, workspaces, like = SimpleNamespace(processors=16), Workspaces(), torch.zeros(1)
    first = workspaces.find(device, like, 2, 2, 2, 32, 300)
    assert first.partial.shape == (2, 2, 4, 34) and first.arrived.tolist() == [0] * 4
    again = workspaces.find(device, like, 1, 2, 1, 40, 300)
    assert again.partial.shape == (1, 2, 4, 42) and again.partial.data_ptr() == first.partial.data_ptr()
    larger = workspaces.find(device, like, 9, 2, 2, 32, 300)
    assert larger.partial.data_ptr() != first.partial.data_ptr()
    assert workspaces.find(device, like, 2, 2, 2, 32, 300).partial.data_ptr() == larger.partial.data_ptr()


def test_more_blocks_than_a_launch_can_have_are_torch_s():
    keys = torch.zeros(1, 32, 1, 8)
    assert fits(keys, 32, LARGEST_GRID // 32) and not fits(keys, 32, LARGEST_GRID // 32 + 1)
