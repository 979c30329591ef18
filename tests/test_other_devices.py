"""Devices that there are no kernels of ours for: accepted where torch has them, told apart where it has not."""

import types

import pytest
import torch

import kernels
from commands.main import main
from glm import loading
from kernels import reference
from planning import machine
from runtime.errors import UserError
from runtime.resources import unusable


def like(kind):
    """A weight on a device of this kind."""
    return types.SimpleNamespace(device=torch.device(kind), dtype=torch.float32)


def chosen(kind):
    kernels.none_for.cache_clear()
    with torch.no_grad():
        return [kernels.backend(like(kind)) for _ in range(3)]


@pytest.mark.parametrize("kind", ["xpu", "mps"])
def test_they_run_on_torch_s_own_operators_which_is_said_once(kind, capsys):
    assert chosen(kind) == [reference] * 3
    assert capsys.readouterr().err == f"kernels: there are none for {kind}; torch's own operators are used\n"


def test_amd_s_gpus_are_called_cuda(monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert chosen("cuda") == [reference] * 3
    assert capsys.readouterr().err == "kernels: there are none for ROCm; torch's own operators are used\n"


def test_one_that_torch_can_use_is_taken(monkeypatch):
    monkeypatch.setattr(loading, "unusable", lambda device: None)
    assert loading._device("xpu:1") == torch.device("xpu:1") and loading._device("mps") == torch.device("mps")


@pytest.mark.parametrize("name", ["xpu", "mps", "meta"])
def test_one_that_torch_cannot_use_is_refused(name):
    assert unusable("cpu") is None
    why = unusable(name)
    assert why and "\n" not in why
    with pytest.raises(UserError, match=f"device {name} was asked for, but torch cannot use it: .*; use --device cpu"):
        loading._device(name)
    with pytest.raises(UserError, match="unknown device 'cdua'; allowed: cpu, cuda, cuda:N, and others that torch has"):
        loading._device("cdua")


def test_the_plan_knows_nothing_of_them(monkeypatch, capsys):
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("A100", 80, 40e9, 39e9)])
    assert machine.place_of("xpu", 1) == machine.place_of("mps:0", 2) == ("cuda", [])
    assert machine.place_of("cuda", 1)[1] and machine.place_of("cpu", 1) == ("cpu", [])
    assert machine.default_precision("xpu") == machine.default_precision("mps:0") == "fp16"
    assert main(["plan", "--device", "xpu"]) == 2
    assert "of another one there are no figures: name one that is like it" in capsys.readouterr().err
