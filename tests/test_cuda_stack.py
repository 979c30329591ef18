"""All layers of a decoding step on a GPU against kernels.layer.stack: torch's operators need no GPU."""

from types import SimpleNamespace

import pytest
import torch

import kernels
from kernels import reference
from kernels.cache import BuildError
from kernels.cuda import Operators
from kernels.cuda.attention import LARGEST_GRID, Workspaces, fits
from kernels.cuda.stack import Stack
from kernels.layer import stack as walk
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
