"""Do the kernels compile here, by what, and how long does that take?"""

import time
from collections.abc import Iterator

from kernels.cuda import build, nvrtc
from kernels.cuda.linear import KINDS
from tools.checking_gpu.setting import Setting


def rows(setting: Setting) -> Iterator[dict]:
    """The times are of the compiler, or of reading what an earlier run has kept."""
    device = setting.kernels_device
    if device is None or not hasattr(device, "architecture"):
        return
    compiler = nvrtc.find()
    for bits in (8, 4):
        for dtype, kind in list(KINDS.items())[:2]:
            begin = time.perf_counter()
            code = build.compiled(device.architecture, bits, kind)
            yield {"kernels": f"INT{bits} {dtype}", "NVRTC": compiler.version, "library": compiler.path,
                   "target": compiler.target(device.architecture)[0], "bytes": len(code),
                   "seconds": time.perf_counter() - begin}
