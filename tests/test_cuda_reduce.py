"""Sums over GPUs in one launch (reduce.h): ranks as processes, each with an emulator, in memory that they share; how
they come to see each other's memory; what the model does with it."""

import os

import pytest
import torch

from kernels import reference
from kernels.cuda import driver, reduce
from runtime import parallel
from tests.cuda_emulator import Emulator, shared_folder
from tests.ptx_interpreter import Interpreter
from tests.test_cuda_driver import story, stub  # noqa: F401  a fixture

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shared_folder(tmp_path_factory)


def shared(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype).share_memory_()


def sums_of(folder, rank, areas, patience=300.0):
    counts, failure = torch.zeros(2 * reduce.BLOCKS, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    return reduce.Sums(Emulator(folder), rank, areas, counts, failure, patience)


def on_all_ranks(count, work):
    """work(rank) in a process each; a child's exception is its exit code."""
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                work(rank)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * count


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_ranks_get_the_same_sum(folder, ranks):
    """Again and again, in two slots by turns; one block and several, none of them whole."""
    x = [torch.randn(ranks, size, generator=torch.Generator().manual_seed(size)).half() for size in (8, 2056, 24, 4104)]
    areas = [shared(reduce.area_bytes(ranks) // 4) for _ in range(ranks)]
    found = [shared(*values.shape, dtype=torch.float16) for values in x]
    warm = sums_of(folder, 0, areas[:1])
    assert torch.equal(warm.sum(x[0][0]), x[0][0])  # compiled once; a single rank has its own part
    areas[0].zero_()

    def work(rank):
        sums = sums_of(folder, rank, areas)
        for values, out in zip(x, found, strict=True):
            out[rank] = sums.sum(values[rank])

    on_all_ranks(ranks, work)
    for values, out in zip(x, found, strict=True):
        exact = values[0].float()
        for part in values[1:]:
            exact = exact + part.float()
        assert torch.equal(out, exact.half().expand(ranks, -1))


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_norm_is_part_of_the_sum(folder, has_bias):
    """Of rows of unlike numbers by turns, with sums of the same blocks between them; the sum itself is kept or not."""
    ranks, h, dtype = 2, 264, torch.float16
    x, residual = (torch.randn(ranks, 3, h, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    weight, bias, added = torch.randn(3, h, generator=torch.Generator().manual_seed(2)).to(dtype)
    bias = bias if has_bias else None
    areas = [shared(reduce.area_bytes(ranks) // 4) for _ in range(ranks)]
    found, totals, plain = (shared(ranks, 3, 3, h, dtype=dtype) for _ in range(3))

    def work(rank):
        sums = sums_of(folder, rank, areas)
        for turn, rows in enumerate((1, 3, 2)):
            total = totals[rank, turn, :rows] if turn else None
            found[rank, turn, :rows] = sums.norm(x[rank, :rows], weight, bias, 1e-5, residual[0, :rows], 1.5, added,
                                                 total)
            plain[rank, turn] = sums.sum(x[rank])

    sums_of(folder, 0, areas[:1]).sum(x[0])  # compiled once
    areas[0].zero_()
    on_all_ranks(ranks, work)
    assert torch.equal(plain, (x[0].float() + x[1].float()).half().expand(ranks, 3, -1, -1))
    exact = x.double().sum(0) + added.double() + 1.5 * residual[0].double()
    normed = (reference.rms_norm(exact, weight.double(), 1e-5) if bias is None else
              reference.layer_norm(exact, weight.double(), bias.double(), 1e-5))
    for turn, rows in enumerate((1, 3, 2)):
        assert torch.equal(found[0], found[1]) and torch.equal(totals[0], totals[1])
        assert torch.allclose(found[0, turn, :rows].double(), normed[:rows], atol=4e-3, rtol=1e-3)
        assert not turn or torch.allclose(totals[0, turn, :rows].double(), exact[:rows], rtol=1e-3, atol=1e-3)


def test_a_norm_of_a_sum_in_ptx(folder):
    """Of a rank that is alone: its own part goes through what others would see."""
    counts, failure = torch.zeros(2 * reduce.BLOCKS, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    area = torch.zeros(reduce.area_bytes(1) // 4, dtype=torch.int32)
    sums = reduce.Sums(Interpreter(folder), 0, [area], counts, failure)
    x, residual, vectors = (torch.randn(count, 264, generator=torch.Generator().manual_seed(count)).half()
                            for count in (2, 2, 3))
    weight, bias, added = vectors
    total = torch.empty_like(x)
    normed = sums.norm(x, weight, bias, 1e-5, residual, 1.5, added, total)
    exact = x.double() + added.double() + 1.5 * residual.double()
    assert torch.allclose(total.double(), exact, rtol=1e-3, atol=1e-3)
    exact = reference.layer_norm(exact, weight.double(), bias.double(), 1e-5)
    assert torch.allclose(normed.double(), exact, rtol=1e-3, atol=4e-3)
    assert counts.tolist() == [0] * reduce.BLOCKS + [1, 1] + [0] * 30


def test_which_sums_are_normed_with(folder):
    sums = sums_of(folder, 0, [shared(1)])
    weight = torch.ones(16384, dtype=torch.float16)
    assert sums.fits_norm(torch.zeros(16, 1, 16384).half(), weight, None)
    assert not sums.fits_norm(torch.zeros(17, 1, 16384).half(), weight, None)
    assert not sums.fits_norm(torch.zeros(1, 16384), weight.float(), None)  # a row that is too large
    assert not sums.fits_norm(torch.zeros(0, 16384).half(), weight, None)


def test_a_rank_that_does_not_come_is_waited_for_in_bounds(folder):
    sums = sums_of(folder, 0, [shared(reduce.area_bytes(2) // 4) for _ in range(2)], patience=0.01)
    with pytest.raises(AssertionError, match="a wait in vain"):
        sums.sum(torch.zeros(8))
    with pytest.raises(RuntimeError, match=r"^rank 0 has waited 0.01 s for rank 1 to add up a tensor$"):
        sums.sum(torch.zeros(8))


def test_what_fits():
    sums = reduce.Sums(None, 0, [], torch.zeros(1), torch.zeros(1))
    assert sums.fits(torch.zeros(1, 1, 12288).half()) and sums.fits(torch.zeros(4))
    assert not sums.fits(torch.zeros(3)) and not sums.fits(torch.zeros(0)) and not sums.fits(torch.zeros(4).double())
    assert not sums.fits(torch.zeros(reduce.SLOT_BYTES // 4 + 4))


def test_ranks_open_each_other_s_memory(stub):  # noqa: F811
    device = driver.Device(stub, 1)
    told = []

    def exchange(mine):
        """The other rank, 0, runs on the same host and offers what it has."""
        told.append(mine)
        return [mine if mine is None else (mine[0], bytes([7] * 64), None), mine]

    sums = reduce.join(device, torch.device("cpu"), 1, 2, exchange)
    assert [area.data_ptr() for area in sums.areas] == [0x7777, 0x5555]
    assert told[0][1] == bytes([5] * 64) and told[1] is None
    assert story(stub)[2:] == [f"memory of {reduce.area_bytes(2)}", "zeros", "handle", "open 7 1"]


def test_ranks_that_cannot_see_each_other_leave_sums_to_the_library(stub, capsys):  # noqa: F811
    device = driver.Device(stub, 1)
    assert reduce.join(device, torch.device("cpu"), 0, 2, lambda mine: [mine, ("elsewhere", bytes(64), None)]) is None
    assert reduce.join(device, torch.device("cpu"), 0, 9, lambda mine: [mine]) is None
    said = capsys.readouterr().err.splitlines()
    assert said == ["kernels: sums over ranks are left to the library: the ranks run on several hosts",
                    "kernels: sums over ranks are left to the library: there are 9 ranks, and at most 8 can take part"]


def test_the_model_s_sums_go_that_way_where_it_is_asked_for(monkeypatch):
    class Twice:
        def fits(self, x):
            return x.numel() < 4

        def sum(self, x):
            return 2 * x

    monkeypatch.setattr(parallel, "small_sums", {})
    monkeypatch.setattr(parallel.mpu, "reduce_from_model_parallel_region", lambda x: 3 * x)
    few, many = torch.ones(3), torch.ones(4)
    assert parallel.reduce(few).tolist() == [3.0] * 3
    parallel.small_sums["cpu"] = Twice()
    with torch.no_grad():
        assert parallel.reduce(few).tolist() == [2.0] * 3 and parallel.reduce(many).tolist() == [3.0] * 4
    assert parallel.reduce(few).tolist() == [3.0] * 3  # gradients are on
