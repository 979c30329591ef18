"""What carries the ranks' tensors, by the device that was asked for; no GPU is needed to know."""

from pathlib import Path

import pytest
import torch

import glm
from runtime import parallel
from runtime.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("has_gpu", [True, False])
def test_the_device_that_was_asked_for_decides(has_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert parallel.backend_for("cpu") == parallel.backend_for(torch.device("cpu")) == "gloo"
    assert parallel.backend_for("cuda") == parallel.backend_for(torch.device("cuda:1")) == "nccl"
    assert parallel.backend_for(None) == ("nccl" if has_gpu else "gloo")
    assert parallel.backend_for("gpu") == "gloo"  # no device: loading says so


def test_more_ranks_than_gpus_are_one_line():
    assert [parallel.own_gpu(rank, 2) for rank in (0, 1)] == [0, 1]
    with pytest.raises(UserError, match=r"rank 2 of this host has no GPU of its own: torch finds 2; start at most 2 "
                                        r"processes on it, or use --device cpu"):
        parallel.own_gpu(2, 2)


def test_a_cpu_s_ranks_do_without_nccl_beside_a_gpu(monkeypatch):
    """As far as the group's start, on a machine where torch says that there is a GPU."""

    class Asked(Exception):
        pass

    def group(backend, timeout_seconds):
        raise Asked(backend)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(parallel, "is_started", lambda: False)
    monkeypatch.setattr(parallel, "_start_process_group", group)
    for degree in (None, 2):
        with pytest.raises(Asked, match="gloo"):
            glm.load(ROOT / "checkpoints" / "glm-small", device="cpu", degree=degree)
