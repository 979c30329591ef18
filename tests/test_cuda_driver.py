"""Loading and launching through CUDA's driver: the calls and their arguments, by a library that writes them down."""

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kernels import cuda, reference
from kernels.cache import BuildError
from kernels.cuda import build, driver, linear, norms
from kernels.cuda.attention import Workspace, decode_attention
from kernels.cuda.build import Program
from kernels.cuda.driver import Call
from kernels.layer import Rotary
from kernels.reference import Shared

STUB = Path(__file__).resolve().parent / "cuda_driver_stub.c"
ARGUMENTS = struct.Struct("7P9If")  # linear.h's
STREAM = 0x7F0012345678  # more than 32 bits, as pointers are


@pytest.fixture
def stub(tmp_path, monkeypatch):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    path = tmp_path / "libcuda.so.1"  # of its own for every test: it remembers
    subprocess.run(["gcc", "-shared", "-fPIC", "-fvisibility=hidden", str(STUB), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.stub_take(ARGUMENTS.size)
    library.stub_story.restype = ctypes.c_char_p
    library.stub_arguments.restype = ctypes.POINTER(ctypes.c_ubyte * 256)
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(driver, "make_context", lambda index: None)
    monkeypatch.setattr(build, "compiled", lambda architecture, program: " ".join(
        map(str, (architecture, program.source, program.bits, program.kind))).encode())
    return library


def fields_of(library, form):
    return form.unpack(bytes(library.stub_arguments().contents)[:form.size])


def story(library):
    return library.stub_story().decode().splitlines()


def test_a_kernel_is_loaded_once_and_launched_on_torch_s_stream(stub):
    device = driver.Device(stub, 1)
    assert (device.architecture, device.processors, device.has_tensor_cores) == (90, 132, True)
    ops = cuda.Operators(lambda _: device)
    x, weight = torch.randn(3, 256).half(), torch.ones(64, 128, dtype=torch.int8)
    scale, bias = torch.ones(64, 2).half(), torch.zeros(64).half()
    for _ in range(2):
        out = ops.weight_only_linear(x, weight, scale, bias, 4, 128)
    launch = f"launch 1 4 1, 32 1 1, 6656, {hex(STREAM)}"
    assert story(stub) == ["init", "retain", "load 90 linear.cu 4 0", "function skinny_1_STAGE", launch, launch]
    assert stub.stub_pushed() == 0
    fields = fields_of(stub, ARGUMENTS)
    x_, weight_, scale_, bias_, out_ = (tensor.data_ptr() for tensor in (x, weight, scale, bias, out))
    assert fields == (x_, weight_, scale_, bias_, 0, 0, out_, 3, 64, 256, 2, 128, 2**31 // 128 + 1, 0, 0, 1, 1.0)


def test_a_wide_kernel_asks_for_its_shared_memory_and_its_parts_are_added(stub):
    device = driver.Device(stub, 1)
    x, weight, scale = torch.randn(40, 4096).half(), torch.ones(64, 2048, dtype=torch.int8), torch.ones(64).half()
    with torch.no_grad():
        out = cuda.Operators(lambda _: device).weight_only_linear(x, weight, scale, None, 4)
    assert story(stub)[2:] == ["load 90 linear.cu 4 0", "function wide_8_ROW", "attribute 8 is 98304",
                               f"launch 16 1 1, 256 1 1, 98304, {hex(STREAM)}", "function add_parts",
                               f"launch 1 40 1, 256 1 1, 0, {hex(STREAM)}"]
    fields = fields_of(stub, ARGUMENTS)
    assert fields[:5] == (0, 0, scale.data_ptr(), 0, 0) and fields[5] != 0 and fields[6] == out.data_ptr()
    assert fields[7:] == (40, 64, 4096, 0, 4096, 2**31 // 4096 + 1, 0, 0, 16, 1.0)


def test_where_it_is_asked_for_kernels_may_begin_before_the_one_before_has_ended(stub, monkeypatch):
    """On devices that can: the attribute for it, in the structs of cuda.h."""
    monkeypatch.setenv("GLM_CUDA_OVERLAP", "yes")
    x, weight, scale = torch.randn(3, 256).half(), torch.ones(64, 128, dtype=torch.int8), torch.ones(64, 2).half()
    device = driver.Device(stub, 1)
    cuda.Operators(lambda _: device).weight_only_linear(x, weight, scale, None, 4, 128)
    assert story(stub)[-1] == f"launch 1 4 1, 32 1 1, 6656, {hex(STREAM)}, 1 attribute: 6 is 1"
    assert fields_of(stub, ARGUMENTS)[0] == x.data_ptr() and stub.stub_pushed() == 0
    monkeypatch.setattr(torch.cuda, "get_device_properties",
                        lambda index: SimpleNamespace(major=8, minor=9, multi_processor_count=132))
    assert not driver.Device(stub, 1).overlaps


def test_a_step_s_kernels_are_given_their_structs(stub):
    """Pointers, numbers and floats in the order of AttentionArguments and NormArguments."""
    device = driver.Device(stub, 1)
    qkv, angles, lengths = torch.zeros(2, 1, 8 * 64).half(), torch.zeros(2, 1, 32), torch.tensor([3, 4])
    whole = torch.zeros(2, 3, 2, 2, 50, 64).half()
    keys, values = whole[0, 1], whole[1, 1]
    workspace, attention = Workspace.allocate(device, qkv, 2, 4, 2, 64, 50), struct.Struct("12P10If")
    stub.stub_take(attention.size)
    out = decode_attention(device, qkv, keys, values, lengths, Rotary.PAIRS, False, angles, angles, lengths,
                           Shared(lengths, lengths), workspace)
    tensors = (qkv, angles, angles, lengths, lengths, lengths, lengths, keys, values, *workspace, out)
    pointers, fields = [tensor.data_ptr() for tensor in tensors], fields_of(stub, attention)
    assert list(fields[:-1]) == [*pointers, 4, 2, 64, 32, Rotary.PAIRS, 0, 50, 1, 2 * 50 * 64, 50 * 64]
    assert fields[-1] == pytest.approx(1.442695 / 8)
    assert story(stub)[-2:] == ["function attention_8_4", f"launch 1 4 1, 128 1 1, 0, {hex(STREAM)}"]
    x, weight, norm = torch.zeros(5, 64), torch.ones(64), struct.Struct("7PI2f")
    stub.stub_take(norm.size)
    added, total = torch.zeros(64), torch.zeros(5, 64)
    normed = norms.norm(device, x, weight, None, 0.25, x, 3.0, added, total)
    pointers = [tensor.data_ptr() for tensor in (x, x, added, weight)]
    assert fields_of(stub, norm) == (*pointers, 0, total.data_ptr(), normed.data_ptr(), 64, 3.0, 0.25)


def test_every_kernel_of_a_module_is_looked_up_by_name(stub):
    device = driver.Device(stub, 1)
    weight, scale = torch.ones(4, 64, dtype=torch.int8), torch.ones(4).half()
    for dtype in (torch.float16, torch.bfloat16, torch.bfloat16):
        linear.dequantize(device, weight, scale, dtype, 8, None)
    linear.read(device, torch.zeros(64))
    told = [line for line in story(stub)[2:] if not line.startswith("launch")]
    assert told == ["load 90 linear.cu 8 0", "function dequantize_eights", "load 90 linear.cu 8 1",
                    "function dequantize_eights", "function read_all"]


def test_code_that_does_not_load_is_done_without_and_said_once(stub, capsys):
    stub.stub_fail(209)
    device = driver.Device(stub, 1)
    ops = cuda.Operators(lambda _: device)
    x, weight, scale = torch.randn(1, 64).half(), torch.ones(8, 64, dtype=torch.int8), torch.ones(8).half()
    for _ in range(2):
        assert torch.equal(ops.weight_only_linear(x, weight, scale), reference.weight_only_linear(x, weight, scale))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "cuModuleLoadData failed: no kernel image is available (209)" in said
    assert stub.stub_pushed() == 0


def test_a_launch_that_fails_is_an_error(stub):
    device = driver.Device(stub, 1)
    program, call = Program("linear.cu", 0, 8), Call((None,) * 6, (), (None,), (0,) * 9, (0.0,))
    device.launch(program, "read_all", (1, 1), 32, call)
    device._functions[program, "read_all", False] = ctypes.c_void_p(1)
    with pytest.raises(RuntimeError, match=r"cuLaunchKernel failed: another error \(1\)"):
        device.launch(program, "read_all", (1, 1), 32, call)
    assert stub.stub_pushed() == 0


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA")
def test_a_torch_without_cuda_is_told_so():
    with pytest.raises(BuildError, match="this torch is not built for CUDA"):
        driver.device(0)


def test_the_backend_of_tensors_on_a_gpu():
    import kernels

    def on_gpu(dtype):
        return SimpleNamespace(dtype=dtype, device=torch.device("cuda:0"))

    with torch.no_grad():
        assert kernels.backend(on_gpu(torch.float16)) is cuda.operators()
        assert kernels.backend(on_gpu(torch.float64)) is reference
    assert kernels.backend(on_gpu(torch.float16)) is reference  # gradients are on


@pytest.mark.parametrize("has_gradients", [True, False])
def test_attention_on_a_gpu_is_not_cudnn_s_and_sums_are_float32(has_gradients, monkeypatch):
    """cuDNN builds a plan for each length."""
    import kernels

    switched, matmul = [], torch.backends.cuda.matmul
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", switched.append)
    before = matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction
    kernels.settle_cuda.cache_clear()
    with torch.set_grad_enabled(has_gradients):
        kernels.backend(torch.zeros(1))
        assert switched == []
        for _ in range(2):
            kernels.backend(SimpleNamespace(dtype=torch.float16, device=torch.device("cuda:0")))
    assert switched == [False]
    assert not (matmul.allow_fp16_reduced_precision_reduction or matmul.allow_bf16_reduced_precision_reduction)
    matmul.allow_fp16_reduced_precision_reduction, matmul.allow_bf16_reduced_precision_reduction = before
    kernels.settle_cuda.cache_clear()  # the stand-in was told, torch was not
