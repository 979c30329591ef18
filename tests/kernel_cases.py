"""What the tests of compiled kernels share: the instruction sets, random tensors, memory that is poisoned."""

import fcntl
import os
import zlib
from pathlib import Path

import pytest
import torch

from kernels import cpu, reference
from kernels.cpu import build
from kernels.layer import Activation, LayerForm, LayerWeights, Rotary

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMS = {
    "glm-130b": LayerForm(Activation.GEGLU, Rotary.HALVES, 2.6, 1e-5, is_pre_norm=False, is_by_heads=True),
    "glm": LayerForm(Activation.GELU, Rotary.NONE, 1.0, 1e-5, is_pre_norm=True, is_by_heads=False),
    "chatglm": LayerForm(Activation.GELU_TANH, Rotary.HALVES_2D, 7.5, 1e-5, is_pre_norm=False, is_by_heads=True),
    "chatglm2": LayerForm(Activation.SWIGLU, Rotary.PAIRS, 1.0, 1e-5, is_pre_norm=True, is_by_heads=False),
}  # by the family that has it; only chatglm2's layers have RMS norms, shared keys, and no bias but qkv's
# The instruction sets that one x86 processor can pretend to have; elsewhere only the compiler's default is tested.
# Each is half a minute of compiling; test_kernel_build.py has the compiler read the sources for those that are slow.
# "tiles" are AMX's, whose code runs on other processors with a header in the place of the instructions.
SLOW = ("avx512+bf16", "avx512", "generic")
EMULATOR = Path(__file__).with_name("tile_emulator.h")
EMULATED = ("-include", str(EMULATOR), f"-DEMULATOR={zlib.crc32(EMULATOR.read_bytes())}")  # changed: compiled anew
VARIANTS = ("native", "avx2", "tiles", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW))


@pytest.fixture(scope="module", params=VARIANTS)
def ops(request, tmp_path_factory):
    name = request.param
    try:
        if name == "native":
            return cpu.Operators(build.load())
        needed = {"avx2": "avx2", "avx512": "avx512bw", "generic": ""}.get(name, "avx512_bf16")
        if os.uname().machine != "x86_64" or needed not in build.processor_features():
            pytest.skip("instructions that this processor does not have")
        has_tiles = "amx_bf16" in build.processor_features()
        if (name == "tiles") if has_tiles else (name == cpu.operators().path):
            pytest.skip("the native ones")
        instructions = (*build.INSTRUCTIONS["avx512+bf16"], *EMULATED) if name == "tiles" else build.INSTRUCTIONS[name]
        with open(run_folder(tmp_path_factory) / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several processes want the same library: one of them compiles it
            found = cpu.Operators(build.load(("-O1", *instructions, "-DGLM_FAST_DOTS")))
    except (build.BuildError, OSError) as error:
        pytest.skip(f"no compiled backend here: {error}")
    assert found.path == name.replace("tiles", "avx512+bf16") and (found.prefill_products == 2) >= (name == "tiles")
    return found


def run_folder(tmp_path_factory) -> Path:
    """That all processes of this run of the tests share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


def random(*shape, dtype, seed=0, scale=1.0):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def poison(monkeypatch):
    """Fresh outputs are full of NaN, so that a place which is never written shows."""
    new_empty, empty_like = torch.Tensor.new_empty, torch.empty_like
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: new_empty(self, *a, **k).fill_(float("nan")))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))


def doubled(*tensors):
    return [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in tensors]


def random_packed(n, k, bits, group_size, scale_dtype=torch.float16, seed=1):
    """Every value of the integers, the lowest included, and scales that differ from group to group."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (n, k * bits // 8), dtype=torch.int8, generator=generator)
    shape = (n,) if group_size is None else (n, k // group_size)
    scale = (torch.rand(shape, generator=generator) + 0.1) / 2**bits
    return reference.PackedWeight(weight, scale.to(scale_dtype), bits, group_size)


def random_layers(dtype, count, n, d, inner, family="glm-130b", groups=None, formats=(None,) * 4):
    """The layers of a model, and its final norm. groups: heads of keys and values; formats: what each of the four
    matrices of every layer is: None, or (bits, group size)."""
    h, width = n * d, (n + 2 * (groups or n)) * d
    halves = 2 * inner if FORMS[family].activation.is_gated else inner
    shapes = {"norm1_weight": (h,), "norm1_bias": (h,), "qkv_weight": (width, h), "qkv_bias": (width,),
              "dense_weight": (h, h), "dense_bias": (h,), "norm2_weight": (h,), "norm2_bias": (h,),
              "in_weight": (halves, h), "in_bias": (halves,), "out_weight": (h, inner), "out_bias": (h,)}
    biases = {"qkv_bias"} if family == "chatglm2" else {name for name in shapes if name.endswith("bias")}
    layers = []
    for layer in range(count):
        parts, kinds = {}, iter(formats)
        for index, (name, shape) in enumerate(shapes.items()):
            seed, scale = 20 * layer + index, shape[-1] ** -0.5
            kind = next(kinds) if len(shape) == 2 else None
            if kind:
                packed = random_packed(*shape, *kind, seed=seed)
                parts[name] = packed._replace(scale=packed.scale * scale)
            elif name.endswith("weight") or name in biases:
                parts[name] = random(*shape, dtype=dtype, seed=seed, scale=scale)
            else:
                parts[name] = None
        layers.append(LayerWeights(**parts))
    return layers, (random(h, dtype=dtype), random(h, dtype=dtype, seed=1) if "norm1_bias" in biases else None)
