"""The compiled backend for decoding on a CPU: kernels.reference's operations for few rows, without gradients.

Each function checks what the C code relies on (types, contiguity, shapes) and hands anything else to the reference.
"""

import ctypes
from ctypes import c_float, c_int, c_size_t, c_void_p
from functools import cache

import torch

from kernels import reference
from kernels.cpu import build

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SIGNATURES = {
    "glm_linear": [c_int, c_void_p, c_size_t, c_size_t, c_void_p, c_void_p, c_void_p, c_size_t, c_int],
    "glm_norm": [c_int, c_void_p, c_void_p, c_float, c_void_p, c_void_p, c_float, c_void_p, c_size_t, c_size_t],
    "glm_scaled_add": [c_int, c_void_p, c_void_p, c_float, c_void_p, c_size_t],
    "glm_geglu": [c_int, c_void_p, c_size_t, c_size_t, c_void_p, c_int],
    "glm_attend": [c_int, *[c_void_p] * 5, *[c_size_t] * 6, c_void_p, c_int, c_void_p, c_int],
    "glm_threads": [c_int],
}


class Operators:
    """kernels.reference's functions over one compiled library."""

    TYPES = TYPES

    def __init__(self, library: ctypes.CDLL):
        for name, arguments in SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        for name in SIGNATURES.keys() - {"glm_threads"}:
            getattr(library, name).restype = None
        library.glm_path.restype = ctypes.c_char_p
        library.glm_read.argtypes = [c_void_p, c_size_t, c_int]
        library.glm_read.restype = c_float
        self.library = library
        self.path = library.glm_path().decode()  # which instructions it uses: "avx512+bf16", "avx2", "generic", ...
        self._linear = library.glm_linear
        self._norm = library.glm_norm
        self._scaled_add = library.glm_scaled_add
        self._geglu = library.glm_geglu
        self._attend = library.glm_attend

    def linear(self, x, weight, bias=None):
        kind = x.dtype
        if weight.dtype is not kind or not (x.is_contiguous() and weight.is_contiguous()):
            return reference.linear(x, weight, bias)
        n, k = weight.shape
        *rows, width = x.shape
        if width != k:
            raise ValueError(f"linear: x has {width} columns, weight {k}")
        out = x.new_empty((*rows, n))
        self._linear(TYPES[kind], x.data_ptr(), x.numel() // k, k, weight.data_ptr(),
                     None if bias is None else bias.data_ptr(), out.data_ptr(), n, torch.get_num_threads())
        return out

    def layer_norm(self, x, weight, bias, epsilon):
        return self._normalise(None, x, 0.0, weight, bias, epsilon)

    def residual_layer_norm(self, residual, update, alpha, weight, bias, epsilon):
        if residual.dtype is not update.dtype or residual.shape != update.shape or not residual.is_contiguous():
            return reference.residual_layer_norm(residual, update, alpha, weight, bias, epsilon)
        return self._normalise(residual, update, alpha, weight, bias, epsilon)

    def _normalise(self, residual, x, alpha, weight, bias, epsilon):
        kind, h = x.dtype, x.shape[-1]
        if weight.dtype is not kind or not x.is_contiguous() or weight.numel() != h:
            x = x if residual is None else reference.scaled_add(residual, x, alpha)
            return reference.layer_norm(x, weight, bias, epsilon)
        out = torch.empty_like(x)
        self._norm(TYPES[kind], None if residual is None else residual.data_ptr(), x.data_ptr(), alpha,
                   weight.data_ptr(), bias.data_ptr(), epsilon, out.data_ptr(), x.numel() // h, h)
        return out

    def scaled_add(self, residual, update, alpha):
        if (residual.dtype is not update.dtype or residual.shape != update.shape
                or not (residual.is_contiguous() and update.is_contiguous())):
            return reference.scaled_add(residual, update, alpha)
        out = torch.empty_like(update)
        self._scaled_add(TYPES[update.dtype], residual.data_ptr(), update.data_ptr(), alpha, out.data_ptr(),
                         out.numel())
        return out

    def geglu(self, x):
        if not x.is_contiguous():
            return reference.geglu(x)
        *rows, width = x.shape
        inner = width // 2
        out = x.new_empty((*rows, inner))
        self._geglu(TYPES[x.dtype], x.data_ptr(), x.numel() // width, inner, out.data_ptr(), torch.get_num_threads())
        return out

    def attend(self, qkv, cosine, sine, keys=None, values=None, start=0, blocked=None, positions_2d=False):
        b, s, width = qkv.shape
        d = cosine.shape[-1]
        kind = qkv.dtype
        if s != 1 or keys is None or keys.dtype is not kind or not qkv.is_contiguous():
            return reference.attend(qkv, cosine, sine, keys, values, start, blocked, positions_2d)
        batch_stride, head_stride, place_stride, unit = keys.stride()
        if place_stride != d or unit != 1 or values.stride() != keys.stride() or start >= keys.shape[2]:
            return reference.attend(qkv, cosine, sine, keys, values, start, blocked, positions_2d)
        cosine, sine = cosine.float().contiguous(), sine.float().contiguous()
        if blocked is not None:
            blocked = blocked.contiguous()
        heads = width // (3 * d)
        out = qkv.new_empty((b, 1, heads * d))
        self._attend(TYPES[kind], qkv.data_ptr(), cosine.data_ptr(), sine.data_ptr(), keys.data_ptr(),
                     values.data_ptr(), b, heads, d, start + 1, batch_stride, head_stride,
                     None if blocked is None else blocked.data_ptr(), positions_2d, out.data_ptr(),
                     torch.get_num_threads())
        return out

    def read(self, data) -> None:
        """Reads a contiguous tensor once with all threads: the machine's read bandwidth, for benchmarks."""
        self.library.glm_read(data.data_ptr(), data.numel() * data.element_size(), torch.get_num_threads())


@cache
def operators() -> Operators:
    """The backend over this machine's library, built at the first call. Raises build.BuildError with one line."""
    return Operators(build.load())
