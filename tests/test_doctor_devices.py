"""The doctor on torch, driver, GPUs and kernels: facts of other machines, and what the probe really sees."""

import ctypes
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from doctor import devices, probe
from doctor.devices import Devices, Gpu, Wanted
from kernels import cuda
from kernels.cache import BuildError
from tests.cuda_emulator import Emulator, shared_folder

ROOT = Path(__file__).resolve().parent.parent
A100 = Gpu("NVIDIA A100-SXM4-40GB", 80, 42_000_000_000, 41_000_000_000)
V100 = Gpu("Tesla V100-SXM2-32GB", 70, 34_000_000_000, 33_000_000_000)
GOOD = Devices("2.13.0+cu130", "13.0", ("sm_75", "sm_80", "sm_90", "sm_120", "compute_120"), 13000, (A100,) * 8)
CPU = Devices("2.13.0+cpu")


EIGHT = Wanted(processes=8)


def found(facts=GOOD, nvidia=8, wanted=EIGHT, **changes):
    return [(one.code, one.level, str(one))
            for one in devices.check(dataclasses.replace(facts, **changes), nvidia, wanted, "here")]


def test_eight_gpus_and_a_machine_without_any_are_fine():
    assert found() == [] and found(CPU, 0) == []
    assert found(CPU, 8, Wanted("cpu")) != []  # said all the same: the GPUs are idle


def test_torch_for_cpus_on_a_machine_with_gpus():
    ((code, level, line),) = found(CPU)
    assert (code, level) == ("torch-without-cuda", "warning")
    assert "torch 2.13.0+cpu is not built for CUDA: the 8 NVIDIA GPUs here are not used" in line
    assert "-m pip install --index-url https://download.pytorch.org/whl/cu130 torch==2.13.0" in line
    assert found(CPU, 0, Wanted("cuda"))[0][:2] == ("torch-without-cuda", "error")


def test_a_driver_that_does_not_load():
    ((code, level, line),) = found(driver=None, gpus=())
    assert (code, level) == ("driver", "error") and "the driver (libcuda.so.1) does not load" in line


def test_a_driver_older_than_torchs_cuda():
    ((code, level, line),) = found(driver=12040, gpus=(), failure="the NVIDIA driver on your system is too old")
    assert (code, level) == ("driver-old", "error")
    assert "the driver serves CUDA 12.4, torch is built for 13.0" in line and "install a driver for CUDA 13" in line
    assert found(cuda="12.8", driver=12020) == []  # minor versions are compatible


def test_gpus_that_torch_does_not_see():
    ((code, level, line),) = found(gpus=(), failure="RuntimeError: No CUDA GPUs are available")
    assert (code, level) == ("gpu-hidden", "error")
    assert "torch sees no GPU (8 NVIDIA GPUs in this machine): RuntimeError: No CUDA GPUs are available" in line
    assert "unset CUDA_VISIBLE_DEVICES" in line
    assert found(gpus=(), nvidia=0) == []  # torch for CUDA on a machine without GPUs runs on its CPU
    assert found(gpus=(), nvidia=0, wanted=Wanted("cuda:0"))[0][0] == "gpu-hidden"


def test_a_gpu_that_torch_is_not_built_for():
    lines = found(gpus=(A100, V100), wanted=Wanted(processes=2))
    ((code, level, line),) = lines
    assert (code, level) == ("gpu-architecture", "error")
    assert "GPU 1 (Tesla V100-SXM2-32GB) has compute capability 7.0" in line and "sm_75, sm_80" in line
    assert "torch==2.13.0" in line


@pytest.mark.parametrize("built, capability, runs", [
    ("sm_80", 80, True), ("sm_80", 86, True), ("sm_86", 80, False), ("sm_80", 90, False), ("sm_90a", 90, True),
    ("compute_80", 120, True), ("compute_90", 80, False), ("sm_120", 121, True), ("nonsense", 80, False)])
def test_which_code_runs_on_which_device(built, capability, runs):
    assert devices.runs_on(built, capability) is runs


def test_fewer_gpus_than_processes():
    ((code, level, line),) = found(gpus=(A100,) * 4)
    assert (code, level) == ("gpu-count", "error")
    assert "8 processes of a run share this host, each with a GPU of its own, but torch sees 4" in line
    assert "export MP_SIZE=4" in line
    assert found(gpus=(A100,) * 4, wanted=Wanted("cpu", 8)) == []


# Imports and kernels, as the probe tells of them


def kernels(facts=GOOD, is_possible=True, **stages):
    stages = {name.replace("_", "-"): outcome for name, outcome in stages.items()}
    return [(one.code, one.level, str(one)) for one in devices.check_kernels(stages, facts, is_possible, "here")]


def test_kernels_that_do_not_build():
    fault = {"error": "BuildError: /usr/bin/c++ failed: fatal error: vector: No such file"}
    ((code, level, line),) = kernels(cpu_kernels=fault)
    assert (code, level) == ("cpu-kernels", "warning") and "vector: No such file" in line
    assert kernels(cpu_kernels=fault, is_possible=False) == []  # no compiler, or no place: said already
    assert kernels(cpu_kernels={"instructions": "avx2"}, cuda_kernels={"tried": 8}) == []


def test_kernels_that_others_could_have_put_there():
    """It is the cache that wants mending, not the compiler."""
    fault = {"error": "BuildError: the cache of compiled kernels /c can be written to by others (mode 777): code there "
                      "may be anybody's; mend it (chmod go-w), or set GLM_KERNEL_CACHE to a folder of your own"}
    ((code, level, line),) = kernels(cpu_kernels=fault)
    assert (code, level) == ("kernel-cache", "warning")
    assert "/c can be written to by others (mode 777)" in line and "chmod go-w" in line and "apt" not in line


def test_kernels_of_the_gpu():
    fault = {"error": "NVRTC (libnvrtc.so) is not found; torch's CUDA packages bring it: pip install nvidia-cuda-nvrtc"}
    ((code, level, line),) = kernels(cuda_kernels=fault)
    assert (code, level) == ("nvrtc", "warning")
    assert line.endswith("-m pip install nvidia-cuda-nvrtc [nvrtc]")
    older = dataclasses.replace(GOOD, cuda="12.8")
    assert "nvidia-cuda-nvrtc-cu12" in kernels(older, cuda_kernels=fault)[0][2]
    ((code, level, line),) = kernels(cuda_kernels={"error": "compute capability 7.0 is needed; this device has 6.1"})
    assert (code, level) == ("cuda-kernels", "warning") and "this device has 6.1" in line
    assert kernels(CPU, cuda_kernels=fault) == []


def test_what_does_not_import():
    stages = {"torch": {"error": "ImportError: libcudart.so.13"}, "sat": {"error": "ImportError: apex"},
              "sentencepiece": {"error": "TypeError: Descriptors cannot be created directly."}}
    lines = [(one.code, one.what) for one in devices.check_imports(stages, True, "here")]
    assert lines == [("torch-import", "torch does not import: ImportError: libcudart.so.13"),
                     ("sat-import", "SwissArmyTransformer does not import: ImportError: apex"),
                     ("tokenizer-import", "sentencepiece with this protobuf does not import: TypeError: Descriptors "
                                          "cannot be created directly.")]
    missing = {"torch": {"error": "ModuleNotFoundError: No module named 'torch'", "kind": "ModuleNotFoundError"}}
    assert not list(devices.check_imports(missing, False, "here"))  # that it is missing is said already
    assert list(devices.check_imports(missing, True, "here"))


# The probe: a process that may crash


CHILD = """
echo '{"stage": "torch", "begins": true}'
echo '{"stage": "torch", "torch": "2.13.0"}'
echo 'chatter of a library'
echo '{"stage": "sat", "begins": true}'
"""


@pytest.mark.parametrize("rest, seconds, how", [
    ("kill -SEGV $$", 600, "was ended by SIGSEGV"), ("exec sleep 6000", 2, "did not come back within 2 s"),
    ("echo 'no memory' >&2; exit 1", 600, "ended with exit code 1: no memory")])
def test_the_stage_in_which_a_process_ends_is_known(rest, seconds, how):
    stages = probe.ask([], seconds, command=["bash", "-c", CHILD + rest])
    assert stages == {"torch": {"torch": "2.13.0"}, "sat": {"ended": how}}
    (one,) = devices.check_imports(stages, True, "here")
    assert (one.code, one.what) == ("probe", f"a process that tried sat {how}")


def test_a_stage_that_raises_does_not_stop_the_others():
    lines = []

    def broken():
        raise BuildError("no compiler\nmore")

    probe.run({"one": broken, "two": lambda: {"value": 2}}, lines.append)
    expected = {"one": {"error": "BuildError: no compiler", "kind": "BuildError"}, "two": {"value": 2}}
    assert probe.outcomes("\n".join(lines), 0, "") == expected


def test_a_package_that_breaks_sat_is_really_seen(tmp_path):
    """SAT imports apex where there is one, and is ready only for none at all."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").write_text("raise ImportError('no pyramid.session')")
    (tmp_path / "google").mkdir()
    (tmp_path / "sentencepiece").mkdir()
    (tmp_path / "sentencepiece" / "__init__.py").write_text("raise TypeError('Descriptors cannot be created')")
    program = ("from doctor import probe; import sys\n"
               "stages = {'sat': probe.import_sat, 'sentencepiece': probe.import_sentencepiece}\n"
               "probe.run(stages, lambda line: sys.stdout.write(line + '\\n'))")
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    stages = probe.outcomes(done.stdout, 0, "")
    assert "no pyramid.session" in stages["sat"]["error"], done.stderr
    assert "Descriptors cannot be created" in stages["sentencepiece"]["error"]


def test_kernels_are_really_tried(tmp_path, monkeypatch):
    """On a PATH without a compiler, and with one that fails."""
    from kernels import cpu

    monkeypatch.setenv("GLM_KERNEL_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    cpu.operators.cache_clear()
    cpu.build.compiler_version.cache_clear()
    try:
        with pytest.raises(BuildError, match="no C\\+\\+ compiler found"):
            probe.try_cpu_kernels()
        (tmp_path / "c++").write_text("#!/bin/sh\necho 'error: nothing works' >&2; exit 1\n")
        (tmp_path / "c++").chmod(0o755)
        with pytest.raises(BuildError, match="nothing works"):
            probe.try_cpu_kernels()
    finally:
        cpu.operators.cache_clear()


class Missing:
    """Stands for kernels.cuda's device: there is none."""

    def __call__(self, device):
        raise BuildError("NVRTC (libnvrtc.so) is not found; torch's CUDA packages bring it")


def test_the_gpu_s_kernels_are_really_tried_on_the_emulator(tmp_path_factory, capsys):
    emulator = Emulator(shared_folder(tmp_path_factory))
    probe.multiply(cuda.Operators(lambda _: emulator), "cpu")
    assert emulator.launched
    with pytest.raises(ArithmeticError, match="cpu computes wrong products"):
        probe.multiply(Wrong(), "cpu")
    with pytest.raises(BuildError, match="is not found"):
        probe.multiply(cuda.Operators(Missing()), "cpu")
    capsys.readouterr()


class Wrong(cuda.Operators):
    def weight_only_linear(self, x, *others):
        return super().weight_only_linear(x.float(), *others) + 1


def test_what_the_probe_sees_here_can_be_judged():
    facts = probe.devices_of({**probe.look_at_torch(), "more": 1})
    assert facts.torch and facts.precision in ("bf16", "fp16", "fp32")
    assert (facts.cuda is None) == (not facts.architectures)


def test_the_driver_s_version(monkeypatch):
    class Driver:
        @staticmethod
        def cuDriverGetVersion(pointer):
            pointer._obj.value = 12040
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver)
    assert probe.driver_version() == 12040 and devices.cuda_version(12040) == "12.4"
    monkeypatch.undo()
    assert probe.driver_version("libno-such-library.so") is None



def test_the_doctor_tells_of_one_that_torch_cannot_use():
    facts = Devices(**probe.look_at_torch("xpu"))
    assert facts.unusable and not Devices(**probe.look_at_torch("cpu")).unusable
    finding, = devices.check_reach(facts, 0, Wanted("xpu"), "here")
    assert (finding.code, finding.level) == ("device", "error")
    assert "--device xpu cannot be used by torch" in str(finding)
