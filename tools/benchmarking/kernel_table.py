"""Products with packed weights on a CPU: torch's bf16 product, torch's own weight-only operators, and ours, in turn."""

from statistics import median

import torch
import torch.nn.functional as F

import kernels.reference
from runtime.errors import UserError
from runtime.show import table
from tools.benchmarking.rates import read, repeat

READ_BYTES = 128 << 20


def measure(n: int, k: int, rows: list[int], dtype: torch.dtype, groups: list[int], matrices: int,
            repeats: int) -> str:
    """Medians over `repeats` passes over `matrices` weights (n, k); between the products the memory is read, and the
    share of that rate is of packed bytes, scales included."""
    for value in (n, k, matrices, repeats, *rows, *groups):
        if value < 1:
            raise UserError(f"{value} is not a size: whole numbers of at least 1 are needed")
    if k % 2 or any(k % size for size in groups):
        raise UserError(f"--size {n} {k}: {k} columns must be even and a multiple of every group size {groups}")
    lines, buffer = [], torch.zeros(READ_BYTES // 4)
    with torch.inference_mode():
        products = _products(n, k, dtype, groups, matrices)
        for m in rows:
            x = torch.randn(m, k).to(dtype)
            seconds, rates = {name: [] for name in products}, []
            for _ in range(repeats):
                for name, (_, calls) in products.items():
                    if m > 64 and name.startswith("torch _"):
                        calls = calls[:1]  # a tenth of the others' speed
                    seconds[name] += [_time(lambda call=call, x=x: call(x)) for call in calls]
                    rates += [buffer.nbytes / _time(lambda: read(buffer)) for _ in range(2)]
            ceiling = median(rates)
            for name, (size, _) in products.items():
                taken = median(seconds[name])
                rate = size / taken
                lines.append([name, str(m), f"{taken * 1e3:.2f}", f"{2e-12 * m * n * k / taken:.3f}",
                              f"{rate / 1e9:.1f}", f"{ceiling / 1e9:.1f}", f"{100 * rate / ceiling:.0f}"])
    return table(("product", "m", "ms", "TFLOP/s", "GB/s", "of GB/s", "%"), lines,
                 title=f"x (m, {k}) times a weight ({n}, {k}) transposed")


def _time(work) -> float:
    return repeat(work, 1, warm_up=0).best


def _products(n: int, k: int, dtype: torch.dtype, groups: list[int], matrices: int) -> dict:
    """name: (bytes of one weight, a call with x for each weight). torch's own weight-only operators take bf16 only."""
    ops = kernels.compiled() or kernels.reference
    plain = [torch.randn(n, k).to(dtype) for _ in range(min(matrices, 6))]
    size = plain[0].nbytes
    products = {"torch F.linear": (size, [lambda x, w=w: F.linear(x, w) for w in plain]),
                "this, not packed": (size, [lambda x, w=w: ops.linear(x, w) for w in plain])}
    if dtype is torch.bfloat16:
        bytes8 = [torch.randint(-127, 128, (n, k), dtype=torch.int8) for _ in range(min(matrices, 4))]
        scale = torch.rand(n).to(dtype)
        products["torch _weight_int8pack_mm"] = (n * k, [
            lambda x, w=w: torch.ops.aten._weight_int8pack_mm(x, w, scale) for w in bytes8])
        if k % 64 == 0 and n % 64 == 0:
            values = [torch.randint(0, 16, (n, k), dtype=torch.int32) for _ in range(min(matrices, 4))]
            packed = [torch.ops.aten._convert_weight_to_int4pack_for_cpu(value, 1) for value in values]
            pairs = torch.rand(k // 64, n, 2).to(dtype)
            products["torch _weight_int4pack_mm, g64"] = (n * k // 2 + pairs.nbytes, [
                lambda x, w=w: torch.ops.aten._weight_int4pack_mm_for_cpu(x, w, 64, pairs) for w in packed])
    for bits in (8, 4):
        for group in (None, *groups):
            shape = (n,) if group is None else (n, k // group)
            weights = [(torch.randint(-128, 128, (n, k * bits // 8), dtype=torch.int8), torch.rand(shape).half())
                       for _ in range(matrices)]
            name = f"this, INT{bits}" + (f" g{group}" if group else "")
            products[name] = (sum(part.nbytes for part in weights[0]), [
                lambda x, w=w, s=s, bits=bits, group=group: ops.weight_only_linear(x, w, s, None, bits, group)
                for w, s in weights])
    return products
