"""The compiled backend for CPUs: kernels.reference's operations, without gradients.

Products of few rows are bound by reading the weights once, of many rows by arithmetic (tile.h). Each function checks
what the C code relies on (types, contiguity, shapes) and hands anything else to the reference.
"""

import ctypes
import math
import platform
from ctypes import c_float, c_int, c_size_t, c_void_p
from functools import cache

import torch
from torch import Tensor

from kernels import KEPT_BYTES, reference, vocabulary
from kernels.cpu import attention, build
from kernels.cpu.attention import address
from kernels.layer import Activation, Rotary
from kernels.reference import PackedWeight
from runtime.resources import make_large

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SIGNATURES = {
    "glm_linear": [c_int, c_void_p, c_size_t, c_size_t, c_void_p, c_void_p, c_int, c_void_p, c_size_t, c_int],
    "glm_refine": [c_int, c_void_p, c_size_t, c_size_t, c_void_p, c_size_t, c_void_p, c_void_p, c_void_p, c_float,
                   c_size_t, c_int],
    "glm_norm": [c_int, c_void_p, c_void_p, c_float, c_void_p, c_void_p, c_float, c_void_p, c_size_t, c_size_t, c_int],
    "glm_scaled_add": [c_int, c_void_p, c_void_p, c_float, c_void_p, c_size_t, c_int],
    "glm_activate": [c_int, c_size_t, c_void_p, c_size_t, c_size_t, c_void_p, c_int],
    "glm_log_sums": [c_void_p, c_size_t, c_size_t, c_void_p, c_void_p, c_int],
    "glm_uniforms": [c_void_p, c_size_t, c_size_t, c_void_p, c_int],
    "glm_threads": [c_int],
} | attention.SIGNATURES
X86 = ("x86_64", "AMD64")
LARGE_BYTES = 4 << 20  # of a result: from here on in pages of 2 MB, as products of many rows write columns of all rows
MAXIMUM_ROWS = 32  # elsewhere nothing is written in vectors, and for more rows torch's products are the better ones


class Matrix(ctypes.Structure):
    """packed_product.h's Matrix: of a plain tensor only the address."""

    _fields_ = [("weight", c_void_p), ("scale", c_void_p), ("group", c_size_t), ("bits", c_size_t),
                ("scale_type", c_size_t)]

    @classmethod
    def of(cls, weight: Tensor | PackedWeight) -> "Matrix":
        if isinstance(weight, Tensor):
            return cls(weight.data_ptr())
        data, scale, bits, group_size = weight
        return cls(data.data_ptr(), scale.data_ptr(), group_size or weight.shape[1], bits, TYPES[scale.dtype])


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
        self.prefill_products = library.glm_prefill_products()  # the best there are: see prefill_products.h
        self._linear = library.glm_linear
        self._refine = library.glm_refine
        self._norm = library.glm_norm
        self._scaled_add = library.glm_scaled_add
        self._activate = library.glm_activate
        self.has_bf16_products = self.path.endswith("+bf16")
        self.has_fp16_products = self.path.startswith("avx512") and "avx512_fp16" in build.processor_features()

    def multiplies(self, dtype) -> bool:
        """Whether torch's products of this type are worth having: on an x86 processor without instructions for it they
        are imitated, which takes ten times as long as converting both sides to float32."""
        return (dtype is torch.float32 or platform.machine() not in X86
                or (self.has_bf16_products if dtype is torch.bfloat16 else self.has_fp16_products))

    def weight_only_linear(self, x, weight, scale, bias=None, bits=8, group_size=None):
        reference.check_packed(x, weight, scale, bias, bits, group_size)
        if x.numel() == 0 or weight.numel() == 0 or not self._takes(x):
            return reference.weight_only_linear(x, weight, scale, bias, bits, group_size)
        packed = PackedWeight(weight, scale, bits, group_size)
        return self._product(x, packed, None if bias is None else bias.contiguous(), x.dtype)

    def linear(self, x, weight, bias=None):
        if isinstance(weight, PackedWeight):
            return self.weight_only_linear(x, weight.weight, weight.scale, bias, weight.bits, weight.group_size)
        if (weight.dtype is not x.dtype or not weight.is_contiguous() or not self._takes(x)
                or (bias is not None and bias.dtype is not x.dtype)):
            return reference.linear(x, weight, bias)
        if x.shape[-1] != weight.shape[1]:
            raise ValueError(f"linear: x has {x.shape[-1]} columns, weight {weight.shape[1]}")
        return self._product(x, weight, bias, x.dtype)

    def head(self, x, weight):
        if weight.dtype is not x.dtype or not weight.is_contiguous() or not self._takes(x):
            return reference.head(x, weight)
        if x.shape[-1] != weight.shape[1]:
            raise ValueError(f"head: x has {x.shape[-1]} columns, weight {weight.shape[1]}")
        return self._product(x, weight, None, torch.float32)

    def _takes(self, x: Tensor) -> bool:
        return self.multiplies_rows(x.shape[:-1].numel())

    def multiplies_rows(self, rows: int) -> bool:
        """Whether a product of so many rows of x is better than torch's."""
        return platform.machine() in X86 or rows <= MAXIMUM_ROWS

    def _product(self, x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
        """x (..., k) times weight (n, k) transposed, plus bias -> (..., n), float32 or of x's type."""
        n, k = weight.shape
        x, out = x.contiguous(), x.new_empty((*x.shape[:-1], n), dtype=dtype)
        if out.nbytes >= LARGE_BYTES:
            make_large(out)
        if out.numel() == 0:
            return out  # without a piece of work its stage would never end
        self._linear(TYPES[x.dtype], x.data_ptr(), x.numel() // k, k, ctypes.byref(Matrix.of(weight)), address(bias),
                     TYPES[dtype], out.data_ptr(), n, torch.get_num_threads())
        return out

    def refine_(self, logits, x, weight, error, count, added=None, least=-math.inf):
        """kernels.vocabulary.refine_."""
        kind, (n, k) = x.dtype, weight.shape
        tensors = [tensor for tensor in (logits, x, weight, error, added) if tensor is not None]
        if (weight.dtype is not kind or x.shape[0] > MAXIMUM_ROWS or count < 1
                or not all(tensor.is_contiguous() for tensor in tensors)
                or any(tensor.dtype is not torch.float32 for tensor in tensors if tensor.dtype is not kind)):
            return vocabulary.refine_(logits, x, weight, error, count, added, least)
        if (x.shape[1] != k or error.shape != (n,) or any(
                each is not None and each.shape != (x.shape[0], n) for each in (logits, added))):
            raise ValueError(f"refine_: x {tuple(x.shape)}, weight {tuple(weight.shape)}, logits {tuple(logits.shape)}")
        self._refine(TYPES[kind], x.data_ptr(), x.shape[0], k, weight.data_ptr(), n, logits.data_ptr(),
                     error.data_ptr(), address(added), least, count, torch.get_num_threads())

    def layer_norm(self, x, weight, bias, epsilon):
        return self._normalise(None, x, 0.0, weight, bias, epsilon)

    def rms_norm(self, x, weight, epsilon):
        return self._normalise(None, x, 0.0, weight, None, epsilon)

    def residual_layer_norm(self, residual, update, alpha, weight, bias, epsilon):
        if residual.dtype is not update.dtype or residual.shape != update.shape or not residual.is_contiguous():
            return reference.residual_layer_norm(residual, update, alpha, weight, bias, epsilon)
        return self._normalise(residual, update, alpha, weight, bias, epsilon)

    def _normalise(self, residual, x, alpha, weight, bias, epsilon):
        """Without a bias, the RMS norm."""
        kind, h = x.dtype, x.shape[-1]
        if (weight.dtype is not kind or (bias is not None and bias.dtype is not kind) or not x.is_contiguous()
                or weight.numel() != h):
            if bias is None:
                return reference.rms_norm(x, weight, epsilon)
            x = x if residual is None else reference.scaled_add(residual, x, alpha)
            return reference.layer_norm(x, weight, bias, epsilon)
        out = torch.empty_like(x)
        self._norm(TYPES[kind], address(residual), x.data_ptr(), alpha, weight.data_ptr(), address(bias), epsilon,
                   out.data_ptr(), x.numel() // h, h, torch.get_num_threads())
        return out

    def scaled_add(self, residual, update, alpha):
        if (residual.dtype is not update.dtype or residual.shape != update.shape
                or not (residual.is_contiguous() and update.is_contiguous())):
            return reference.scaled_add(residual, update, alpha)
        out = torch.empty_like(update)
        self._scaled_add(TYPES[update.dtype], residual.data_ptr(), update.data_ptr(), alpha, out.data_ptr(),
                         out.numel(), torch.get_num_threads())
        return out

    def geglu(self, x):
        return self.activated(Activation.GEGLU, x) if x.is_contiguous() else reference.geglu(x)

    def swiglu(self, x):
        return self.activated(Activation.SWIGLU, x) if x.is_contiguous() else reference.swiglu(x)

    def gelu(self, x, is_exact):
        activation = Activation.GELU if is_exact else Activation.GELU_TANH
        return self.activated(activation, x) if x.is_contiguous() else reference.gelu(x, is_exact)

    def activated(self, activation, x):
        """x is contiguous."""
        *rows, width = x.shape
        inner = width // 2 if activation.is_gated else width
        out = x.new_empty((*rows, inner))
        self._activate(TYPES[x.dtype], activation, x.data_ptr(), math.prod(rows), inner, out.data_ptr(),
                       torch.get_num_threads())
        return out

    def log_sums(self, logits):
        if logits.dtype is not torch.float32 or not logits.is_contiguous() or logits.numel() == 0:
            return reference.log_sums(logits)
        highest, sums = logits.new_empty((2, *logits.shape[:-1]))
        v = logits.shape[-1]
        self.library.glm_log_sums(logits.data_ptr(), logits.numel() // v, v, highest.data_ptr(), sums.data_ptr(),
                                  torch.get_num_threads())
        return highest, sums

    def uniforms(self, keys, v):
        """generation.sampling.uniforms of the ids 0 ... v - 1, bit by bit: keys (b, 2) int64 -> (b, v) float32."""
        keys, out = keys.contiguous(), torch.empty(keys.shape[0], v)
        self.library.glm_uniforms(keys.data_ptr(), keys.shape[0], v, out.data_ptr(), torch.get_num_threads())
        return out

    def attend(self, qkv, cosine, sine, keys=None, values=None, start=0, blocked=None, positions_2d=False, places=None):
        size = cosine.shape[-1]
        heads, rotary = qkv.shape[-1] // (3 * size), Rotary.HALVES_2D if positions_2d else Rotary.HALVES
        found = attention.attend(self, qkv, heads, heads, size, rotary, True, cosine, sine, keys, values, start,
                                 blocked, places)
        if found is None:
            found = self._by_reference(lambda *arguments: reference.attend(*arguments, positions_2d), qkv, cosine, sine,
                                       keys, values, start, blocked)
            return reference.wanted(found, places)
        return found

    def attend_groups(self, qkv, groups, size, cosine, sine, keys=None, values=None, start=0, blocked=None,
                      places=None):
        heads = qkv.shape[-1] // size - 2 * groups
        found = attention.attend(self, qkv, heads, groups, size, Rotary.PAIRS, False, cosine, sine, keys, values, start,
                                 blocked, places)
        if found is None:
            found = self._by_reference(lambda qkv, *rest: reference.attend_groups(qkv, groups, size, *rest), qkv,
                                       cosine, sine, keys, values, start, blocked)
            return reference.wanted(found, places)
        return found

    def _by_reference(self, attend, qkv, *rest):
        """One of the reference's functions, in a type that the processor multiplies."""
        return attend(qkv, *rest) if self.multiplies(qkv.dtype) else attention.in_float32(attend, qkv, *rest)

    def read(self, data) -> None:
        """Reads a contiguous tensor once with all threads: the machine's read bandwidth, for benchmarks."""
        self.library.glm_read(data.data_ptr(), data.numel() * data.element_size(), torch.get_num_threads())


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, up to 256 MB, in pieces below KEPT_BYTES: a prompt's temporaries (some MB each,
    every layer) would otherwise go back to the system and be faulted in again page by page, which costs a tenth of a
    prefill."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3  # malloc.h
        mallopt(mmap_threshold, KEPT_BYTES)
        mallopt(trim_threshold, 256 << 20)


@cache
def operators() -> Operators:
    """The backend over this machine's library, built at the first call. Raises build.BuildError with one line."""
    keep_freed_memory()
    try:
        return Operators(build.load())
    except AttributeError as error:  # names the file and the function that it lacks
        raise build.BuildError(f"the compiled library is of something else: {error}") from None
