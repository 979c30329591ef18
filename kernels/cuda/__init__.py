"""The backend for CUDA devices: kernels.reference's operations, without gradients.

torch's own kernels serve everything but weight-only linear layers (linear.cu), which are compiled at their first use by
the library that torch brings for it (nvrtc.py), and launched through the driver (driver.py).
"""

import sys
from functools import cache

from torch import Tensor

from kernels import reference
from kernels.cache import BuildError
from kernels.cuda import build, driver, linear
from kernels.cuda.linear import NOTHING, End


class Operators:
    """kernels.reference's functions. `find` gives a tensor's device, which launches kernels (driver.Device)."""

    head = staticmethod(reference.head)
    layer_norm = staticmethod(reference.layer_norm)
    residual_layer_norm = staticmethod(reference.residual_layer_norm)
    scaled_add = staticmethod(reference.scaled_add)
    geglu = staticmethod(reference.geglu)
    rotate = staticmethod(reference.rotate)
    attend = staticmethod(reference.attend)
    attend_groups = staticmethod(reference.attend_groups)
    gelu = staticmethod(reference.gelu)
    swiglu = staticmethod(reference.swiglu)
    rms_norm = staticmethod(reference.rms_norm)

    def __init__(self, find: driver.Finder = driver.find):
        self.find = find
        self.failure: str | None = None  # why there are no compiled kernels, once that is known

    def linear(self, x: Tensor, weight: Tensor | reference.PackedWeight, bias: Tensor | None = None) -> Tensor:
        if isinstance(weight, reference.PackedWeight):
            return self.weight_only_linear(x, weight.weight, weight.scale, bias, weight.bits, weight.group_size)
        return reference.linear(x, weight, bias)

    def ended_linear(self, x: Tensor, weight: Tensor | reference.PackedWeight, bias: Tensor | None,
                     end: End) -> Tensor:
        """`linear` with its end, in one kernel and rounded once where there is one."""
        if isinstance(weight, reference.PackedWeight):
            return self.weight_only_linear(x, weight.weight, weight.scale, bias, weight.bits, weight.group_size, end)
        return end.of(reference.linear(x, weight, bias))

    def weight_only_linear(self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, bits: int = 8,
                           group_size: int | None = None, end: End = NOTHING) -> Tensor:
        """float32 goes to the reference; so does everything where the kernels cannot be compiled, which is said once
        on standard error."""
        if self.failure is None and x.dtype in build.KINDS and x.dtype.itemsize == 2:
            try:
                return linear.weight_only_linear(self.find(x.device), x, weight, scale, bias, bits, group_size, end)
            except BuildError as error:
                self.failure = str(error)
                print(f"kernels: torch's own operators are used for quantised weights, which are slower: {error}",
                      file=sys.stderr)
        return end.of(reference.weight_only_linear(x, weight, scale, bias, bits, group_size))


@cache
def operators() -> Operators:
    return Operators()
