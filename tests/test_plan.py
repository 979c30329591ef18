"""python -m glm plan and the check before every load: checkpoints, devices, this machine, times, the programs."""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import glm.model  # noqa: F401 (SAT's log goes to where standard error is when it is imported)
from commands.main import main as glm_main
from commands.plan import gpu_here
from commands.plan import main as plan_main
from glm.config import ModelConfig
from planning import check, devices, machine, stored, table
from planning.check import Use
from planning.shapes import Format, Setup
from runtime import resources
from runtime.errors import UserError
from tests.golden_data import split_state, write_checkpoint
from tests.tiny_checkpoints import TINY, quantized, tiny_checkpoint, tiny_state
from tests.tried import CPU, TRIAL

ROOT = Path(__file__).resolve().parent.parent
LARGE = ModelConfig.from_name("glm-130b")


def error(capsys, *arguments):
    assert plan_main(list(arguments)) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("bits, dtype, precision", [(None, torch.float16, "fp16"), (None, torch.bfloat16, "bf16"),
                                                    (None, torch.float32, "fp32"), (8, torch.float16, "fp16")])
def test_what_a_checkpoint_holds_is_found_out_without_torch(tmp_path, bits, dtype, precision):
    found = stored.look(tiny_checkpoint(tmp_path / "one", 2, bits, dtype), TINY)
    assert (found.format, found.parts, found.is_mapped) == (Format(precision, bits), 2, True)


@pytest.mark.parametrize("bits, group", [(8, None), (8, 12), (4, None), (4, 12)])
def test_bits_and_groups_are_told_by_the_tensors(tmp_path, bits, group):
    write_checkpoint(tmp_path, quantized(split_state(tiny_state(), 2), bits, group))
    assert stored.look(tmp_path, TINY).format == Format("fp16", bits, group)


def test_a_damaged_file_is_left_to_the_loader(tmp_path):
    folder = tiny_checkpoint(tmp_path / "one", 1)
    path = next(folder.glob("*/*.pt"))
    path.write_bytes(b"no checkpoint")
    assert stored.look(folder, TINY).is_mapped is False


def test_every_device_says_where_its_figures_stand_and_is_found_by_its_name():
    for name, device in devices.known().items():
        assert devices.named(name) is device and device.source
        assert 8e9 < device.memory < 300e9 and device.rates["fp16"] > device.rates["fp32"] > 1e12
    with pytest.raises(UserError, match=r"--device a100-40: no such device; did you mean a100-40g\?"):
        devices.named("a100-40")
    with pytest.raises(UserError, match="V100 32 GB does not compute in bf16; allowed: fp16, fp32"):
        devices.named("v100-32g").rate("bf16")


@pytest.mark.parametrize("name, total, found", [("NVIDIA A100-SXM4-40GB", 42.9e9, "a100-40g"),
                                                ("NVIDIA A100-SXM4-80GB", 85.9e9, "a100-80g"),
                                                ("Tesla V100-SXM2-32GB", 34.4e9, "v100-32g"),
                                                ("NVIDIA GeForce RTX 3090", 25.8e9, "rtx-3090"),
                                                ("NVIDIA GeForce RTX 2080 Ti", 11.8e9, "rtx-2080ti"),
                                                ("NVIDIA H100 80GB HBM3", 85.5e9, "h100-80g"),
                                                ("NVIDIA H200", 150.7e9, "h200")])
def test_this_machine_s_gpu_is_one_of_the_known(name, total, found):
    device = gpu_here([machine.Gpu(name, int(total), 10**9, (8, 0))])
    assert device.name == found and device.memory == 10**9


def test_a_gpu_that_nobody_knows_is_said(capsys):
    with pytest.raises(UserError, match="NVIDIA X1 is not in devices.yaml"):
        gpu_here([machine.Gpu("NVIDIA X1", 10**10, 10**9, (8, 0))])
    with pytest.raises(UserError, match="no GPU is found here"):
        gpu_here([])


def test_the_hardware_that_the_original_lists_comes_out_as_it_lists_it(capsys):
    """GLM-130B's README: FP16 on 8 A100 40 GB, on 8 V100 32 GB with offloading only; INT8 on 8 V100 or 8 RTX 3090; INT4
    on 4 RTX 3090 or 8 RTX 2080 Ti."""
    assert plan_main(["--hardware"]) == 0
    rows = [tuple(cell.strip() for cell in line.split("|")[1:4]) for line in capsys.readouterr().out.splitlines()[2:]]
    plain = {(gpus, weights): offloaded for gpus, weights, offloaded in rows}
    assert plain["8 × A100 40 GB", "FP16"] == "–"
    assert plain["8 × V100 32 GB", "FP16"].endswith("GB")
    assert plain["8 × V100 32 GB", "INT8"] == plain["8 × RTX 3090 24 GB", "INT8"] == "–"
    assert plain["4 × RTX 3090 24 GB", "INT4"] == plain["8 × RTX 2080 Ti 11 GB", "INT4"] == "–"


@pytest.mark.parametrize("name", ["README.md", "README_zh.md"])
def test_the_readme_shows_what_the_command_prints(name, capsys):
    plan_main(["--hardware"])
    printed = capsys.readouterr().out.splitlines()[2:]
    text = (ROOT / name).read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if re.match(r"\| \d × ", line)] == printed


def test_this_machine_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "on_ranks", lambda setup: TRIAL)
    found = machine.host(Setup(TINY, Format("fp32")), 1e6)
    assert found.bandwidth > 0 and found.rate("fp32") > 0 and found.trial is TRIAL
    file = tmp_path / "file"
    file.write_bytes(bytes(4 * machine.BLOCK))
    rate = machine.disk_rate(file)
    assert rate is None or rate > 0
    file.write_bytes(b"short")
    assert machine.disk_rate(file) is None


def test_a_plan_of_the_embedded_model_shows_memory_and_time(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "on_ranks", lambda setup: TRIAL)
    config = ModelConfig(2, 64, 4, 96, 200, 128, num_image_tokens=0)
    assert plan_main(["--model", "glm-small", "--device", "cpu", "--fp32", "--context", "16", "--new-tokens", "4",
                      "--json", str(tmp_path / "plan.json")]) == 0
    made = json.loads((tmp_path / "plan.json").read_text())
    assert made["fits"] and made["setup"]["context"] == 16 and made["memory"]["weights"] > 6e7
    assert made["seconds"]["load"] is None and made["seconds"]["token"] > 0 < made["seconds"]["token_floor"]
    lines = table.lines(table.make(Setup(config, Format("fp32"), context=16, new_tokens=4), CPU, 2e9))
    text = "\n".join(lines)
    assert "weights" in text and "one more token" in text and "fits" in text and "2 GB/s from disk" in text


def test_ranks_that_outnumber_the_cores_are_said_to_take_turns(monkeypatch):
    monkeypatch.setattr(table, "cores", lambda: 2)
    setup = Setup(TINY, Format("fp32"), context=8, new_tokens=4)
    for degree, device, is_said in ((2, CPU, False), (4, CPU, True), (4, replace(CPU, trial=None), False)):
        lines = table.lines(table.make(replace(setup, degree=degree), device, None))
        assert any("  4 ranks take turns on 2 cores, and wait" in line for line in lines) == is_said


def test_a_plan_that_does_not_fit_says_so(capsys):
    assert plan_main(["--model", "glm-130b", "--device", "rtx-3090", "--model-parallel-size", "8", "--fp16"]) == 2
    shown = capsys.readouterr().out
    assert "TOO MUCH" in shown and "would fit with --quantization-bit-width 8" in shown


def test_a_way_to_fit_may_be_a_precision_that_was_not_timed(monkeypatch, capsys):
    for name, found in (("on_ranks", TRIAL), ("bandwidth", 4e10), ("matrix_rate", 1e11), ("host_room", 4e9)):
        monkeypatch.setattr(machine, name, lambda *_, found=found: found)
    assert plan_main(["--model", "glm-1.3b", "--device", "cpu", "--fp32"]) == 2
    assert "would fit with --bf16\n" in capsys.readouterr().out


def test_a_checkpoint_of_another_model_is_named_and_no_flags_that_do_not_help(tmp_path, capsys, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "one", 1)
    assert "GB: the checkpoint is another model's" in error(capsys, "--load", str(folder), "--model", "glm-130b")
    monkeypatch.setattr(machine, "host_room", lambda: 10**9)
    with pytest.raises(UserError, match=r"hidden size 12288\) has 257 GB: the checkpoint is another model's") as caught:
        check.require_fit(arguments_of(folder, model="glm-130b"), "this run", Use((5,)), "fp32")
    assert "--bf16" not in str(caught.value)


def test_a_machine_that_others_use_is_said_to_be_measured_so(monkeypatch, capsys):
    for name, found in (("on_ranks", TRIAL), ("bandwidth", 4e10), ("matrix_rate", 1e11)):
        monkeypatch.setattr(machine, name, lambda *_, found=found: found)
    for load, warnings in ((0.5, 0), (100.0 * resources.cores(), 1)):
        monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert plan_main(["--model", "glm-small", "--device", "cpu", "--fp32"]) == 0
        said = capsys.readouterr()
        assert said.err.count("warning: ") == warnings and "warning" not in said.out
    assert "programs want the " in said.err and "alone this machine is faster" in said.err


@pytest.mark.parametrize("degree, is_said", [("8", False), ("16", True)])
def test_more_ranks_than_machines_have_gpus_are_told_to_share_one(capsys, degree, is_said):
    plan_main(["--model", "glm-130b", "--fp16", "--device", "a100-40g", "--model-parallel-size", degree])
    assert ("tensor parallelism stays inside one machine: it must" in capsys.readouterr().out) == is_said


@pytest.mark.parametrize("arguments, said", [
    (["--context", "0"], "--context 0: must be at least 1"),
    (["--model", "glm-small", "--context", "500", "--new-tokens", "40"], "more than the model takes"),
    (["--model", "glm-smal"], "did you mean 'glm-small'"),
    (["--model", "glm-small", "--device", "a100"], "--device a100: no such device"),
    (["--model", "glm-small", "--model-parallel-size", "4", "--device", "t4"], "num_attention_heads 6 cannot be"),
    (["--load", "/no/such/folder"], "no checkpoint folder /no/such/folder"),
    (["--model", "glm-small", "--bf16", "--device", "v100-16g"], "does not compute in bf16"),
    (["--model", "glm-small", "--device", "t4", "tasks/quickstart"], "hours of tasks need a checkpoint's vocabulary"),
    (["--model", "glm-small", "--device", "t4", "--json", "/no/such/folder/file"], "--json /no/such/folder/file"),
])
def test_mistakes_get_one_line(capsys, arguments, said):
    assert said in error(capsys, *arguments)


def test_an_unknown_command_gets_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        glm_main(["plam"])
    assert end.value.code == 2 and "plam" in capsys.readouterr().err


def arguments_of(folder, **changes):
    return argparse.Namespace(**{"load": folder, "model": None, "device": "cpu", "precision": "fp32"} | changes)


def test_a_run_that_cannot_fit_is_refused_and_every_limit_is_looked_at(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "one", 1)
    check.require_fit(arguments_of(folder), "this run", Use((5,)), "fp32")
    monkeypatch.setattr(resources, "address_room", lambda: 10**8)
    with pytest.raises(UserError, match="the limit on this process's address space has 0.10 GB free"):
        check.require_fit(arguments_of(folder), "this run", Use((5,)), "fp32")
    check.require_fit(arguments_of(folder, no_plan=True), "this run", Use((5,)), "fp32")
    monkeypatch.undo()
    monkeypatch.setattr(machine, "host_room", lambda: 10**8)
    with pytest.raises(UserError, match="this machine has 0.10 GB free"):
        check.require_fit(arguments_of(folder), "this run", Use((5,)), "fp32")
    monkeypatch.setenv("LOCAL_RANK", "1")  # the first process of a host looks for all
    check.require_fit(arguments_of(folder), "this run", Use((5,)), "fp32")


def test_the_least_free_gpu_decides(tmp_path, monkeypatch):
    folder = tiny_checkpoint(tmp_path / "one", 1)
    gpus = [machine.Gpu("A", 10**10, 10**10, (8, 0)), machine.Gpu("B", 10**10, 10**8, (8, 0))]
    monkeypatch.setattr(machine, "gpus", lambda: gpus)
    check.require_fit(arguments_of(folder, device="cuda:0"), "this run", Use(), "fp32")
    with pytest.raises(UserError, match="CUDA 0.25.*but B has 0.10 GB free"):
        check.require_fit(arguments_of(folder, device="cuda:1"), "this run", Use(), "fp32")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="but B has 0.10 GB free"):
        check.require_fit(arguments_of(folder, device=None, precision=None), "this run", Use(), "fp32")


def test_programs_stop_before_they_load_torch_when_the_memory_is_limited(tmp_path):
    """A real limit on the process's address space; the program must not get as far as importing torch."""
    folder = tiny_checkpoint(tmp_path / "one", 1)
    prompts = tmp_path / "prompts"
    prompts.write_text("a\n")
    program = ("import resource, sys, runpy\n"
               "resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n"
               "module = sys.argv.pop(1)\n"
               "try:\n"
               "    runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
               "finally:\n"
               "    assert 'torch' not in sys.modules\n")
    for module, extra in (("generation", ["--input-source", str(prompts), "--output-path", str(tmp_path / "out")]),
                          ("evaluation", ["tasks/quickstart", "--output", str(tmp_path / "evaluated")])):
        command = [sys.executable, "-c", program, module, "--load", str(folder), "--device", "cpu", *extra]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 2 and "needs 0." in done.stderr and "--no-plan" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
