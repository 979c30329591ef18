"""Packed weights that are expanded beside the products: two streams that run as differently as events let them."""

import contextlib

import pytest
import torch

import kernels
from kernels.cuda import Operators, linear
from kernels.cuda.expansion import Expansions
from kernels.reference import PackedWeight
from tests.cuda_emulator import Emulator, shared_folder
from tests.test_cuda_kernels import random_case


class Stream:
    """Work in its order; an event is a place in it."""

    def __init__(self, device=None, priority=0):
        self.work, self.done = [], 0

    def record_event(self):
        return self, len(self.work)

    def wait_event(self, event):
        self.work.append(event)

    def wait_stream(self, other):
        self.wait_event(other.record_event())

    def go_on(self) -> bool:
        """Do what comes next, if it need not wait."""
        if self.done == len(self.work):
            return False
        work = self.work[self.done]
        if isinstance(work, tuple) and work[0].done < work[1]:
            return False
        self.done += 1
        if not isinstance(work, tuple):
            work()
        return True


@pytest.fixture
def streams(monkeypatch):
    """torch's current one, which is first the only one."""
    current = [Stream()]

    @contextlib.contextmanager
    def within(stream):
        current.append(stream)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    return current


@pytest.mark.parametrize("is_side_first", [True, False])
def test_weights_are_expanded_ahead_of_their_products_and_not_too_far(streams, is_side_first):
    """Of unlike sizes, which grow once; each product meets its own weight."""
    expansions, main, told, found = Expansions(torch.device("cpu")), streams[0], [], []
    sizes = [6, 3, 8, 4] * 3

    def called(number, size):
        def expand(weight):
            assert weight.shape == (size,)
            streams[-1].work.append(lambda: (told.append(("expand", number)), weight.fill_(number)))

        def multiply(weight):
            streams[-1].work.append(lambda: (told.append(("product", number)), found.append(weight.tolist())))
            return number

        return expansions.product(size, torch.float16, expand, multiply)

    assert [called(number, size) for number, size in enumerate(sizes)] == list(range(len(sizes)))
    order = [expansions.side, main] if is_side_first else [main, expansions.side]
    while any(stream.go_on() for stream in order):
        pass
    assert found == [[number] * size for number, size in enumerate(sizes)]
    at = {step: place for place, step in enumerate(told)}
    for number in range(len(sizes) - 2):
        assert at["expand", number + 2] > at["product", number]
        if is_side_first and number >= 4:  # by then all places are large enough
            assert at["expand", number + 1] < at["product", number]


@pytest.mark.parametrize("is_side_first", [True, False])
def test_a_pass_waits_for_weights_that_were_written_to_before(streams, is_side_first):
    expansions, main, weight, found = Expansions(torch.device("cpu")), streams[0], [1.0], []
    for value in (2.0, 3.0):
        main.work.append(lambda value=value: weight.__setitem__(0, value))
        expansions.begin()
        for _ in range(2):
            expansions.product(4, torch.float16, lambda whole: streams[-1].work.append(lambda: whole.fill_(weight[0])),
                               lambda whole: streams[-1].work.append(lambda: found.append(whole.tolist())))
    order = [expansions.side, main] if is_side_first else [main, expansions.side]
    while any(stream.go_on() for stream in order):
        pass
    assert found == [[2.0] * 4] * 2 + [[3.0] * 4] * 2


def test_a_pass_s_operators_expand_packed_weights_and_are_else_the_same(tmp_path_factory, streams, monkeypatch):
    emulator = Emulator(shared_folder(tmp_path_factory))
    ops = Operators(lambda _: emulator)
    ahead = ops.expanding(torch.device("cpu"))
    x, weight, scale, bias, *_ = random_case(321, 24, 256, 4, None, torch.float16)
    packed, asked = PackedWeight(weight, scale, 4), []
    product = Expansions.product
    monkeypatch.setattr(Expansions, "product", lambda self, *rest: asked.append(rest[0]) or product(self, *rest))
    with torch.no_grad():
        assert torch.equal(ahead.linear(x, packed, bias), ops.linear(x, packed, bias)) and asked == [24 * 256]
        ahead.linear(x[:3], packed, bias)
        assert torch.equal(ahead.linear(x, x), ops.linear(x, x)) and len(asked) == 1
        monkeypatch.setattr(linear, "is_recording", lambda: True)
        ahead.linear(x, packed, bias)
    assert len(asked) == 1 and emulator.launched.count("dequantize_eights") == 3
    assert ahead.attend == ops.attend and kernels.expanding(ops, torch.device("cpu")) is ops


def test_places_keep_their_memory(streams):
    expansions, seen = Expansions(torch.device("cpu")), []
    for size in [6, 3, 8, 4] * 2:
        expansions.product(size, torch.float16, lambda weight: None, lambda weight: seen.append(weight.data_ptr()))
    assert seen[4:] == [seen[2], seen[3]] * 2
