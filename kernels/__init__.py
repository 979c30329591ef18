"""The model's inner operations, one set of names in three backends: plain torch, compiled code for CPUs, and CUDA.

    ops = kernels.backend(weight)     # once per forward pass
    ops.linear(...); ops.head(...); ops.layer_norm(...); ops.residual_layer_norm(...); ops.scaled_add(...)
    ops.geglu(...); ops.gelu(...); ops.swiglu(...); ops.rms_norm(...); ops.attend(...); ops.attend_groups(...)
    ops.log_sums(...)

Importing this package does not import torch: what the operations keep to is known to those who plan a run, too.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import TYPE_CHECKING

from runtime.errors import UserError

if TYPE_CHECKING:
    import torch

ISA = "GLM_CPU_ISA"  # environment variable: the instructions to compile for, if not this processor's
CUDA_GRAPH = "GLM_CUDA_GRAPH"  # environment variable: "no" leaves decoding on a GPU to the host, kernel by kernel
CUDA_KERNELS = "GLM_CUDA_KERNELS"  # environment variable: "no" leaves all work on a GPU to torch's operators
CUDA_OVERLAP = "GLM_CUDA_OVERLAP"  # environment variable: "yes" lets a kernel begin before the one before it has ended
CPU_ALL_REDUCE = "GLM_CPU_ALL_REDUCE"  # environment variable: "gloo" leaves sums over a host's ranks to torch's library
CUDA_ALL_REDUCE = "GLM_CUDA_ALL_REDUCE"  # environment variable: "one-shot" lets GPUs add up small tensors themselves
UNPACKED_ROWS = 320  # of x on a GPU; with more a packed weight is expanded for torch's product (cuda/choice.py)
SIMPLE_ROWS = 16  # the same before compute capability 8.0
PANEL_BYTES = 32 << 20  # of x, which products of many rows on a CPU put in order (products.cpp); 512 rows at least
FEW_ROWS = 48  # of x; a product of fewer sums in another order, so that a row's result depends on how many there are
HEAD_BYTES = 64 << 20  # of float32 logits that are computed at a time where many places are scored
CHOICE_ROWS = 8  # of x; for more the head's product with 16-bit rows is as fast as with INT8 ones (vocabulary.py)
SPARE = 256  # rows of the head that become exact beside as many as are asked for, where nobody looks (vocabulary.py)
KEPT_BYTES = 32 << 20  # of host memory: the C library keeps what is smaller when it is freed, and it serves again
CACHE_LINE = 64  # bytes; the products like tensors that begin at multiples of it, where torch.save puts them


def backend(weight: torch.Tensor):
    """The operations for weights like `weight`: those of its device where no gradients are recorded; with gradients
    those of training in float32 on a CPU, else plain torch.

    All have the signatures of kernels.reference.
    """
    torch, reference = _torch_and_reference()
    kind = weight.device.type
    if kind == "cuda":
        settle_cuda()
    if torch.is_grad_enabled():
        return trained() if kind == "cpu" and weight.dtype is torch.float32 else reference
    if weight.dtype not in reference.FLOATS:
        return reference
    return (BACKENDS[kind]() if kind in BACKENDS else none_for(kind)) or reference


@functools.cache
def _torch_and_reference():
    """Found once: the import statements would take microseconds in every decoding step."""
    import torch

    from kernels import reference

    return torch, reference


def weight_only_linear(x, weight, scale, bias=None, bits=8, group_size=None) -> torch.Tensor:
    """x (..., k) times a packed INT8 or INT4 weight (n, k) transposed, plus bias: kernels.reference.weight_only_linear
    defines it. Backend by the device and dtype of x."""
    return backend(x).weight_only_linear(x, weight, scale, bias, bits, group_size)


def scored_bytes(kind: str) -> int:
    """Of float32 logits that are computed at a time on a device of this type where continuations are scored."""
    return HEAD_BYTES if kind == "cuda" else KEPT_BYTES * 3 // 4


@functools.cache
def compiled():
    """The compiled CPU backend, or None where it cannot be built; why is said once on stderr."""
    from kernels import cpu

    try:
        return cpu.operators()
    except cpu.build.BuildError as error:
        print(f"kernels: torch's own operators are used, which are slower: {error}", file=sys.stderr)
        return None


@functools.cache
def trained():
    """What training takes in float32 on a CPU: plain torch where nothing can be compiled."""
    from kernels import reference

    if (operators := compiled()) is None:
        return reference
    from kernels.cpu.training import Training

    return Training(operators)


@functools.cache
def settle_cuda() -> None:
    """Before a process's first pass on a GPU, with gradients or without."""
    import torch

    settle(torch.backends.cuda)


def settle(settings) -> None:
    """Leave attention to torch's other kernels, and sum 16-bit products in float32. settings: torch.backends.cuda.

    cuDNN, which torch (2.11 on) prefers on Hopper, builds a plan of 40 to 50 ms for each new shape, and a decoding step
    has a new one: one more place (https://github.com/pytorch/pytorch/pull/191576). cuBLAS may cut a sum into parts,
    which torch lets it add in 16 bits; 32,768 columns with outliers are too much for float16.
    """
    settings.enable_cudnn_sdp(False)
    settings.matmul.allow_fp16_reduced_precision_reduction = False
    settings.matmul.allow_bf16_reduced_precision_reduction = False


def _for_cuda():
    import torch

    if torch.version.hip is not None:  # AMD's GPUs have this name, too
        return none_for("ROCm")
    from kernels import cuda

    return cuda.operators()


@functools.cache
def none_for(kind: str) -> None:
    """Of devices that nothing is compiled for: said once on stderr."""
    if kind != "meta":
        print(f"kernels: there are none for {kind}; torch's own operators are used", file=sys.stderr)


# By the type of a device: a function that gives its operations, or None where they are not to be had.
BACKENDS = {"cpu": compiled, "cuda": _for_cuda}


def stack(layers, final_norm, keys, values, form, before=None, total=None, small=None):
    """One call for all layers of a decoding step, on a CPU of a pass over many tokens, too (layer.stack;
    cpu.stack.Stack), or None where the compiled backend cannot take these tensors. layers: list of layer.LayerWeights;
    keys, values: the cache, layer by layer; form: layer.LayerForm; before: see cpu.stack.Stack; on a GPU layers that
    come and go are walked. total, small: how tensor-parallel ranks add up, if there are several (cuda.reduce.Ranks);
    on a CPU they walk where they have no memory in common (small: cpu.ranks.Sums).
    """
    if keys[0].device.type == "cuda":
        if before is not None or (operators := BACKENDS["cuda"]()) is None:
            return None
        from kernels.cuda.reduce import Ranks
        from kernels.cuda.stack import Stack as CudaStack

        ranks = None if total is None else Ranks(total, small)
        return CudaStack(operators, layers, final_norm, keys, values, form, ranks)

    from kernels.cpu.stack import Stack, fits

    if (total is not None and small is None) or keys[0].device.type != "cpu" or not compiled() or not fits(
            layers, final_norm, keys, values, form):
        return None
    return Stack(compiled(), layers, final_norm, keys, values, form, before, small)


def expanding(operations, device: torch.device):
    """These operations, for a pass over weights that are all on this device and stay as they are: packed ones may then
    be expanded ahead of their products (cuda.expansion)."""
    is_ours = device.type == "cuda" and hasattr(operations, "expanding")
    return operations.expanding(device) if is_ours else operations


def graphs(device: torch.device):
    """What records decoding steps on this device (cuda.graph.Graphs), for tensors that stay where they are; None where
    nothing does, or where it is not wanted. Tensor-parallel ranks record what all of them can."""
    if device.type != "cuda" or os.environ.get(CUDA_GRAPH) == "no" or BACKENDS["cuda"]() is None:
        return None
    from kernels.cuda.graph import Graphs, Recorder
    from runtime import parallel

    return Graphs(Recorder(device), parallel.exchange)


def small_sums(device: torch.device, rank: int, ranks: int, exchange, patience: float = 1800.0):
    """What adds up tensors of this device over ranks that see each other's memory: cpu.ranks.Sums, or on GPUs, where it
    is asked for, cuda.reduce.Sums, small ones in one launch; None where nothing does, or where one rank does not want
    it. All ranks call it. exchange: gives every rank's object to all ranks, in their order. patience: seconds that a
    CPU's rank waits for another one."""
    if ranks == 1:
        return None
    if device.type == "cpu":
        from kernels.cpu import ranks as of_ranks

        return of_ranks.join(None if check_wish() else compiled() or None, rank, ranks, exchange, patience)
    if device.type != "cuda" or not all(exchange(os.environ.get(CUDA_ALL_REDUCE) == "one-shot")):
        return None
    from kernels.cuda import driver, reduce

    return reduce.join(driver.find(device), device, rank, ranks, exchange)


def check_wish() -> str | None:
    """How a CPU's ranks are to add up. Raises UserError for what there is not."""
    wish = os.environ.get(CPU_ALL_REDUCE) or None
    if wish not in (None, "gloo"):
        raise UserError(f"{CPU_ALL_REDUCE}={wish}: must be gloo, or not be set")
    return wish


def is_recording() -> bool:
    """Whether the operations that are called now are recorded: then nothing may wait for the device."""
    import torch

    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
