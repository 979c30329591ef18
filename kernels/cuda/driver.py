"""Loading and starting compiled kernels through CUDA's driver interface (libcuda, which comes with the GPU's driver).

Nothing here waits for the device or allocates on it, so that launches can be recorded in CUDA graphs; the first launch
of a kind compiles and loads, and must come before the recording, as with the libraries that torch calls.
"""

import ctypes
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_uint, c_void_p
from functools import cache

import torch

from kernels.cache import BuildError
from kernels.cuda import build

TENSOR_CORES = 80  # compute capability from which the kernels for tensor cores are compiled


class Device:
    """One GPU: torch's context on it, and the kernels loaded there."""

    def __init__(self, library: ctypes.CDLL, index: int):
        properties = torch.cuda.get_device_properties(index)
        self.index, self.library = index, library
        self.architecture = 10 * properties.major + properties.minor
        self.processors = properties.multi_processor_count
        self.has_tensor_cores = self.architecture >= TENSOR_CORES
        self._functions: dict[tuple[int, int, str], c_void_p] = {}
        self._modules: dict[tuple[int, int], c_void_p] = {}
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

    def launch(self, bits: int, kind: int, name: str, grid: tuple[int, int], threads: int, arguments: bytes) -> None:
        """Start a kernel of linear.cu on torch's current stream. Raises BuildError where it cannot be made."""
        self.call("cuCtxPushCurrent_v2", self._context)
        try:
            function = self._functions.get((bits, kind, name)) or self._load(bits, kind, name)
            stream = torch.cuda.current_stream(self.index).cuda_stream
            parameters = (c_void_p * 1)(ctypes.cast(arguments, c_void_p))  # copied by the call
            self.call("cuLaunchKernel", function, *map(c_uint, (*grid, 1, threads, 1, 1, 0)), c_void_p(stream),
                      parameters, None)
        finally:
            self.library.cuCtxPopCurrent_v2(byref(c_void_p()))

    def _load(self, bits: int, kind: int, name: str) -> c_void_p:
        function = c_void_p()
        try:
            if (bits, kind) not in self._modules:
                module = c_void_p()
                self.call("cuModuleLoadData", byref(module), build.compiled(self.architecture, bits, kind))
                self._modules[bits, kind] = module
            self.call("cuModuleGetFunction", byref(function), self._modules[bits, kind], name.encode())
        except RuntimeError as error:
            raise error if isinstance(error, BuildError) else BuildError(str(error)) from error
        self._functions[bits, kind, name] = function
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
