"""How the compiled CPU backend comes about: chosen, built once, shared between processes, done without."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kernels
from kernels import cpu, reference
from kernels.cpu import build
from kernels.cpu.training import Training
from planning.machine import default_precision
from runtime import resources


@pytest.mark.usefixtures("two_threads")
def test_one_openmp_runtime_and_all_threads():
    try:
        ops = cpu.operators()
    except build.BuildError as error:
        pytest.skip(str(error))
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    # the copies inside sentencepiece's and scikit-learn's wheels are theirs alone
    ours = {path for path in mapped if ("libgomp" in path or "libiomp" in path) and ".libs/" not in path}
    assert len(set(map(os.path.realpath, ours))) <= 1
    if any("omp" in os.path.basename(path) for path in mapped):
        assert ops.library.glm_threads(torch.get_num_threads()) == torch.get_num_threads()


def test_the_backend_is_chosen_by_gradients_type_and_device():
    def chosen(**options):
        return kernels.backend(torch.zeros(8, 8, **options))

    with torch.no_grad():
        compiled = chosen()
        if compiled is reference:
            pytest.skip("no compiled backend here")
        assert chosen(dtype=torch.bfloat16) is compiled
        assert chosen(dtype=torch.float64) is reference
        assert chosen(device="meta") is reference
    assert isinstance(chosen(), Training)  # gradients are on
    assert chosen(dtype=torch.bfloat16) is chosen(device="meta") is reference


SAY_TWICE = """
import torch, kernels
with torch.no_grad():
    first, second = kernels.backend(torch.zeros(8, 8)), kernels.backend(torch.zeros(8, 8))
assert first is second is kernels.reference
"""


def run_python(code, **environment):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment})


@pytest.mark.parametrize("path, cause", [("", "no C++ compiler"), ("broken", "boom")])
def test_without_a_working_compiler_the_reference_is_used_and_said_once(tmp_path, path, cause):
    if path:  # a compiler that fails
        compiler = tmp_path / "c++"
        compiler.write_text("#!/bin/sh\necho 'error: boom' >&2\nexit 1\n")
        compiler.chmod(0o755)
    done = run_python(SAY_TWICE, PATH=str(tmp_path), CXX="", GLM_KERNEL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1 and cause in done.stderr


@pytest.mark.parametrize("refused, said", [
    ((), None), (("-fopenmp",), "for one thread"),
    (("-fopenmp", "-march=native"), "for one thread, without vector instructions")])
def test_what_the_compiler_cannot_do_is_left_out_and_said(refused, said, monkeypatch, capsys):
    def compiled(compiler, flags):
        for flag in refused:
            if flag in flags:
                raise build.BuildError(f"no {flag}")
        return "library"

    monkeypatch.setattr(build, "compiled", compiled)
    monkeypatch.setattr(build, "find_compiler", lambda: "c++")
    monkeypatch.setattr(build.ctypes, "CDLL", lambda path, **_: path)
    monkeypatch.delenv(build.ISA, raising=False)
    assert build.load() == "library"
    assert capsys.readouterr().err == (f"kernels: compiled {said}, which is slower: no -fopenmp\n" if said else "")


@pytest.mark.parametrize("chosen", ["avx512+bf16", "avx512", "avx2", "generic"])
def test_older_instructions_than_the_processor_s(chosen, monkeypatch):
    """That these flags give these instructions is seen in test_kernels.py."""
    tried = []

    def compiled(compiler, flags):
        tried.append(flags)
        raise build.BuildError("enough")

    monkeypatch.setattr(build, "compiled", compiled)
    monkeypatch.setattr(build, "find_compiler", lambda: "c++")
    monkeypatch.setenv(build.ISA, chosen)
    with pytest.raises(build.BuildError, match="enough"):
        build.load()
    assert tried[0] == ("-O2", *build.INSTRUCTIONS[chosen], "-fopenmp") and "-march=native" not in str(tried)
    has_products = chosen == "avx512+bf16" and "avx512_bf16" in resources.processor("flags").split()
    assert default_precision("cpu") == ("bf16" if has_products else "fp32")  # as on such a processor


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86 instruction sets")
@pytest.mark.parametrize("chosen", ["avx512+bf16", "avx512", "generic"])
def test_the_sources_can_be_read_for_instructions_that_only_slow_tests_run(chosen):
    try:
        compiler = build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    for source in build.SOURCES.glob("*.cpp"):
        build.execute([compiler, *build.INSTRUCTIONS[chosen], build.OPENMP, "-std=c++17", "-w", "-fsyntax-only",
                       str(source)])


def test_unknown_instructions_are_refused(monkeypatch):
    monkeypatch.setenv(build.ISA, "avx3")
    with pytest.raises(build.BuildError, match=r"=avx3: must be one of native, avx512\+bf16, avx512, avx2, generic"):
        build.load()


def build_in(folder, start, results):
    os.environ["GLM_KERNEL_CACHE"] = str(folder)
    start.wait()
    results.put(str(build.compiled(build.find_compiler(), ("-O0",))))


def test_processes_that_build_at_once_share_one_library(tmp_path_factory, tmp_path, monkeypatch):
    try:
        build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    sources = tmp_path_factory.mktemp("sources")
    (sources / "a.cpp").write_text("int a() { return 1; }\n")
    monkeypatch.setattr(build, "SOURCES", sources)
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    workers = [context.Process(target=build_in, args=(tmp_path, start, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    start.set()
    paths = {results.get(timeout=600) for _ in workers}
    for worker in workers:
        worker.join()
    assert len(paths) == 1 and sorted(p.name for p in tmp_path.iterdir()) == [os.path.basename(paths.pop())]


def test_a_changed_source_flag_or_compiler_is_built_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "compiler_version", lambda compiler: compiler)
    key = build.build_key("g++ 12", ("-O2",))
    assert key == build.build_key("g++ 12", ("-O2",))
    assert len({key, build.build_key("g++ 13", ("-O2",)), build.build_key("g++ 12", ("-O3",))}) == 3
    (tmp_path / "operators.cpp").write_text("")
    monkeypatch.setattr(build, "SOURCES", tmp_path)
    assert build.build_key("g++ 12", ("-O2",)) != key


def test_a_compiler_may_complain_in_any_encoding(tmp_path):
    script = tmp_path / "c++"
    script.write_bytes("#!/bin/sh\necho 'error: fichier non trouv\xe9' >&2; exit 1\n".encode("latin-1"))
    script.chmod(0o755)
    with pytest.raises(build.BuildError, match="failed: error: fichier non trouv"):
        build.execute([str(script)])
