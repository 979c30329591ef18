"""Speed of single weight-only linear layers at GLM-130B's shapes and those of its tensor-parallel parts."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from glm.spec import linears
from kernels.cuda import choice, linear
from tools.checking_gpu.setting import Bandwidth, Setting, bytes_of, random_packed, scheme_name, seconds_each

DTYPE = torch.float16
SCHEMES = [(4, None), (8, None), (4, 128), (4, 32), (8, 128)]
NO_CACHE_HOLDS = 160 << 20  # bytes: three times the L2 cache of an H100
DECODE_ROWS = (1, 2, 4, 8, 16)
DECODE_TARGET, PREFILL_TARGET = 85, 80  # percent


def shapes(setting: Setting, parts: list[int]) -> dict[tuple[int, int], str]:
    """(n, k) and whose it is: "dense" of a whole model, "dense/8" of an eighth."""
    found = {}
    for part in parts:
        for path, shape in linears(setting.config, part).items():
            name = path.rpartition(".")[2]
            found.setdefault(shape, name if part == 1 else f"{name}/{part}")
    return found


def copies(setting: Setting, n: int, k: int, bits: int, group_size: int | None) -> list:
    """As many weights as no cache holds."""
    one = random_packed(setting, n, k, bits, group_size)
    count = 2 if setting.is_toy else -(-NO_CACHE_HOLDS // bytes_of(one)) + 1
    return [one, *(one._replace(weight=one.weight.clone(), scale=one.scale.clone()) for _ in range(count - 1))]


@torch.inference_mode()
def decoding(setting: Setting) -> Iterator[dict]:
    """m = 1 ... 16: bytes of packed weights and scales per second, beside the read bandwidth."""
    bandwidth = Bandwidth(setting)
    for bits, group_size in SCHEMES:
        full = (bits, group_size) in SCHEMES[:2]
        parts = setting.sizes([1, 2, 4, 8] if full else [1, 8], [1])
        for (n, k), name in shapes(setting, parts).items():
            if not setting.has_time:
                return
            if group_size and k % group_size:
                continue  # a toy's
            ceiling = bandwidth.measure()
            weights = copies(setting, n, k, bits, group_size)
            row = {"linear": name, "n": n, "k": k, "weights": scheme_name(bits, group_size),
                   "bandwidth GB/s": ceiling / 1e9}
            for m in DECODE_ROWS:
                x = torch.randn(m, k, dtype=DTYPE, device=setting.device)
                each = seconds_each(setting, [partial(setting.operations.linear, x, weight) for weight in weights])
                row |= {f"m={m} us": each * 1e6, f"m={m} %": 100 * bytes_of(weights[0]) / each / ceiling}
            short = [m for m in DECODE_ROWS if row[f"m={m} %"] < DECODE_TARGET]
            yield row | {f"below {DECODE_TARGET}%": " ".join(f"m={m}" for m in short)}


def ways(setting: Setting, m: int, n: int, k: int, bits: int) -> dict[str, choice.Plan]:
    """Every way to divide a product of m rows among blocks; the one that is chosen first."""
    processors = setting.kernels_device.processors
    all_ways = [choice.choose(m, n, k, bits, None, True, processors)]
    if m <= choice.FEW_ROWS:
        all_ways += [choice.skinny(n, k, bits, None, tiles, processors) for tiles in (1, 2, 4)]
    else:
        all_ways += [choice.wide(m, n, k, bits, None, processors, splits) for splits in (1, 2, 3, 4, 6, 8, 12)]
    return {f"{plan.name} parts={plan.splits}": plan for plan in all_ways}


@torch.inference_mode()
def tilings(setting: Setting) -> Iterator[dict]:
    """The ways to divide the same product among blocks (kernels/cuda/choice.py), beside the one that is chosen: what
    could be done better on this device."""
    device = setting.kernels_device
    if device is None or not device.has_tensor_cores:
        return
    for bits in (4, 8):
        for (n, k), name in shapes(setting, setting.sizes([1, 8, 4], [1])).items():
            weights = copies(setting, n, k, bits, None)
            for m in setting.sizes([1, 4, 8, 16, 64], [1, 16]):
                if not setting.has_time:
                    return
                x = torch.randn(m, k, dtype=DTYPE, device=setting.device)
                times = {}
                for way, plan in ways(setting, m, n, k, bits).items():
                    calls = [partial(launch, device, plan, x, weight) for weight in weights]
                    times[way] = seconds_each(setting, calls, 3) * 1e6
                chosen, best = next(iter(times)), min(times, key=times.get)
                yield {"linear": name, "weights": f"INT{bits}", "m": m, "chosen": chosen, "chosen us": times[chosen],
                       "best": best, "best us": times[best], "chosen / best": times[chosen] / times[best]}


def launch(device, plan: choice.Plan, x: torch.Tensor, packed) -> torch.Tensor:
    out = x.new_empty(x.shape[0], packed.shape[0])
    linear.launch(device, plan, x.dtype, packed.bits, x, packed.weight, packed.scale, None, out, x.shape[0],
                  x.shape[1], packed.group_size)
    return out


@torch.inference_mode()
def prefill(setting: Setting) -> Iterator[dict]:
    """More rows: time beside that of the library's product with the weight in float16. Up to 320 rows it is a wide
    kernel's, behind them that of expanding the weight and the library's."""
    for bits, group_size in SCHEMES[:3]:
        for (n, k), name in shapes(setting, setting.sizes([1, 8], [1])).items():
            if group_size and k % group_size:
                continue  # a toy's
            packed = copies(setting, n, k, bits, group_size)
            whole = [torch.randn(n, k, dtype=DTYPE, device=setting.device)
                     for _ in range(-(-NO_CACHE_HOLDS // (2 * n * k)) + 1)][: len(packed)]
            row = {"linear": name, "n": n, "k": k, "weights": scheme_name(bits, group_size)}
            for m in setting.sizes([32, 64, 128, 320, 321, 512, 2048], [32, 321]):
                if not setting.has_time:
                    return
                x = torch.randn(m, k, dtype=DTYPE, device=setting.device)
                ours = seconds_each(setting, [partial(setting.operations.linear, x, weight) for weight in packed], 5)
                library = seconds_each(setting, [partial(F.linear, x, weight) for weight in whole], 5)
                row |= {f"m={m} us": ours * 1e6, f"m={m} % of cuBLAS": 100 * library / ours}
            reached = 100 * library / ours >= PREFILL_TARGET
            yield row | {"TFLOP/s": 2 * m * n * k / ours / 1e12,
                         f"{PREFILL_TARGET}% at the last m": "yes" if reached else "no"}
