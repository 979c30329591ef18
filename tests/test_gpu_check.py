"""tools/gpu_check.py without a GPU: every section at a toy's shapes, its kernels on the emulator; what it says and
returns. On a machine with a GPU, all cases of the check run here, too (marked gpu)."""

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

import glm
import kernels
from kernels import cuda
from kernels.cuda import choice
from tests.cuda_emulator import Emulator, shared_folder
from tools import gpu_check
from tools.checking_gpu import answers, correctness, model, products, recorded, section, setting, step

ROOT = Path(__file__).resolve().parent.parent


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    emulator = Emulator(shared_folder(tmp_path_factory))
    return setting.Setting(torch.device("cpu"), cuda.Operators(lambda _: emulator), setting.TOY, True,
                           float("inf"))


def test_glm_130b_s_shapes_and_their_parts():
    found = products.shapes(setting.Setting(None, None, setting.ModelConfig.from_name("glm-130b"), False, 0), [1, 2, 8])
    assert found[36864, 12288] == "query_key_value" and found[12288, 12288] == "dense"
    assert found[65536, 12288] == "dense_h_to_4h" and found[12288, 32768] == "dense_4h_to_h"
    assert found[4608, 12288] == "query_key_value/8" and found[12288, 4096] == "dense_4h_to_h/8"
    assert found[12288, 6144] == "dense/2"


def test_cases_cover_every_kernel():
    kernels = set()
    for case in correctness.cases():
        plan = choice.choose(*case[:5], True, 132)  # of an H100
        kernels.add(plan.name if plan else None)
        kernels.add("eights" if choice.fits_eights(case.n, case.k, case.group_size) else "any")
    expected = {f"skinny_{tiles}_{scaling}" for tiles in (1, 2, 4) for scaling in ("ROW", "STAGE", "CHUNK")}
    expected |= {f"wide_{slices}_{scaling}" for slices in (2, 4, 8) for scaling in ("ROW", "GROUPS")}
    assert kernels >= expected | {None, "eights", "any", "simple_1", "simple_4"}


def test_correctness_on_the_emulator(toy):
    found = list(correctness.rows(toy))
    assert len(found) > 12 and all(row["right"] for row in found)


def test_what_lies_between_products_on_the_emulator(toy):
    bandwidth, *found = step.kernels(toy)
    assert bandwidth["GB/s"] > 0 and len(found) == 7 and all(row["right"] and row["us"] > 0 for row in found)


def test_a_wrong_kernel_is_found(toy):
    class Wrong(cuda.Operators):
        def weight_only_linear(self, x, *rest):
            result = super().weight_only_linear(x, *rest)
            result[-1, -1] *= 1.5
            return result

    wrong = setting.Setting(toy.device, Wrong(toy.operations.find), toy.config, True, toy.deadline)
    assert not correctness.check(wrong, correctness.Case(3, 40, 512, 4, None, torch.float16))["right"]


def test_products_on_the_emulator(toy):
    rows = list(products.decoding(toy))
    assert {row["weights"] for row in rows} == {"INT4", "INT8", "INT4 groups of 32", "INT4 groups of 128",
                                                "INT8 groups of 128"}
    assert all(row["m=16 us"] > 0 and row["bandwidth GB/s"] > 0 for row in rows)
    rows = list(products.prefill(toy))
    assert all(row["m=32 us"] > 0 and row["m=321 % of cuBLAS"] > 0 for row in rows)
    rows = list(products.tilings(toy))
    assert {row["m"] for row in rows} == {1, 16}
    assert all(row["best us"] > 0 and row["chosen / best"] >= 1 for row in rows)


def test_layers_and_the_whole_model_on_the_emulator(toy):
    rows = list(model.layers(toy))
    assert [row["weights"] for row in rows] == ["FP16", "INT8", "INT4", "INT4 groups of 32"] * 2
    [row] = model.whole_model(toy)
    assert row["model"] == "whole" and row["finite"] and row["decode 1 ms"] > 0 and row["prefill 16 ms"] > 0
    embedding, layer = 64 * 128 * 2, (384 * 128 + 128 * 128 + 384 * 128 + 128 * 192) // 2 + 2 * (384 + 128 + 384 + 128)
    assert row["GB"] * 1e9 == pytest.approx(embedding + 2 * layer)


def test_a_section_that_fails_says_why_and_keeps_its_rows(tmp_path, monkeypatch):
    def rows(_):
        yield {"n": 1}
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(products, "prefill", rows)
    assert section.run("prefill", "cpu", True, 10, tmp_path / "a.json") is False
    result = json.loads((tmp_path / "a.json").read_text())
    assert result["status"] == "failed" and result["rows"] == [{"n": 1}]
    assert result["error"] == "RuntimeError: an illegal memory access was encountered"
    monkeypatch.setattr(products, "prefill", lambda _: iter([{"case": "x", "right": False}]))
    assert section.run("prefill", "cpu", True, 10, tmp_path / "a.json") is False
    assert "1 of 1 are wrong" in json.loads((tmp_path / "a.json").read_text())["error"]


def test_every_section_has_its_function_and_all_end_within_eight_minutes():
    for module, function, _ in section.SECTIONS.values():
        assert callable(getattr(import_module(module), function))
    allowed = gpu_check.make_parser().parse_args([]).seconds
    assert sum(seconds for *_, seconds in section.SECTIONS.values()) <= allowed <= 8 * 60 - gpu_check.GRACE


@pytest.fixture
def patient(monkeypatch):
    """A section may take as long as a loaded machine needs."""
    monkeypatch.setattr(section, "SECTIONS", {name: (*where, 6000) for name, (*where, _) in section.SECTIONS.items()})


def test_sections_run_in_processes_of_their_own(tmp_path, capsys, patient):
    output = tmp_path / "result.json"
    arguments = ["--device", "cpu", "--toy", "--only", "build", "model", "--json", str(output), "--seconds", "20000"]
    assert gpu_check.main(arguments) == 0
    found = json.loads(output.read_text())
    assert found["what"].startswith("toy") and list(found["sections"]) == ["build", "model"]
    assert found["sections"]["model"]["rows"][0]["model"] == "whole"
    assert "all sections are right" in capsys.readouterr().out


def test_a_crash_or_a_hang_is_that_section_s_only(tmp_path, monkeypatch, capsys):
    def run(command, timeout, **_):
        name, output = command[command.index("--section") + 1], Path(command[command.index("--json") + 1])
        if name == "decoding":
            raise subprocess.TimeoutExpired(command, timeout)
        if name == "prefill":  # killed in the middle
            section.write(output, "cut off", [{"n": 1}], None, time.monotonic())
            return subprocess.CompletedProcess(command, -9)
        section.write(output, "ok", [], None, time.monotonic())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    monkeypatch.setattr(section, "describe", lambda _: {})
    output = tmp_path / "result.json"
    assert gpu_check.main(["--device", "cpu", "--toy", "--json", str(output)]) == 1
    found = json.loads(output.read_text())["sections"]
    assert list(found) == list(section.SECTIONS)
    assert found["decoding"]["error"].startswith("it was stopped after")
    assert found["prefill"] | {"seconds": 0} == {"status": "failed", "rows": [{"n": 1}], "seconds": 0,
                                                 "error": "its process ended with code -9"}
    assert found["model"]["status"] == "ok"
    assert "failed: decoding, prefill;" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_and_exit_code_2():
    done = subprocess.run(["bash", str(ROOT / "scripts" / "gpu_check.sh")], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: there is no GPU that torch can use (torch ") and done.stderr.count("\n") == 1


def test_mistakes_on_the_command_line(tmp_path, capsys):
    assert gpu_check.main(["--only", "speed", "--device", "cpu", "--toy"]) == 2
    assert "--only speed: allowed are build, correctness" in capsys.readouterr().err
    assert gpu_check.main(["--device", "cpu"]) == 2
    assert "--device cpu: allowed are cuda and cuda:N" in capsys.readouterr().err
    done = subprocess.run(["bash", str(ROOT / "scripts" / "gpu_check.sh")], capture_output=True, text=True,
                          env={"PATH": "/usr/bin:/bin", "PYTHON": "no-such-python"})
    assert done.returncode == 2 and "no-such-python is not found" in done.stderr
    done = subprocess.run([sys.executable, "-S", str(ROOT / "tools" / "gpu_check.py")], capture_output=True, text=True)
    assert done.returncode == 2 and "torch is not installed" in done.stderr and done.stderr.count("\n") == 1


def test_a_section_s_rows_are_a_table(capsys):
    section.show("decoding", {"status": "ok", "seconds": 3.0, "error": None,
                             "rows": [{"linear": "qkv", "m=1 %": 91.234}, {"linear": "in", "m=1 %": 7.1}]})
    assert capsys.readouterr().out == (
        "\ndecoding: ok, 3 s\nlinear  m=1 %\n------  -----\nqkv      91.2\nin        7.1\n\n")


def test_the_product_s_answers_in_rehearsal(toy):
    rows = list(answers.answers(toy, None, None)) + list(answers.answers(toy, 4, 32))
    ways = ["greedy, a batch", "sampled, a batch", "beams, a batch", "greedy, one by one"]
    assert [row["case"] for row in rows] == [f"plain, {way}" for way in (*ways, "greedy, layers streamed")] + [
        f"INT4 groups of 32, {way}" for way in ways]
    assert all(row["right"] and row["same as on the processor"] == "3 of 3" for row in rows)


def test_recorded_steps_are_compared_with_those_of_the_host(toy, monkeypatch):
    rows = list(recorded.eager_and_recorded(toy))
    assert [row["case"] for row in rows] == ["plain, greedy", "plain, sampled", "plain, sampled among 20",
                                             "plain, beams", "vocabulary in INT8, greedy",
                                             "vocabulary in INT8, sampled among 20",
                                             "choosing a token, vocabulary in INT8", "2 rows, 100 tokens"]
    assert {"exact ms", "INT8 ms", "sure"} <= rows[-2].keys()
    assert all(row["right"] for row in rows)
    assert {"eager ms", "recorded ms", "eager host ms", "recorded host ms"} <= rows[-1].keys()

    class Negative:
        def has_failed(self, kind):
            return True

        def run(self, kind, key, work):
            return -work()

    monkeypatch.setattr(kernels, "graphs", lambda _: None if os.environ.get(kernels.CUDA_GRAPH) == "no" else Negative())
    assert not any(row["right"] for row in list(recorded.eager_and_recorded(toy))[:4])
    assert kernels.CUDA_GRAPH not in os.environ


def test_a_device_that_answers_otherwise_is_found(toy, monkeypatch):
    load, loaded = glm.load, []

    def disturbed(*arguments, **options):
        model, tokenizer = load(*arguments, **options)
        if loaded:  # not the first one, the processor's
            model.transformer.final_layernorm.weight.data.neg_()
        loaded.append(model)
        return model, tokenizer

    monkeypatch.setattr(glm, "load", disturbed)
    assert not any(row["right"] for row in answers.answers(toy, None, None))


def test_evaluation_is_compared_by_its_samples(toy, tmp_path):
    [row] = answers.evaluation(toy)
    assert row == {"case": "evaluation of quickstart-words-chinese", "files": 1, "right": True}
    for place in ("found", "wanted"):
        (tmp_path / place / "samples" / "task").mkdir(parents=True)
        file = tmp_path / place / "samples" / "task" / "test.jsonl"
        file.write_text(json.dumps({"ids": [1, 2], "loss": 2.5 if place == "found" else 2.501}) + "\n")
    assert [row["right"] for row in answers.compared(tmp_path / "found", tmp_path / "wanted")] == [True]
    for other in ({"ids": [1, 3], "loss": 2.501}, {"ids": [1, 2], "loss": 2.6}, {"ids": [1, 2]}):
        file.write_text(json.dumps(other) + "\n")
        assert [row["right"] for row in answers.compared(tmp_path / "found", tmp_path / "wanted")] == [False]


def test_a_bare_machine_says_what_it_left_out_and_is_right(tmp_path, capsys, monkeypatch, patient):
    """A Python that has torch but not SwissArmyTransformer."""
    (tmp_path / "sitecustomize.py").write_text(
        "from importlib.machinery import PathFinder\n"
        "find = PathFinder.find_spec\n"
        "PathFinder.find_spec = lambda name, *rest: None if name == 'sat' else find(name, *rest)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # of the sections' processes
    output = tmp_path / "result.json"
    code = gpu_check.main(["--device", "cpu", "--toy", "--only", "product", "model", "--seconds", "20000", "--json",
                           str(output)])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert shown.count("not checked: SwissArmyTransformer is not installed") == 1
    found = json.loads(output.read_text())["sections"]
    assert found["model"]["rows"][0]["model"] == "whole"


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["build", "correctness", "product", "glm"])
def test_on_the_gpu(name, tmp_path):
    assert section.run(name, "cuda:0", False, 200, tmp_path / "result.json"), (tmp_path / "result.json").read_text()
