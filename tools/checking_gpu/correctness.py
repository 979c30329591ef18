"""Do the kernels compile here, are they right, and do glm and generation work with them?

Right: errors against float32, twins that must agree bit for bit, recorded graphs.
"""

import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

import kernels
from kernels import reference
from kernels.cuda import attention, build, linear, nvrtc
from kernels.packing import dequantize
from tools.checking_gpu.answers import CHECKPOINT, lacking
from tools.checking_gpu.setting import Setting, random_packed, recorded, scheme_name

PROMPT = "Once upon a time, there was a little girl who lived [gMASK]"
ALLOWED = 0.02  # of the logits, root mean square; float16 alone makes some thousandths


def builds(setting: Setting) -> Iterator[dict]:
    """The times are of the compiler, or of reading what an earlier run has kept."""
    device = setting.kernels_device
    if device is None or not hasattr(device, "architecture"):
        return
    compiler = nvrtc.find()
    halves = list(build.KINDS)[:2]
    programs = [(f"INT{bits} {dtype}", build.Program(linear.SOURCE, build.KINDS[dtype], bits))
                for bits in (8, 4) for dtype in halves]
    programs += [(f"a step's, {dtype}", build.Program(attention.SOURCE, kind)) for dtype, kind in build.KINDS.items()]
    for name, program in programs:
        begin = time.perf_counter()
        code = build.compiled(device.architecture, program)
        yield {"kernels": name, "NVRTC": compiler.version, "library": compiler.path,
               "target": compiler.target(device.architecture)[0], "bytes": len(code),
               "seconds": time.perf_counter() - begin}


class Case(NamedTuple):
    m: int
    n: int
    k: int
    bits: int
    group_size: int | None
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{scheme_name(self.bits, self.group_size)} {self.dtype} m={self.m} n={self.n} k={self.k}"


def cases(is_toy: bool = False) -> list[Case]:
    """Tails of rows and columns, all kinds of groups, every kernel, and GLM-130B's widths."""
    found = []
    for dtype in (torch.float16, torch.bfloat16):
        for bits in (8, 4):
            for m in (1, 4, 9, 321) if is_toy else (1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 64, 65, 130, 320, 321):
                n = 140 if is_toy else 8600  # enough rows for the largest tiles, and no whole number of them
                found.append(Case(m, n + m, 336 if is_toy else 672, bits, None, dtype))  # no whole number of stages
                if not is_toy:
                    found += [Case(m, n + m, 1536, bits, group_size, dtype) for group_size in (32, 64, 128, 256)]
            for k, group_size in ((768, 96), (352, 88), (264, 24), (60, 12), (90, None), (4096, 2048), (512, 512)):
                found += [Case(m, 77, k, bits, group_size, dtype) for m in (1, 6, 20) if m == 6 or not is_toy]
            for n, k in () if is_toy else ((4608, 12288), (12288, 1536), (12288, 4096), (1536, 32768)):
                found += [Case(m, n, k, bits, group_size, dtype) for m, group_size in ((1, None), (4, 128), (16, None))]
    return found[::2] if is_toy else found


def check(setting: Setting, case: Case) -> dict:
    """One row of the report; `right` tells. The error may be twice that of torch's product of the dequantised weight at
    the same precision, and one rounding of the result."""
    m, n, k, bits, group_size, dtype = case
    torch.manual_seed(m + n + k)
    packed = random_packed(setting, n, k, bits, group_size)
    x = torch.randn(m, k, device=setting.device).to(dtype)
    bias = torch.randn(n, device=setting.device).to(dtype)
    exact = reference.linear(x.float(), packed, bias.float())
    allowed = (reference.linear(x, packed, bias).float() - exact).abs()
    poisoned = torch.full((m, n), float("nan"), dtype=dtype, device=setting.device)
    del poisoned  # the allocator hands out the same memory again: places that are not written stay wrong
    result = setting.operations.linear(x, packed, bias)
    error = (result.float() - exact).abs()
    rounding = exact.abs().max().item() * torch.finfo(dtype).eps / 2
    largest, bound = error.max().item(), 2 * allowed.max().item() + rounding
    mean, mean_bound = (square.square().mean().sqrt().item() for square in (error, allowed))
    again = setting.operations.linear(x, packed, bias)
    right = largest <= bound and mean <= 2 * mean_bound + rounding / 4 and torch.equal(result, again)
    return {"case": str(case), "largest error": largest, "allowed": bound, "same again": torch.equal(result, again),
            "right": right}


def check_dequantizing(setting: Setting, case: Case) -> dict:
    packed = random_packed(setting, case.n, case.k, case.bits, case.group_size)
    result = linear.dequantize(setting.kernels_device, packed.weight, packed.scale, case.dtype, case.bits,
                               case.group_size)
    right = torch.equal(result, dequantize(packed.weight, packed.scale, case.bits, case.dtype))
    return {"case": f"dequantise {case}", "right": right}


def check_graph(setting: Setting, case: Case) -> dict:
    """A recorded call, replayed with other numbers in x, gives what a call gives."""
    packed = random_packed(setting, case.n, case.k, case.bits, case.group_size)
    x = torch.zeros(case.m, case.k, dtype=case.dtype, device=setting.device)
    replay = recorded(setting, [lambda: setting.operations.linear(x, packed)])
    x.normal_()
    [result] = replay()
    return {"case": f"recorded {case}", "right": torch.equal(result, setting.operations.linear(x, packed))}


def check_expanding(setting: Setting) -> dict:
    """Weights of unlike sizes that are expanded beside each other's products, again and again, give what each gives
    alone."""
    sizes = setting.sizes([(36864, 12288), (12288, 12288), (65536, 12288), (12288, 32768)], [(40, 512), (24, 256)])
    weights = [random_packed(setting, *size, 4, None) for size in sizes]
    x = [torch.randn(400, k, device=setting.device).half() for _, k in sizes]
    alone = [setting.operations.linear(*pair) for pair in zip(x, weights, strict=True)]
    ahead = kernels.expanding(setting.operations, setting.device)
    found = [ahead.linear(*pair) for _ in range(5) for pair in zip(x, weights, strict=True)]
    return {"case": "weights expanded beside products", "right": all(map(torch.equal, found, 5 * alone))}


@torch.inference_mode()
def rows(setting: Setting) -> Iterator[dict]:
    """A row for every case; those that are wrong have right = False."""
    chosen = cases(setting.is_toy)
    for case in chosen:
        if not setting.has_time:
            yield {"case": "not all cases: the time was over", "right": True}
            return
        yield check(setting, case)
        if setting.kernels_device:
            yield check_dequantizing(setting, case)
    for case in chosen[:: max(1, len(chosen) // 8)]:
        yield check_graph(setting, case)
    yield check_expanding(setting)


def small_model(setting: Setting) -> Iterator[dict]:
    """The embedded model, quantised while loading: logits in float16 beside those in float32, which torch computes from
    dequantised weights; an answer of both."""
    if reason := lacking():
        yield {"case": reason, "right": True}
        return
    import glm
    from generation import SamplingParams, fill_blanks

    device = str(setting.device)

    def run(dtype: str, bits: int | None, group_size: int | None) -> tuple[torch.Tensor, str]:
        model, tokenizer = glm.load(CHECKPOINT, device, dtype, bits=bits, group_size=group_size)
        tokens = torch.tensor([tokenizer.encode(PROMPT)], device=device)
        positions = torch.arange(tokens.shape[1], device=device)[None]
        with torch.inference_mode():
            logits = model.logits(tokens, positions).cpu()
        [result] = fill_blanks(model, tokenizer, [PROMPT], SamplingParams(top_k=1, max_gen_length=12))
        return logits, result.text

    for bits, group_size in ((4, None), (8, None), (4, 32), (None, None)):
        if not setting.has_time:
            yield {"case": "not all cases: the time was over", "right": True}
            return
        exact, expected = run("float32", bits, group_size)  # which no kernel of ours computes on a GPU
        logits, text = run("float16", bits, group_size)
        error = ((logits - exact).square().mean() / exact.square().mean()).sqrt().item()
        yield {"case": "FP16" if bits is None else scheme_name(bits, group_size), "error of logits": error,
               "answer": text, "same in float32": text == expected, "right": error <= ALLOWED}
