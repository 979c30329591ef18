"""Sums over tensor-parallel ranks of a host in memory that they share: the numbers, who takes part, and who goes away.
What models make of them is seen wherever a test has ranks."""

import gc
import mmap
import os
import subprocess
import sys
import threading
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
from runtime.errors import UserError
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


def alone(process, patience=10000.0, memory=None):
    """This process's side of two ranks, of which the other one has put nothing down."""
    memory = memory or mmap.mmap(-1, ranks.size_of(2))
    return ranks.Sums(cpu.operators(), memory, 0, [os.getpid(), process], patience)


def test_a_rank_that_does_not_come_ends_the_wait():
    sums = alone(os.getpid(), patience=0)
    for work in (sums.sum, sums.gathered):  # the second at once
        with pytest.raises(RuntimeError, match=r"\(tensor-parallel rank 1\) was waited for in vain: time-out"):
            work(torch.ones(3))


@pytest.mark.parametrize("has_handle", [True, False])
def test_a_rank_that_has_ended_is_noticed(has_handle, monkeypatch):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    if not has_handle:
        monkeypatch.setattr(cpu.operators().library, "glm_handle_of_process", lambda process: -1, raising=False)
    for work in ("sum", "gathered"):
        sums = alone(child.pid)
        child.kill()  # and with a handle is not waited for: what is left of it still has its number
        if not has_handle:
            child.wait()
        elif sums.kept[2][1] < 0:
            child.wait()
            pytest.skip("this system does not tell when a process ends")
        with pytest.raises(RuntimeError, match=rf"process {child.pid} .* ended while others waited for it"):
            getattr(sums, work)(torch.ones(3))
    child.wait()


@pytest.mark.parametrize("works", [  # one rank's, the other one's
    (lambda sums: sums.sum(torch.ones(3)), lambda sums: sums.sum(torch.ones(4))),
    (lambda sums: sums.sum(torch.ones(4)), lambda sums: sums.sum(torch.ones(8).half())),
    (lambda sums: sums.sum(torch.ones(3)), lambda sums: sums.gathered(torch.ones(3))),
    (lambda sums: sums.gathered(torch.ones(2, 4)), lambda sums: sums.gathered(torch.ones(1, 8))),
])
def test_ranks_that_add_up_different_things_get_no_sum(works, tmp_path):
    memory = mmap.mmap(-1, ranks.size_of(2))
    sums = [ranks.Sums(cpu.operators(), memory, rank, [os.getpid()] * 2, 100.0) for rank in range(2)]
    found = []

    def side(rank):
        with pytest.raises(RuntimeError, match="adds up something else"):
            works[rank](sums[rank])
        found.append(rank)

    threads = [threading.Thread(target=side, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [0, 1]


def test_a_rank_that_is_further_than_the_next_sum_has_left_out_none_unnoticed():
    memory = mmap.mmap(-1, ranks.size_of(2))
    memory[ranks.STATE_BYTES:ranks.STATE_BYTES + 4] = (3).to_bytes(4, "little")
    with pytest.raises(RuntimeError, match="adds up something else: one of them has left out a sum"):
        alone(os.getpid(), memory=memory).sum(torch.ones(3))


def test_a_step_that_a_rank_leaves_early_is_its_last():
    sums = alone(os.getpid())
    sums.leave_out()
    with pytest.raises(RuntimeError, match=rf"process {os.getpid()} \(tensor-parallel rank 0\) adds up something else"):
        sums.sum(torch.ones(3))


def test_handles_are_closed_with_the_sums(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        alone(os.getpid())
        assert ranks.join(cpu.operators(), 0, 2, exchange_of([lambda mine: (None, *mine[1:])]), 1.0) is None
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


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
    lambda mine: (None, *mine[1:]),  # has no compiled kernels, or does not want to
    lambda mine: (("another start", "pid:[1]"), *mine[1:]),  # on another host, or in another container
])
def test_ranks_that_cannot_share_memory_leave_sums_to_the_library(other, capsys):
    assert ranks.join(cpu.operators(), 0, 2, exchange_of([other]), 1.0) is None
    assert ranks.join(None, 0, 2, exchange_of([other]), 1.0) is None
    assert capsys.readouterr().err == ""


def test_why_memory_is_not_shared_is_one_line_of_the_first_rank(monkeypatch, capsys):
    monkeypatch.setattr(cpu.operators().library, "glm_nameless_memory", lambda: -1, raising=False)
    reason = "the system has no memory to share"

    def exchange(mine):  # of the first rank; what it says, the other one has heard, too
        return [(*mine[:-1], reason), mine] if isinstance(mine, tuple) else [mine, mine]

    for rank in (0, 1):
        assert ranks.join(cpu.operators(), rank, 2, exchange, 1.0) is None
    assert capsys.readouterr().err == f"kernels: sums over ranks are left to torch's library: {reason}\n"


def test_memory_of_another_process_is_not_taken_for_the_rank_s():
    size = ranks.size_of(2)
    number = ranks.made(cpu.operators().library, size, b"1" * ranks.TOKEN_BYTES)
    assert ranks.opened(os.getpid(), number, size, b"1" * ranks.TOKEN_BYTES)[:64] == bytes(64)
    with pytest.raises(ValueError, match="is not to be seen here"):
        ranks.opened(os.getpid(), number, size, b"2" * ranks.TOKEN_BYTES)
    os.close(number)


def asks_for_gloo():
    os.environ["GLM_CPU_ALL_REDUCE"] = "gloo" if torch.distributed.get_rank() else ""
    return joined()


def test_the_library_s_sums_can_be_asked_for_on_one_rank_alone(tmp_path, monkeypatch):
    assert run_ranks(asks_for_gloo, 2, tmp_path) == [None, None]
    monkeypatch.setenv("GLM_CPU_ALL_REDUCE", "Gloo")
    with pytest.raises(UserError, match="^GLM_CPU_ALL_REDUCE=Gloo: must be gloo, or not be set$"):
        small_sums(torch.device("cpu"), 0, 2, None)
    assert small_sums(torch.device("cpu"), 0, 1, None) is None
