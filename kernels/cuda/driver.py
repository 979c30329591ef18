"""Loading and starting compiled kernels through CUDA's driver interface (libcuda, which comes with the GPU's driver).

Nothing here waits for the device or allocates on it, so that launches can be recorded in CUDA graphs; the first launch
of a kind compiles and loads, and must come before the recording, as with the libraries that torch calls.
"""

import ctypes
import os
import struct
from collections.abc import Callable
from ctypes import byref, c_char, c_char_p, c_int, c_uint, c_void_p
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from kernels import CUDA_OVERLAP
from kernels.cache import BuildError
from kernels.cuda import build
from kernels.cuda.build import Program

ALIGNMENT = 16  # bytes; what one load takes
DEPENDENT_LAUNCH = 90  # compute capability from which kernels wait for those before them where they need to
PROGRAMMATIC_STREAM_SERIALIZATION = 6  # of cuda.h's CUlaunchAttributeID
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # of cuda.h's CUfunction_attribute
GRANTED_SHARED, LARGEST_SHARED = 48 << 10, 96 << 10  # bytes of a block: without asking; at most, on all from sm_80 on
TENSOR_CORES = 80  # compute capability from which the kernels for tensor cores are compiled


class Call(NamedTuple):
    """What a kernel is called with: the fields of a kernel's struct of arguments, in its order. None is a null pointer.

    Which tensors are read and which are written says nothing to a GPU; the tests hold the kernels to it.
    """

    reads: tuple[Tensor | None, ...]  # nobody writes to them before the kernel's end
    changes: tuple[Tensor | None, ...]  # are read and written
    writes: tuple[Tensor | None, ...]  # are written once, in every place
    integers: tuple[int, ...]  # of 32 bits, without a sign
    floats: tuple[float, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.reads + self.changes + self.writes

    def packed(self) -> bytes:
        """As C lays it out: pointers, whole numbers, floats, and room to the next multiple of 8 bytes."""
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in self.tensors]
        form = f"{len(pointers)}P{len(self.integers)}I{len(self.floats)}f0P"
        return struct.pack(form, *pointers, *self.integers, *self.floats)


def aligned(x: Tensor) -> Tensor:
    """The same values, contiguous, from a multiple of ALIGNMENT bytes on."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % ALIGNMENT else x


def spanned(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last one."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


class LaunchAttribute(ctypes.Structure):
    """cuda.h's CUlaunchAttribute: a union of 64 bytes, of which an int is used here."""

    _fields_ = (("id", c_int), ("padding", c_char * 4), ("value", c_int), ("rest", c_char * 60))


class LaunchConfig(ctypes.Structure):
    """cuda.h's CUlaunchConfig."""

    _fields_ = (("grid", c_uint * 3), ("block", c_uint * 3), ("shared_bytes", c_uint), ("stream", c_void_p),
                ("attributes", ctypes.POINTER(LaunchAttribute)), ("attribute_count", c_uint))


class Device:
    """One GPU: torch's context on it, and the kernels loaded there."""

    def __init__(self, library: ctypes.CDLL, index: int):
        properties = torch.cuda.get_device_properties(index)
        self.index, self.library = index, library
        self.architecture = 10 * properties.major + properties.minor
        self.processors = properties.multi_processor_count
        self.has_tensor_cores = self.architecture >= TENSOR_CORES
        self.overlaps = os.environ.get(CUDA_OVERLAP) == "yes" and self.architecture >= DEPENDENT_LAUNCH
        self._functions: dict[tuple[Program, str, bool], c_void_p] = {}
        self._modules: dict[Program, c_void_p] = {}
        self._context, device = c_void_p(), c_int()
        make_context(index)
        self.call("cuInit", 0)
        self.call("cuDeviceGet", byref(device), index)
        self.call("cuDevicePrimaryCtxRetain", byref(self._context), device)

    def call(self, name: str, *arguments) -> None:
        status = getattr(self.library, name)(*arguments)
        if status != 0:
            text = c_char_p()
            self.library.cuGetErrorString(status, byref(text))
            raise RuntimeError(f"{name} failed: {(text.value or b'unknown error').decode()} ({status})")

    def launch(self, program: Program, name: str, grid: tuple[int, int], threads: int, call: Call,
               shared_bytes: int = 0) -> None:
        """Start a kernel on torch's current stream. shared_bytes: of a block, beside what the kernel declares. Raises
        BuildError where it cannot be made."""
        self.call("cuCtxPushCurrent_v2", self._context)
        try:
            is_large = shared_bytes > GRANTED_SHARED
            function = self._functions.get((program, name, is_large)) or self._load(program, name, is_large)
            stream = torch.cuda.current_stream(self.index).cuda_stream
            arguments = call.packed()
            parameters = (c_void_p * 1)(ctypes.cast(arguments, c_void_p))  # copied by the call
            if self.overlaps:
                attribute = LaunchAttribute(id=PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
                config = LaunchConfig((*grid, 1), (threads, 1, 1), shared_bytes, stream, ctypes.pointer(attribute), 1)
                self.call("cuLaunchKernelEx", byref(config), function, parameters, None)
            else:
                self.call("cuLaunchKernel", function, *map(c_uint, (*grid, 1, threads, 1, 1, shared_bytes)),
                          c_void_p(stream), parameters, None)
        finally:
            self.library.cuCtxPopCurrent_v2(byref(c_void_p()))

    def _load(self, program: Program, name: str, is_large: bool) -> c_void_p:
        function = c_void_p()
        try:
            if program not in self._modules:
                module = c_void_p()
                self.call("cuModuleLoadData", byref(module), build.compiled(self.architecture, program))
                self._modules[program] = module
            self.call("cuModuleGetFunction", byref(function), self._modules[program], name.encode())
            if is_large:
                self.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED_SIZE_BYTES, LARGEST_SHARED)
        except RuntimeError as error:
            raise error if isinstance(error, BuildError) else BuildError(str(error)) from error
        self._functions[program, name, is_large] = function
        return function


def make_context(index: int) -> None:
    """Lets torch make its context on the device, which is then the one that is used here."""
    torch.empty(1, device=f"cuda:{index}")


@cache
def library() -> ctypes.CDLL:
    if torch.version.cuda is None:
        raise BuildError("this torch is not built for CUDA")
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BuildError(f"CUDA's driver does not load: {error}") from error


@cache
def device(index: int) -> Device:
    """Of torch's number `index`. Raises BuildError with one line where there is no driver."""
    return Device(library(), index)


Finder = Callable[[torch.device], Device]  # the tests' emulator puts its own in the place of find


def find(of: torch.device) -> Device:
    return device(torch.cuda.current_device() if of.index is None else of.index)
