"""Compiling the CUDA sources by nvcc and by NVRTC where they are; finding NVRTC; what is kept; doing without it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import cuda, reference
from kernels.cache import BuildError
from kernels.cuda import build, choice, linear, nvrtc
from kernels.cuda.build import Program


def packed(bits, kind):
    return Program(linear.SOURCE, kind, bits)


@pytest.fixture
def compiler():
    try:
        return nvrtc.find()
    except BuildError as error:
        pytest.skip(str(error))


def told_by_nvcc(folder: Path, program: Program, architecture: int) -> str:
    """What it says of each kernel. Skips the test without it."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    command = ["nvcc", "-cubin", *program.options(f"sm_{architecture}"), "-Xptxas", "-v",
               str(build.SOURCES / program.source), "-o", str(folder / "kernels.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.parametrize("architecture, bits, kind", [(75, 4, 1), (80, 8, 1), (90, 4, 0)])
def test_nvcc_compiles_the_sources_without_spilling_registers(tmp_path, architecture, bits, kind):
    told = told_by_nvcc(tmp_path, packed(bits, kind), architecture)
    names = set(re.findall(r"Compiling entry function '(\w+)'", told))
    assert names >= {"dequantize_eights", "dequantize_any", "simple_1", "simple_2", "simple_4", "read_all", "add_parts"}
    of_tensor_cores = [name for name in names if name.startswith(("skinny", "wide"))]
    assert len(of_tensor_cores) == (9 + 6 if architecture >= 80 else 0)
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", told)
    assert len(spills) == len(names) and set(spills) == {("0", "0", "0")}
    assert max(map(int, re.findall(r"Used (\d+) registers", told))) <= 65536 // (32 * choice.WARPS)


@pytest.mark.parametrize("architecture, kind", [(90, 0), pytest.param(75, 1, marks=pytest.mark.slow),
                                                pytest.param(120, 2, marks=pytest.mark.slow)])
def test_nvcc_compiles_what_lies_between_products_without_spilling(tmp_path, architecture, kind):
    told = told_by_nvcc(tmp_path, Program("step.cu", kind), architecture)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", told)
    assert len(spills) == 12 and set(spills) == {("0", "0")}


def test_nvrtc_compiles_the_sources_for_every_architecture(compiler):
    """The first and the last that are known of each generation; the code of all kinds is tested on one."""
    known = [architecture for architecture in compiler.architectures if architecture >= build.OLDEST]
    generations = [[a for a in known if a // 10 == generation] for generation in {a // 10 for a in known}]
    chosen = sorted({end for generation in generations for end in (min(generation), max(generation))})
    for architecture in chosen:
        code = build.compiled(architecture, packed(4, 0))
        assert code[:4] == b"\x7fELF" and b"dequantize_eights" in code
        assert (b"wide_8_GROUPS" in code) == (architecture >= 80)
    for bits, kind in ((8, 0), (8, 1), (4, 1)):
        assert b"skinny_1_ROW" in build.compiled(chosen[-1], packed(bits, kind))


def test_a_younger_device_gets_ptx(compiler):
    code = build.compiled(compiler.architectures[-1] + 10, packed(8, 0))
    assert b".entry skinny_1_ROW" in code and code[-1:] == b"\0"


def test_an_error_in_the_source_is_one_line(compiler):
    with pytest.raises(BuildError, match=r"^NVRTC failed: bad.cu\(2\): error: [^\n]+$"):
        compiler.compile("bad.cu", "// a comment\nnonsense;\n", {}, (), "PTX")


class Fake(nvrtc.Compiler):
    """A compiler of no library."""

    def __init__(self, architectures):
        self.path, self.version, self.architectures, self.compiled = "libnvrtc.so.99", "99.0", architectures, []

    def compile(self, name, source, headers, options, kind):
        self.compiled.append((options, kind))
        return " ".join(options).encode()


def test_what_is_compiled_for_which_device():
    fake = Fake([75, 80, 86, 90, 100, 120])
    assert fake.target(86) == ("sm_86", "CUBIN")
    assert fake.target(89) == ("sm_86", "CUBIN")  # of the same generation, older
    assert fake.target(130) == ("compute_120", "PTX")
    with pytest.raises(BuildError, match=r"99.0 compiles for compute capability 7.5 and later; this device has 7.0"):
        fake.target(70)


def test_compiled_once_and_kept_by_all_that_decides_its_content(tmp_path, monkeypatch):
    fake = Fake([80, 90])
    monkeypatch.setattr(nvrtc, "find", lambda: fake)
    monkeypatch.setenv("GLM_KERNEL_CACHE", str(tmp_path))
    first = build.compiled(90, packed(4, 0))
    assert build.compiled(90, packed(4, 0)) == first and len(fake.compiled) == 1
    assert fake.compiled[0] == (("--gpu-architecture=sm_90", "--std=c++17", "-DGLM_BITS=4", "-DGLM_KIND=0"), "CUBIN")
    build.compiled(90, packed(4, 1))
    build.compiled(80, packed(4, 0))
    fake.version = "99.1"
    build.compiled(90, packed(4, 0))
    assert len(fake.compiled) == len(list(tmp_path.iterdir())) == 4
    assert all(re.fullmatch(r"cuda-sm_[89]0-[0-9a-f]{20}\.cubin", path.name) for path in tmp_path.iterdir())
    with pytest.raises(BuildError, match=r"compute capability 7.0 is needed; this device has 6.1"):
        build.compiled(61, packed(4, 0))


def test_without_a_place_to_keep_it_it_works_and_says_so(tmp_path, monkeypatch, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(nvrtc, "find", lambda: Fake([90]))
    monkeypatch.setenv("GLM_KERNEL_CACHE", str(blocked / "cache"))
    assert build.compiled(90, packed(8, 0))
    assert "cannot keep what was compiled" in capsys.readouterr().err


def test_nvrtc_is_looked_for_where_torch_brings_it(tmp_path, monkeypatch):
    monkeypatch.setattr(nvrtc, "PROCESS_MAPS", tmp_path / "maps")
    (tmp_path / "maps").write_text("7f00-7f01 r--p 00000000 00:01 7   /lib/libc.so.6\n"
                                   "7f02-7f03 r-xp 00000000 00:01 8   /opt/a b/libnvrtc.so.12\n"
                                   "7f04-7f05 r-xp 00000000 00:01 9   /opt/a b/libnvrtc-builtins.so.12.9\n")
    site = tmp_path / "site"
    for name in ("nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9",
                 "nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cu13/lib/libnvrtc.alt.so.13",
                 "torch/lib/libnvrtc-672ee683.so.11.2"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text("")
    monkeypatch.setattr(sys, "path", [str(site)])
    found = list(nvrtc.candidates())
    assert found[0] == "/opt/a b/libnvrtc.so.12"
    assert [Path(path).relative_to(site).as_posix() for path in found[1:4]] == [
        "nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "torch/lib/libnvrtc-672ee683.so.11.2"]
    assert not any("builtins" in path or ".alt." in path for path in found)
    monkeypatch.setattr(torch.version, "cuda", "12.9")  # its driver may not take what a later compiler makes
    assert "libnvrtc.so.12" in list(nvrtc.candidates())[1] and "libnvrtc.so.13" in list(nvrtc.candidates())[2]


def test_without_nvrtc_the_reference_is_used_and_said_once(monkeypatch, capsys):
    class Device:
        has_tensor_cores, processors = True, 4

        def launch(self, *_):
            raise BuildError("NVRTC (libnvrtc.so) is not found; torch's CUDA packages bring it")

    ops = cuda.Operators(lambda _: Device())
    x, scale = torch.randn(2, 64).half(), torch.ones(8).half()
    weight = torch.ones(8, 64, dtype=torch.int8)
    for _ in range(3):
        assert torch.equal(ops.weight_only_linear(x, weight, scale), reference.weight_only_linear(x, weight, scale))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "NVRTC (libnvrtc.so) is not found" in said
    assert ops.failure


def test_importing_the_backend_loads_nothing():
    code = "import sys; from kernels import cuda; assert cuda.operators(); assert 'triton' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(build.SOURCES.parent.parent)})
    assert done.returncode == 0 and done.stderr == ""


def test_the_backend_has_all_functions_of_the_reference():
    public = {name for name, value in vars(reference).items()
              if callable(value) and getattr(value, "__module__", None) == "kernels.reference" and name[0].islower()}
    assert public - {"check_packed", "wanted"} <= set(dir(cuda.operators()))
