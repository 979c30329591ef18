"""What a decoding step computes between its products and at their ends: right by torch's operations in float64, and its
time beside torch's and beside bytes over bandwidth."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from kernels import reference
from kernels.cuda import linear, norms, reduce
from kernels.cuda.attention import Workspace, decode_attention
from kernels.layer import Activation, Rotary
from kernels.reference import Lengths, Shared
from tools.checking_gpu.products import NO_CACHE_HOLDS, copies
from tools.checking_gpu.setting import Bandwidth, Setting, bytes_of, seconds_each

DTYPE = torch.float16


@torch.inference_mode()
def kernels(setting: Setting) -> Iterator[dict]:
    """The first row has the bandwidth; of others `right` tells."""
    if setting.kernels_device is None:
        yield {"case": "not checked: there are no kernels here"}
        return
    ceiling = Bandwidth(setting).measure()
    yield {"case": "read bandwidth", "GB/s": ceiling / 1e9}
    for work in (attention, residual_norms, ends, sums):
        for row in work(setting, ceiling):
            yield row
            if not setting.has_time:
                return


def measured(setting: Setting, case: str, calls: list[Callable[[], Tensor]], torch_s: list[Callable[[], Tensor]],
             exact: Tensor, bytes_: int, ceiling: float) -> dict:
    """calls and torch_s differ only in the memory that they read; exact: the first one's result in float64."""
    found, theirs = calls[0](), torch_s[0]()
    error, allowed = ((result - exact).abs().max().item() for result in (found, theirs))
    rounding = exact.abs().max().item() * torch.finfo(DTYPE).eps
    return {"case": case, "us": seconds_each(setting, calls) * 1e6, "floor us": bytes_ / ceiling * 1e6,
            "torch us": seconds_each(setting, torch_s) * 1e6, "error": error, "torch's error": allowed,
            "right": error <= 2 * allowed + rounding and torch.equal(found, calls[0]())}


def random(setting: Setting, *shape: int) -> Tensor:
    return torch.randn(shape, device=setting.device).to(DTYPE)


def attention(setting: Setting, ceiling: float) -> Iterator[dict]:
    """Heads of GLM-130B, whole and an eighth, and of ChatGLM2-6B; of several rows also those of a shared context."""
    d, n = setting.config.head_size, setting.config.num_attention_heads
    shapes = [(b, heads, groups, places) for b in (1, 4) for heads, groups in ((n, n), (n // 8, n // 8), (32, 2))
              for places in (512, 2048)]
    for b, heads, groups, places in setting.sizes(shapes, [(2, 4, 4, 40), (1, 4, 2, 70)]):
        bytes_ = 2 * b * groups * places * d * 2
        layers = setting.sizes(-(-NO_CACHE_HOLDS * b // bytes_) + 1, 2)  # also where all rows read those of one
        cache = random(setting, 2, layers, b, groups, places + 8, d)
        qkv = random(setting, b, 1, (heads + 2 * groups) * d)
        lengths = torch.full((b,), places, device=setting.device)
        angles = torch.randn(b, 1, d // 2, device=setting.device).repeat(1, 1, 2)
        cosine, sine = angles.cos(), angles.sin()
        is_shared, start = groups < heads, Lengths(lengths, places)
        workspace = Workspace.allocate(setting.kernels_device, qkv, b, heads, groups, d, places + 8)

        def in_torch(layer, type_=DTYPE, x=qkv, kept=cache, at=start, g=groups, is_shared=is_shared, cos=cosine,
                     sin=sine):
            x, keys, values = x.to(type_), kept[0, layer].to(type_), kept[1, layer].to(type_)
            if is_shared:
                return reference.attend_groups(x, g, d, cos, sin, keys, values, at)
            return reference.attend(x, cos, sin, keys, values, at)

        rotary = Rotary.PAIRS if is_shared else Rotary.HALVES
        name = f"attention, {b} rows, {heads} heads of {groups}, {places} places"
        for shared in (None, Shared(torch.zeros_like(lengths), lengths)) if b > 1 else (None,):
            if shared is not None:  # each row has a copy all the same, which torch reads
                cache[:, :, 1:, :, :places] = cache[:, :, :1, :, :places]
                name, bytes_ = f"{name} in common", bytes_ // b
            calls = [partial(decode_attention, setting.kernels_device, qkv, cache[0, layer], cache[1, layer], lengths,
                             rotary, not is_shared, cosine, sine, shared=shared, workspace=workspace)
                     for layer in range(layers)]
            yield measured(setting, name, calls, [partial(in_torch, layer) for layer in range(layers)],
                           in_torch(0, torch.float64), bytes_, ceiling)


def residual_norms(setting: Setting, ceiling: float) -> Iterator[dict]:
    h = setting.config.hidden_size
    weight, bias = random(setting, h), random(setting, h)
    for count in setting.sizes([1, 4, 2048], [3]):
        x, residual = random(setting, count, h), random(setting, count, h)
        for has_bias in (True, False):
            def in_torch(type_=DTYPE, x=x, residual=residual, has_bias=has_bias):
                total = reference.scaled_add(residual.to(type_), x.to(type_), 11.8)
                if has_bias:
                    return reference.layer_norm(total, weight.to(type_), bias.to(type_), 1e-5)
                return reference.rms_norm(total, weight.to(type_), 1e-5)

            call = partial(norms.norm, setting.kernels_device, x, weight, bias if has_bias else None, 1e-5, residual,
                           11.8)
            yield measured(setting, f"residual and {'layer' if has_bias else 'RMS'} norm of {count} rows", [call] * 8,
                           [in_torch] * 8, in_torch(torch.float64), 6 * count * h, ceiling)


def ends(setting: Setting, ceiling: float) -> Iterator[dict]:
    """GeGLU in the end of the MLP's first product, the residual in that of its second."""
    h, inner = setting.config.hidden_size, setting.config.inner_hidden_size
    for m in setting.sizes([1, 4, 16, 64], [3]):
        for name, n, k in (("in, GeGLU", 2 * inner, h), ("out, residual", h, inner)):
            weights, x = copies(setting, n, k, 4, None), random(setting, m, k)
            end = linear.End(Activation.GEGLU) if n == 2 * inner else linear.End(None, random(setting, m, n), 11.8)
            calls = [partial(linear.weight_only_linear, setting.kernels_device, x, w.weight, w.scale, None, 4, None,
                             end) for w in weights]
            apart = [lambda w=w, x=x, end=end: end.of(setting.operations.linear(x, w)) for w in weights]
            exact = end._replace(residual=None if end.residual is None else end.residual.double()).of(
                reference.linear(x.float(), weights[0]).double())
            yield measured(setting, f"{name}, {m} rows", calls, apart, exact, bytes_of(weights[0]), ceiling)


def sums(setting: Setting, ceiling: float) -> Iterator[dict]:
    """Two ranks on one GPU: each launch waits on a stream of its own for the other one's part."""
    if setting.device.type != "cuda":
        return
    areas = [torch.zeros(reduce.area_bytes(2), dtype=torch.uint8, device=setting.device) for _ in range(2)]
    streams = [torch.cuda.Stream(setting.device) for _ in range(2)]
    ranks = [reduce.Sums(setting.kernels_device, rank, areas, torch.zeros(2 * reduce.BLOCKS, dtype=torch.int32,
                                                                          device=setting.device),
                         torch.zeros(1, dtype=torch.int32, pin_memory=True), patience=5) for rank in range(2)]
    residual, weight, bias = random(setting, 3, 8, setting.config.hidden_size).unbind()
    for count in (1, 8):
        parts = [random(setting, count, setting.config.hidden_size) for _ in range(2)]
        torch.cuda.synchronize()
        found, normed = [], []
        for turn in range(8):  # both slots of both, twice
            for rank, stream, part in zip(ranks, streams, parts, strict=True):
                with torch.cuda.stream(stream):  # loading the second kernel may wait for what runs: both ranks' first
                    if turn % 2 == 0:
                        found.append(rank.sum(part))
                    else:
                        normed.append(rank.norm(part, weight[0], bias[0], 1e-5, residual[:count], 11.8, bias[1]))
        torch.cuda.synchronize()
        exact = (parts[0].float() + parts[1].float()).to(DTYPE)
        yield {"case": f"sum over two ranks, {count} rows", "right": all(torch.equal(out, exact) for out in found)}
        total = sum(part.double() for part in (*parts, bias[1], 11.8 * residual[:count].double()))
        exact = reference.layer_norm(total, weight[0].double(), bias[0].double(), 1e-5)
        error = max(float((out - exact).abs().max()) for out in normed)
        yield {"case": f"norm of a sum over two ranks, {count} rows", "error": error,
               "right": error < 0.01 and all(torch.equal(out, normed[0]) for out in normed)}
