"""python -m glm plan and the check before every load: checkpoints, devices, this machine, times, the programs."""

import argparse
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch

import glm.model  # noqa: F401 (SAT's log goes to where standard error is when it is imported)
from commands.main import main as glm_main
from commands.plan import gpu_here
from commands.plan import main as plan_main
from glm.config import ModelConfig
from glm.linear import quantization_of
from glm.tokenizers.icetk import IcetkTokenizer, find_vocabulary
from planning import check, devices, layers, machine, memory, ranks, speed, stored, table, trial
from planning.check import Use
from planning.shapes import Format, Setup, layer_bytes
from planning.trial import Curve, Trial
from runtime import resources
from runtime.errors import UserError
from tests.golden_data import split_state, write_checkpoint
from tests.tiny_checkpoints import TINY, quantized, tiny_checkpoint, tiny_state

ROOT = Path(__file__).resolve().parent.parent
LARGE = ModelConfig.from_name("glm-130b")
TRIAL = Trial(step=Curve(((1, 1e-3), (4, 2e-3))), seen=Curve(((1, 1e-7), (8, 8e-7))),
              read=Curve(((64, 4e-3), (256, 1e-2))), pair=1e-9, scores=Curve(((16, 1e-3),)), choice=Curve(((1, 2e-3),)))
CPU = devices.Device("cpu", "processor", "cpu", 16e9, 40e9, {"fp32": 2e11, "bf16": 4e11}, 40e9, 40e9, "", TRIAL)


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


def test_a_token_reads_the_weights_at_best_and_a_context_is_multiplied():
    setup = Setup(ModelConfig.from_name("glm-1.3b"), Format("bf16"), context=512, new_tokens=16)
    room = memory.plan(setup)
    times = speed.plan(setup, room, CPU, 1e9)
    assert times.token_floor == pytest.approx((room.weights + speed.cache_read(setup)) / CPU.bandwidth)
    assert times.prefill_floor == pytest.approx(2 * 512 * 1.23e9 / 4e11, rel=0.1)
    assert times.load == pytest.approx(speed.START + room.weights / 1e9, rel=0.01)  # mapped, nothing is converted
    packed = replace(setup, run=Format("bf16", 4))
    assert speed.plan(packed, memory.plan(packed), CPU, None).token_floor < 0.5 * times.token_floor
    assert speed.plan(packed, memory.plan(packed), CPU, None).load is None


def test_what_is_expected_is_put_together_from_the_layers_that_were_tried():
    setup = Setup(ModelConfig.from_name("shape-335m"), Format("bf16"), context=512, new_tokens=16)
    layers = setup.config.num_layers

    def times(**changes):
        changed = replace(setup, **changes)
        return speed.plan(changed, memory.plan(changed), CPU, None)

    assert times().token == pytest.approx(layers * (1e-3 + 512 * 1e-7) + 2e-3 + speed.STEP + speed.CHOICE)
    assert times(rows=2, read_rows=2).token - times(rows=1, context=1024).token == pytest.approx(
        layers * (1e-3 / 3 + 512 * 2e-7 - 1024 * 1e-7) + 2e-3 + speed.CHOICE)  # the cache is read once for every row
    last = layers - 1 + 3 / 16  # of the last layer queries, keys and values: 3 of 4 + 12 widths
    assert times().prefill == pytest.approx(speed.PASS + last * 2e-2 + (layers - 1) * 512 * 512 * 1e-9, rel=0.02)
    assert times(read_rows=8).prefill - times(read_rows=4).prefill == pytest.approx(
        4 * (times(read_rows=2).prefill - times().prefill))  # rows of a length: in proportion
    split = times(read_rows=4, pass_tokens=512).prefill - times(read_rows=4).prefill
    assert split == pytest.approx(3 * speed.PASS)  # more passes of full size cost their beginnings alone
    assert times(scored=512).prefill > times().prefill  # then the last layer is computed, too
    scored = replace(setup, scored=64)
    assert speed.head_seconds(scored, CPU) == pytest.approx(4e-3)


def test_a_curve_goes_straight_between_its_points_and_on_in_proportion():
    curve = Curve(((1, 2.0), (3, 4.0)))
    assert [curve(count) for count in (0.5, 1, 2, 3, 6)] == [2, 2, 3, 4, 8]
    assert curve.times(2)(2) == 6


TRIED = ModelConfig(3, 64, 4, 96, 2048, 64, num_image_tokens=0)


@pytest.mark.parametrize("run, changes", [(Format("fp32"), {"scored": 1}),
                                          (Format("bf16", 4), {"int8_vocabulary": True})])
def test_layers_are_tried_as_the_run_holds_them(monkeypatch, run, changes):
    monkeypatch.setattr(trial, "REPEATS", 1)
    monkeypatch.setattr(trial, "STEP_BYTES", 2 * layer_bytes(run, Setup(TRIED, run)))  # two of the three layers
    made, sample = [], layers.sample_model
    monkeypatch.setattr(layers, "sample_model", lambda *asked: made.append(sample(*asked)) or made[0])
    found = trial.trial(Setup(TRIED, run, rows=3, **changes))
    assert len(made[0].transformer.layers) == 2 and (made[0].vocabulary is not None) == bool(run.bits)
    assert (quantization_of(made[0]) or "").startswith("INT4" if run.bits else "")
    assert 3 in dict(found.step.points) and found.step(1) > 0 and found.read(100) > 0 and found.choice(1) > 0
    assert found.pair >= 0 and found.seen(5) >= 0 and found.scores(64) > 0
    assert ranks.read(json.loads(json.dumps(asdict(found)))) == found


def test_a_layer_too_wide_to_be_tried_is_tried_narrower():
    config, times = layers.narrowed(LARGE)
    assert times == 4 and config.hidden_size == LARGE.hidden_size // 4 and config.head_size == LARGE.head_size
    assert layers.narrowed(TRIED) == (TRIED, 1)


def test_ranks_that_fail_are_said_in_a_line(monkeypatch):
    def failed(command, **_):
        assert command[1:4] == [str(ROOT / "scripts" / "launch.py"), "2", "planning"]
        return subprocess.CompletedProcess(command, 2, "", "warning: x\nerror: no memory\n")

    monkeypatch.setattr(subprocess, "run", failed)
    with pytest.raises(UserError, match="2 ranks could not be timed here: no memory"):
        ranks.on_ranks(Setup(TRIED, Format("fp32"), degree=2))


@pytest.mark.slow
def test_ranks_time_their_layers_together():
    assert ranks.on_ranks(Setup(TRIED, Format("fp32"), degree=2)).step(1) > 0


def test_streamed_layers_come_over_the_link_and_ranks_exchange():
    gpu = devices.named("v100-32g")
    setup = Setup(LARGE, Format("fp16"), "cuda", 8, context=512, new_tokens=16)
    alone = speed.plan(setup, memory.plan(setup), gpu, None).token
    assert speed.exchanges(setup, 1, gpu) > 2 * 70 * speed.EXCHANGE
    limited = replace(setup, offload_limit=16e9)
    room = memory.plan(limited)
    assert speed.plan(limited, room, gpu, None).token == room.streamed / gpu.link > 10 * alone


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


def test_a_plan_that_does_not_fit_says_so(capsys):
    assert plan_main(["--model", "glm-130b", "--device", "rtx-3090", "--model-parallel-size", "8", "--fp16"]) == 2
    shown = capsys.readouterr().out
    assert "TOO MUCH" in shown and "would fit with --quantization-bit-width 8" in shown


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


HAS_MODEL = (ROOT / "checkpoints" / "glm-small" / "latest").exists()


@pytest.mark.skipif(not HAS_MODEL, reason="the embedded model is not in this clone")
def test_hours_of_tasks_come_from_their_own_requests():
    from evaluation.hours import hours

    config = ModelConfig.from_name("glm-small")
    tokenizer = IcetkTokenizer(find_vocabulary(ROOT / "checkpoints" / "glm-small"), config.num_image_tokens)
    setup = Setup(config, Format("fp32"))
    found = {limit: hours([str(ROOT / "tasks" / "quickstart")], ROOT / "data", tokenizer, setup, CPU, None, limit, None,
                          None) for limit in (None, 2)}
    assert found[None].keys() == found[2].keys() and len(found[2]) == 4
    assert all(0 < found[2][name] <= found[None][name] < 1 for name in found[2])
    doubled = {field.name: value.times(2) if isinstance(value, Curve) else 2 * value
               for field in fields(TRIAL) for value in (getattr(TRIAL, field.name),)}
    slower = replace(CPU, trial=Trial(**doubled))
    twice = hours([str(ROOT / "tasks" / "quickstart")], ROOT / "data", tokenizer, setup, slower, None, None, None, None)
    assert all(1.3 * found[None][name] < twice[name] < 2.1 * found[None][name] for name in twice)


def test_hours_use_the_evaluation_s_own_budget():
    from evaluation import requests as batching
    from evaluation.hours import batch_tokens
    from evaluation.requests import ScoreRequest

    request = ScoreRequest((1, 2), ((3,),), 0, 0, 1)
    setup = Setup(LARGE, Format("fp16"), "cuda", 8)
    assert batch_tokens(replace(setup, kind="cpu"), CPU, [request]) == batching.CPU_TOKENS
    assert batch_tokens(setup, devices.named("a100-40g"), [request]) % 1024 == 0
