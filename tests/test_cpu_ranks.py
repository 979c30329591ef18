"""Sums over tensor-parallel ranks of a host in memory that they share: the numbers, who takes part, and who goes away.
What models make of them is seen wherever a test has ranks."""

import mmap
import os
import subprocess
import sys
import time

import pytest
import torch

from glm.checkpoint import read_config
from glm.inputs import position_ids
from glm.loading import load_model, share_small_sums
from glm.options import ModelOptions
from kernels import cpu, small_sums
from kernels.cpu import build, ranks
from runtime import parallel
from tests.golden_data import SHAPE, TP1
from tests.golden_family import checkpoint, load
from tests.kernel_cases import DTYPES
from tests.parallel_helper import run_ranks

SLOT = ranks.SLOT_BYTES // 4  # numbers of float32
SHAPES = ((1,), (2, 1, 37), (3, 4097), (2, SLOT - 5), (SLOT * 2 + 3,))


@pytest.fixture(autouse=True, scope="module")
def compiled():
    try:
        cpu.operators()
    except build.BuildError as error:
        pytest.skip(str(error))


def part(shape, dtype, rank):
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).mul(10.0 ** rank).to(dtype)


def joined():
    parallel.start(torch.distributed.get_world_size(), device="cpu")
    return small_sums(torch.device("cpu"), parallel.rank(), parallel.size(), parallel.exchange)


def sums():
    found = joined()
    return [found.sum(part(shape, dtype, parallel.rank())) for dtype in DTYPES for shape in SHAPES]


@pytest.mark.parametrize("world", [2, 3])
def test_all_ranks_get_the_sum_in_float32_rounded_once(world, tmp_path):
    """Of few numbers and of more than are put down at a time; the ranks' order is that of the sum."""
    first, *others = run_ranks(sums, world, tmp_path)
    cases = [(shape, dtype) for dtype in DTYPES for shape in SHAPES]
    for found, (shape, dtype), *same in zip(first, cases, *others, strict=True):
        total = part(shape, dtype, 0).float()
        for rank in range(1, world):
            total = total + part(shape, dtype, rank).float()
        assert torch.equal(found, total.to(dtype)) and all(torch.equal(found, each) for each in same)


def gathers():
    found = joined()
    shapes = ((1, 5), (3, 1, 8191), (70, SLOT // 64 - 1))
    return ([found.gathered(part(shape, torch.float32, parallel.rank())) for shape in shapes],
            found.gathered(torch.ones(2, SLOT + 1)), found.gathered(torch.ones(2, 3, dtype=torch.int64)))


def test_parts_come_side_by_side_row_by_row(tmp_path):
    for found, too_wide, other in run_ranks(gathers, 2, tmp_path):
        assert too_wide is None and other is None  # left to the library
        for whole in found:
            parts = [part((*whole.shape[:-1], whole.shape[-1] // 2), torch.float32, rank) for rank in range(2)]
            assert torch.equal(whole, torch.cat(parts, dim=-1))


def told_apart():
    """Many sums, in front of which now one, now another rank is late."""
    found, order = joined(), []
    for number in range(200):
        if number % 7 == parallel.rank():
            time.sleep(0.002)
        order.append(found.sum(torch.full((3,), float(number + parallel.rank())))[0].item())
    return order


def test_a_rank_that_is_late_is_waited_for(tmp_path):
    assert run_ranks(told_apart, 3, tmp_path) == [[3.0 * number + 3 for number in range(200)]] * 3


def alone(handle, patience):
    """This process's side of two ranks, of which the other one has put nothing down."""
    memory = mmap.mmap(-1, ranks.size_of(2))
    return ranks.Sums(cpu.operators(), memory, 0, [-1, handle], patience)


def test_a_rank_that_does_not_come_ends_the_wait():
    with pytest.raises(RuntimeError, match="rank 1 was waited for in vain: 0 s, time-out"):
        alone(-1, patience=0).sum(torch.ones(3))


def test_a_rank_that_has_ended_is_noticed():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    handle = ranks.handle_of(child.pid)
    child.kill()  # and is not waited for: what is left of it still has its number
    try:
        if handle < 0:
            pytest.skip("this system does not tell when a process ends")
        for work in (lambda sums: sums.sum(torch.ones(3)), lambda sums: sums.gathered(torch.ones(3))):
            with pytest.raises(RuntimeError, match="rank 1 ended while others waited for it"):
                work(alone(handle, patience=10000))
    finally:
        child.wait()


NAMES = {"glm": "megatron_chinese_MP2", "chatglm": "hf_chatglm_untied", "chatglm2": "hf_chatglm2"}


def model_of(family, bits):
    if family == "glm-130b":
        options = ModelOptions(path=TP1, device=torch.device("cpu"), dtype=torch.float32, bits=bits)
        if not parallel.is_started():
            parallel.start()
        return load_model(options, read_config(TP1, **SHAPE))
    fields = {"num_attention_heads": 4} if family == "glm" else {}  # nothing in Megatron's files says it
    return load(checkpoint(family, NAMES[family]), bits, **fields)


@torch.no_grad()
def steps(family, bits, degree, is_shared):
    """Logits (steps, 2, v) of two rows behind a context, and whether all layers of a step were one call."""
    parallel.start(degree, device="cpu")
    if is_shared:
        share_small_sums(torch.device("cpu"))
    model = model_of(family, bits)
    cache, found = model.new_cache(2, 12), []
    tokens = torch.arange(5, 29).view(2, 12)
    for first, last in ((0, 8), (8, 9), (9, 10), (10, 11)):
        places = torch.arange(first, last).expand(2, -1)
        positions = position_ids(model.config, places, torch.zeros_like(places))
        hidden = model.hidden_states(tokens[:, first:last], positions, None, cache)
        found.append(model.head(hidden[:, -1]))
    return torch.stack(found), bool(cache.stack)


@pytest.mark.parametrize("family, bits", [("glm-130b", None), ("glm-130b", 4), ("glm", None), ("chatglm", 8),
                                          ("chatglm2", None)])
def test_steps_in_one_call_are_those_of_walked_layers(family, bits, tmp_path):
    """ChatGLM2's two groups on four ranks: two of them hold the same keys and values."""
    degree = 4 if family == "chatglm2" else 2
    found = {}
    for is_shared in (True, False):
        (tmp_path / str(is_shared)).mkdir()
        all_ranks = run_ranks(steps, degree, tmp_path / str(is_shared), family, bits, degree, is_shared)
        assert all(is_one_call is is_shared for _, is_one_call in all_ranks)
        assert all(torch.equal(logits, all_ranks[0][0]) for logits, _ in all_ranks)
        found[is_shared] = all_ranks[0][0]
    torch.testing.assert_close(found[True], found[False], atol=1e-4, rtol=0)


def exchange_of(others):
    return lambda mine: [mine, *(other(mine) for other in others)]


@pytest.mark.parametrize("other", [
    lambda mine: (None, *mine[1:]),  # has no compiled kernels
    lambda mine: (("another start", "pid:[1]"), *mine[1:]),  # on another host, or in another container
])
def test_ranks_that_cannot_share_memory_leave_sums_to_the_library(other, capsys):
    assert ranks.join(cpu.operators(), 0, 2, exchange_of([other])) is None
    assert ranks.join(None, 0, 2, exchange_of([other])) is None
    assert capsys.readouterr().err == ""


def test_why_memory_is_not_shared_is_one_line_of_the_first_rank(monkeypatch, capsys):
    def refused(*_):
        raise OSError("no memory")

    monkeypatch.setattr(ranks, "made", refused)
    for rank in (0, 1):
        assert ranks.join(cpu.operators(), rank, 2, lambda mine: [(*mine[:-1], "no memory"), mine]) is None
    assert capsys.readouterr().err == "kernels: sums over ranks are left to torch's library: no memory\n"


def test_memory_of_another_process_is_not_taken_for_the_rank_s(tmp_path):
    size = ranks.size_of(2)
    number = ranks.made(size, b"1" * ranks.TOKEN_BYTES)
    assert ranks.opened(os.getpid(), number, size, b"1" * ranks.TOKEN_BYTES)[:64] == bytes(64)
    with pytest.raises(ValueError, match="is not to be seen here"):
        ranks.opened(os.getpid(), number, size, b"2" * ranks.TOKEN_BYTES)
    os.close(number)


def test_the_library_s_sums_can_be_asked_for(monkeypatch):
    monkeypatch.setenv("GLM_CPU_ALL_REDUCE", "gloo")
    assert small_sums(torch.device("cpu"), 0, 2, None) is None
    monkeypatch.delenv("GLM_CPU_ALL_REDUCE")
    assert small_sums(torch.device("cpu"), 0, 1, None) is None
