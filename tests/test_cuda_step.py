"""What a decoding step computes between its products on CUDA (step.cu): attention, norms; on the emulator,
and as interpreted PTX, against kernels.reference."""

import pytest
import torch

from kernels import cuda, reference
from kernels.cuda import norms
from kernels.cuda.attention import Workspace, decode_attention
from kernels.cuda.stack import Stack
from kernels.layer import Activation, LayerForm, LayerWeights, Rotary, by_heads, stack
from kernels.reference import Lengths, PackedWeight, Shared
from tests.cuda_emulator import Emulator, shared_folder
from tests.ptx_interpreter import Interpreter
from tests.test_cuda_kernels import random_case

pytestmark = pytest.mark.usefixtures("one_thread")
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shared_folder(tmp_path_factory)


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def assert_as_near_as_torch(found, exact, torch_s):
    """Errors against float64 are at most twice those of torch's operations, and one rounding of the result; in float32
    a few, as each step of the arithmetic rounds like the result."""
    rounding = exact.abs().max() * torch.finfo(found.dtype).eps * (4 if found.dtype is torch.float32 else 1)
    assert found.dtype is torch_s.dtype and found.shape == exact.shape
    assert (found - exact).abs().max() <= 2 * (torch_s - exact).abs().max() + rounding


def attention_case(b, n, g, d, capacity, lengths, rotary, dtype, is_by_heads=True):
    """The arguments of decode_attention and the same attention in torch, whose cache it fills."""
    qkv, (keys, values) = random(b, 1, (n + 2 * g) * d, dtype=dtype), random(2, b, g, capacity, d, dtype=dtype)
    r = d // 2 if rotary is Rotary.PAIRS else d
    angles = random(b, 1, r // 2, seed=1).repeat(1, 1, 2) * 3
    if rotary is Rotary.HALVES_2D:
        angles = torch.cat([random(b, 1, r // 4, seed=seed).repeat(1, 1, 2) for seed in (2, 3)], dim=-1)
    cosine, sine = angles.cos(), angles.sin()
    if rotary is Rotary.NONE:
        cosine, sine = torch.ones(b, 1, d), torch.zeros(b, 1, d)
    each = torch.tensor(lengths)

    def in_torch(type_):
        cache, start = [keys.to(type_, copy=True), values.to(type_, copy=True)], Lengths(each, max(lengths))
        x = qkv.to(type_)
        if rotary is Rotary.PAIRS:
            out = reference.attend_groups(x, g, d, cosine, sine, *cache, start)
        else:
            x = x if is_by_heads else by_heads(x, d)
            out = reference.attend(x, cosine, sine, *cache, start, positions_2d=rotary is Rotary.HALVES_2D)
        return out, cache

    given = (None, None) if rotary is Rotary.NONE else (cosine, sine)
    return (qkv, keys, values, each, rotary, is_by_heads, *given), in_torch


def check_attention(device, arguments, in_torch, **more):
    (exact, exact_cache), (torch_s, cache), before = in_torch(torch.float64), in_torch(arguments[0].dtype), [
        tensor.clone() for tensor in arguments[1:3]]
    found = decode_attention(device, *arguments, **more)
    assert_as_near_as_torch(found, exact, torch_s)
    for ours, old, wanted, theirs in zip(arguments[1:3], before, exact_cache, cache, strict=True):
        assert_as_near_as_torch(ours, wanted, theirs)
        written = torch.zeros_like(ours, dtype=torch.bool)
        written[torch.arange(len(arguments[3])), :, arguments[3]] = True
        assert torch.equal(ours[~written], old[~written])
    return found


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("d, rotary", [(24, Rotary.NONE), (64, Rotary.HALVES), (40, Rotary.HALVES_2D),
                                       (128, Rotary.HALVES_2D), (104, Rotary.HALVES)])
def test_attention_of_rows_of_unlike_lengths(folder, dtype, d, rotary):
    """No place before, one, a whole turn of a block and more, the last place of the cache."""
    case = attention_case(4, 2, 2, d, 130, [0, 1, 64, 129], rotary, dtype, is_by_heads=d != 24)
    emulator = Emulator(folder, processors=8)
    check_attention(emulator, *case)
    assert emulator.launched == [f"attention_{ {24: 4, 40: 8, 64: 8, 104: 16, 128: 16}[d] * dtype.itemsize // 2}_1"]


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_blocks_that_share_a_row(folder, splits, backwards):
    """The last one to end adds up, whichever it is; the workspace serves the next step as it is."""
    arguments, in_torch = attention_case(2, 2, 2, 32, 300, [40, 290], Rotary.HALVES, torch.float16)
    workspace = Workspace(torch.full((2, 2, splits, 34), torch.nan), torch.zeros(4, dtype=torch.int32))
    for _ in range(2):
        check_attention(Emulator(folder, backwards=backwards), arguments, in_torch, workspace=workspace)
        assert not workspace.arrived.any()


@pytest.mark.parametrize("n, g", [(4, 1), (6, 2), (32, 2), (5, 1)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_heads_that_share_keys_and_values(folder, n, g, dtype):
    case = attention_case(2, n, g, 64, 100, [7, 99], Rotary.PAIRS, dtype, is_by_heads=False)
    emulator = Emulator(folder, processors=8)
    check_attention(emulator, *case)
    assert emulator.launched[0].endswith("_4")


def test_places_before_the_start_are_not_seen(folder):
    arguments, _ = attention_case(2, 2, 2, 64, 100, [60, 90], Rotary.HALVES, torch.float32)
    qkv, keys, values, lengths, *rest = arguments
    starts = torch.tensor([5, 90])
    whole = decode_attention(Emulator(folder), qkv, keys, values, lengths, *rest, starts=starts)
    for row, start in enumerate(starts.tolist()):
        keys[row, :, :start] = values[row, :, :start] = torch.nan
    assert torch.equal(decode_attention(Emulator(folder), qkv, keys, values, lengths, *rest, starts=starts), whole)
    assert torch.equal(whole[1], qkv.view(2, 1, 2, 3, 64)[1, :, :, 2].flatten(1))  # sees itself alone


def test_rows_that_share_a_context(folder):
    """As if each had a copy of it."""
    arguments, in_torch = attention_case(3, 2, 2, 64, 100, [60, 70, 80], Rotary.HALVES, torch.float16)
    keys, values = arguments[1:3]
    keys[1:, :, :50], values[1:, :, :50] = keys[:1, :, :50], values[:1, :, :50]
    copied = check_attention(Emulator(folder), arguments, in_torch)
    keys[1:, :, :50] = values[1:, :, :50] = torch.nan
    shared = Shared(torch.zeros(3, dtype=torch.int64), torch.full((3,), 50))
    assert torch.equal(decode_attention(Emulator(folder), *arguments, shared=shared), copied)


def test_a_cache_that_is_full_is_not_written_behind(folder):
    arguments, _ = attention_case(1, 1, 1, 64, 32, [31], Rotary.HALVES, torch.float16)
    qkv, keys, values, lengths, *rest = arguments
    before = keys.clone()
    decode_attention(Emulator(folder), qkv, keys, values, lengths + 1, *rest)
    assert torch.equal(keys, before)


def test_the_layers_of_one_cache(folder):
    """Views of one tensor, with a prefix in front of the rows."""
    arguments, in_torch = attention_case(2, 2, 2, 64, 100, [60, 99], Rotary.HALVES, torch.float16)
    whole = torch.zeros(2, 3, 2, 2, 100, 64, dtype=torch.float16)
    whole[0, 1], whole[1, 1] = arguments[1], arguments[2]
    check_attention(Emulator(folder), (arguments[0], whole[0, 1], whole[1, 1], *arguments[3:]), in_torch)
    assert not whole[:, ::2].any()


@pytest.mark.parametrize("dtype, n, g, d, rotary", [
    (torch.float16, 1, 1, 40, Rotary.HALVES_2D), (torch.float16, 3, 1, 24, Rotary.PAIRS),
    pytest.param(torch.bfloat16, 5, 1, 128, Rotary.PAIRS, marks=pytest.mark.slow),
    pytest.param(torch.float32, 1, 1, 104, Rotary.HALVES, marks=pytest.mark.slow)])
def test_attention_in_ptx(folder, dtype, n, g, d, rotary):
    case = attention_case(1, n, g, d, 80, [70], rotary, dtype, is_by_heads=n == g)
    workspace = Workspace(torch.zeros(1, n, 2, 2 + d), torch.zeros(g * -(-n // g // 4), dtype=torch.int32))
    check_attention(Interpreter(folder), *case, workspace=workspace)
    assert not workspace.arrived.any()


def test_attention_refuses_what_does_not_fit(folder):
    arguments, _ = attention_case(2, 2, 2, 64, 100, [60, 70], Rotary.HALVES, torch.float16)
    names = ("qkv", "keys", "values", "lengths", "rotary", "is_by_heads", "cosine", "sine")

    def refused(match, **changed):
        with pytest.raises(ValueError, match=match):
            decode_attention(Emulator(folder), **dict(zip(names, arguments, strict=True)) | changed)

    refused(r"qkv is \(2, 1, 383\)", qkv=arguments[0][..., :-1])
    refused("values torch.float32", values=arguments[2].float())
    refused("lengths, starts and shared places", lengths=arguments[3].int())
    refused("cosine and sine", sine=None)
    refused("made for other shapes", workspace=Workspace(torch.zeros(2, 2, 1, 40), torch.zeros(4, dtype=torch.int32)))
    keys = arguments[1].transpose(1, 2).contiguous().transpose(1, 2)
    refused("place by place", keys=keys, values=keys.clone(memory_format=torch.preserve_format))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("h, kernel", [(8, "norm_1"), (1000, "norm_1"), (4104, "norm_1"), (12288, "norm_2")])
@pytest.mark.parametrize("has_bias", [True, False])
def test_norms(folder, dtype, h, kernel, has_bias):
    x, residual = random(2, 1, h, dtype=dtype) * 3 + 1, random(2, 1, h, dtype=dtype, seed=1)
    weight, added = random(h, dtype=dtype), random(h, dtype=dtype, seed=3)
    bias = random(h, dtype=dtype, seed=1) if has_bias else None

    def in_torch(type_, total):
        w, b = (None if part is None else part.to(type_) for part in (weight, bias))
        return reference.rms_norm(total, w, 1e-5) if b is None else reference.layer_norm(total, w, b, 1e-5)

    emulator, total = Emulator(folder), torch.empty_like(x)
    for alpha, given, more in ((1.0, None, (None, None)), (11.8, residual, (added, total))):
        sums = [x.to(type_) if given is None else reference.scaled_add(given.to(type_), (x + added).to(type_), alpha)
                for type_ in (torch.float64, dtype)]
        if given is not None:
            sums[0] = x.double() + added.double() + alpha * given.double()
        exact, torch_s = (in_torch(total.dtype, total) for total in sums)
        assert_as_near_as_torch(norms.norm(emulator, x, weight, bias, 1e-5, given, alpha, *more), exact, torch_s)
    assert_as_near_as_torch(total, *sums)
    if dtype is not torch.float32:
        assert emulator.launched == [kernel] * 2


def test_norms_of_no_rows_and_of_what_does_not_fit(folder):
    weight = torch.ones(12, dtype=torch.float16)
    assert norms.norm(Emulator(folder), torch.zeros(0, 8), torch.ones(8), None, 1e-5).shape == (0, 8)
    with pytest.raises(ValueError, match="in rows of whole 16 bytes"):
        norms.norm(Emulator(folder), torch.zeros(2, 12, dtype=torch.float16), weight, None, 1e-5)
    with pytest.raises(ValueError, match=r"float16 \(2, 8\) torch.float16 \(12,\); they must"):
        norms.norm(Emulator(folder), torch.zeros(2, 8, dtype=torch.float16), weight, None, 1e-5)
    with pytest.raises(ValueError, match="the residual is torch.float32"):
        norms.norm(Emulator(folder), torch.zeros(2, 8).half(), weight[:8], None, 1e-5, torch.zeros(2, 8))


def test_norms_in_ptx(folder):
    x, weight, bias = random(1, 264, dtype=torch.float16), random(264).half(), random(264, seed=1).half()
    exact = reference.residual_layer_norm(x.double(), x.double(), 2.0, weight.double(), bias.double(), 1e-5)
    torch_s = reference.residual_layer_norm(x, x, 2.0, weight, bias, 1e-5)
    assert_as_near_as_torch(norms.norm(Interpreter(folder), x, weight, bias, 1e-5, x, 2.0), exact, torch_s)
    exact, torch_s = (reference.rms_norm(x.to(type_), weight.to(type_), 1e-5) for type_ in (torch.float64, x.dtype))
    assert_as_near_as_torch(norms.norm(Interpreter(folder), x, weight, None, 1e-5), exact, torch_s)


@pytest.mark.parametrize("start", [5, Lengths(torch.tensor([5, 3]), 5)], ids=["alike", "each its own"])
def test_the_backend_computes_layers_with_these_kernels(folder, start, monkeypatch):
    def norms():
        return random(64, dtype=torch.float16) + 1, random(64, seed=1, dtype=torch.float16)

    def linear(n, k):
        return random(n, k, dtype=torch.float16) * k**-0.5, random(n, dtype=torch.float16)

    layer = LayerWeights(*norms(), *linear(192, 64), *linear(64, 64), *norms(), *linear(192, 64), *linear(64, 96))
    form = LayerForm(Activation.GEGLU, Rotary.HALVES, 1.5, 1e-5, is_pre_norm=False, is_by_heads=True)
    hidden, angles = random(2, 1, 64), random(2, 1, 16).repeat(1, 1, 2)

    def run(dtype, ops):
        weights = LayerWeights(*(part.to(dtype) for part in layer))
        caches = [[random(2, 2, 9, 32, seed=seed, dtype=torch.float16).to(dtype)] for seed in (1, 2)]
        return stack([weights], weights[:2], *caches, form, hidden.half().to(dtype), angles.cos(), angles.sin(), start,
                     operations=ops)

    emulator = Emulator(folder)
    found = run(torch.float16, cuda.Operators(lambda _: emulator))
    assert emulator.launched == ["norm_1", "attention_4_1", "norm_1", "norm_1"]
    assert_as_near_as_torch(found, run(torch.float64, reference), run(torch.float16, reference))
    monkeypatch.setenv("GLM_CUDA_KERNELS", "no")
    assert torch.equal(run(torch.float16, cuda.Operators(lambda _: emulator)), run(torch.float16, reference))
    assert len(emulator.launched) == 4


def test_a_decoding_step_is_seven_kernels_a_layer(folder):
    """Packed weights: norms, attention, and products with GeGLU and residuals in their ends; lengths on the device."""
    def packed(n, k, seed):
        _, weight, scale, bias, *_ = random_case(1, n, k, 4, None, torch.float16, seed=seed)
        return PackedWeight(weight, scale, 4), bias

    def norms(seed):
        return random(64, dtype=torch.float16, seed=seed) + 1, random(64, seed=seed + 1, dtype=torch.float16)

    layer = LayerWeights(*norms(0), *packed(192, 64, 1), *packed(64, 64, 2), *norms(2), *packed(192, 64, 3),
                         *packed(64, 96, 4))
    form = LayerForm(Activation.GEGLU, Rotary.HALVES, 1.5, 1e-5, is_pre_norm=False, is_by_heads=True)
    hidden, angles = random(2, 1, 64).half(), random(2, 1, 16).repeat(1, 1, 2)
    start, emulator = Lengths(torch.tensor([5, 3]), 5), Emulator(folder)

    def run(dtype, step):
        caches = [[random(2, 2, 9, 32, seed=seed, dtype=torch.float16).to(dtype)] for seed in (1, 2)]
        weights = LayerWeights(*(part.to(dtype) if isinstance(part, torch.Tensor) else part for part in layer))
        return step([weights], weights[:2], *caches, hidden.to(dtype), angles.cos(), angles.sin(), start)

    def walked(layers, norm, keys, values, *rest):
        return stack(layers, norm, keys, values, form, *rest)

    with torch.no_grad():
        found = run(torch.float16, lambda layers, norm, keys, values, *rest: Stack(
            cuda.Operators(lambda _: emulator), layers, norm, keys, values, form).step(*rest))
        assert_as_near_as_torch(found, run(torch.float32, walked), run(torch.float16, walked))
    names = [name.partition("_")[0] for name in emulator.launched]
    assert names == ["norm", "skinny", "attention", "skinny", "norm", "skinny", "skinny", "norm"]
