"""The CUDA sources' numbers, without a GPU: every kernel on the emulator against kernels.reference; its choice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import cuda, reference
from kernels.cuda import choice, linear
from kernels.cuda.linear import NOTHING
from kernels.packing import dequantize
from tests.cuda_emulator import Emulator, shared_folder

HALVES = (torch.float16, torch.bfloat16)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shared_folder(tmp_path_factory)


def random_case(m, n, k, bits, group_size, dtype, scale_dtype=torch.float16, biased=True, seed=0):
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=chance).to(dtype)
    weight = torch.randint(-128, 128, (n, k * bits // 8), generator=chance, dtype=torch.int16).to(torch.int8)
    groups = () if group_size is None else (k // group_size,)
    scale = (torch.rand((n, *groups), generator=chance) * 0.02 + 0.001).to(scale_dtype)
    bias = torch.randn(n, generator=chance).to(dtype) if biased else None
    return x, weight, scale, bias, bits, group_size


def assert_as_near_as_torch(result, x, weight, scale, bias, bits, group_size, end=NOTHING):
    """Errors against float32 are at most twice those of the same product in torch at x's precision: the largest one,
    and their mean square. One rounding of the result is granted to both."""
    exact = end.of(reference.weight_only_linear(x.float(), weight, scale, None if bias is None else bias.float(), bits,
                                                group_size))
    torch_s = end.of(reference.weight_only_linear(x, weight, scale, bias, bits, group_size))
    rounding = exact.abs().max() * torch.finfo(x.dtype).eps / 2
    assert result.dtype is x.dtype and result.shape == exact.shape
    error, allowed = (result.float() - exact).abs(), (torch_s.float() - exact).abs()
    assert error.max() <= 2 * allowed.max() + rounding
    assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + rounding / 4


def run(folder, case, **device):
    emulator = Emulator(folder, **device)
    with torch.no_grad():
        result = cuda.Operators(lambda _: emulator).weight_only_linear(*case)
    assert_as_near_as_torch(result, *case)
    return emulator.launched


# k = 672 is no whole number of stages, 40 and 72 rows no whole number of tiles.
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("m, n, kernels", [(1, 40, "1 1"), (2, 16, "1 1"), (3, 40, "1 2"), (8, 72, "2 4")])
def test_skinny_kernels_with_a_scale_for_each_row(folder, bits, dtype, m, n, kernels):
    kernel = dict(zip((8, 4), kernels.split(), strict=True))[bits]
    assert run(folder, random_case(m, n, 672, bits, None, dtype), processors=1) == [f"skinny_{kernel}_ROW"]


WIDE = [(9, 40, 1, None, 1), (16, 300, 5, 64, 2), (17, 264, 9, None, 1), (33, 24, 6, 32, 3), (65, 40, 1, None, 1),
        (70, 300, 6, 96, 1)]  # of x, of the weight, half steps of columns, group, processors


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("bits, dtype", [(8, torch.bfloat16), (4, torch.float16)])
@pytest.mark.parametrize("m, n, halves, group_size, processors", WIDE)
def test_wide_kernels(folder, bits, dtype, m, n, halves, group_size, processors, backwards):
    """No whole blocks of rows, no whole steps, fewer steps than are copied ahead; columns in parts. Copies are made as
    late as they may be, and (backwards) as early."""
    k = halves * 256 // bits
    if group_size and k % group_size:
        group_size = 256 // bits
    launched = run(folder, random_case(m, n, k, bits, group_size, dtype), processors=processors, backwards=backwards)
    slices = 2 if m <= 16 else 4 if m <= 32 else 8
    assert launched[0] == f"wide_{slices}_{'GROUPS' if group_size else 'ROW'}"
    assert launched[1:] in ([], ["add_parts"])


@pytest.mark.parametrize("splits", [1, 2, 3, 7])
def test_parts_of_the_columns_are_added(folder, splits):
    case = random_case(12, 300, 7 * 128, 4, None, torch.bfloat16)
    x, weight, scale, bias, *_ = case
    out, plan = torch.empty(12, 300, dtype=x.dtype), choice.wide(12, 300, 7 * 128, 4, None, 4, splits)
    assert plan.splits == splits and plan.grid == (splits, 2)
    emulator = Emulator(folder)
    linear.launch(emulator, plan, x.dtype, 4, x, weight, scale, bias, out, 12, 7 * 128, None)
    assert_as_near_as_torch(out, *case)
    assert emulator.launched[1:] == (["add_parts"] if splits > 1 else [])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("group_size", [32, 64, 96, 128, 384])
@pytest.mark.parametrize("m, n", [(1, 24), (4, 40), (7, 72)])
def test_skinny_kernels_with_groups(folder, bits, dtype, group_size, m, n):
    stage = 512 // bits
    launched = run(folder, random_case(m, n, 768, bits, group_size, dtype), processors=2)
    assert launched[0].endswith("STAGE" if group_size % stage == 0 else "CHUNK")


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("group_size", [None, 32, 128, 24])
@pytest.mark.parametrize("m", [1, 2, 3, 9])
def test_simple_kernels_of_older_devices(folder, bits, dtype, group_size, m):
    case = random_case(m, 11, 384, bits, group_size, dtype)
    slices = {1: 1, 2: 2}.get(m, 4)
    assert run(folder, case, has_tensor_cores=False) == [f"simple_{slices}"]


@pytest.mark.parametrize("group_size, scaling", [(None, "ROW"), (128, "STAGE"), (32, "CHUNK")])
@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_that_take_several_shares_of_the_rows(folder, bits, tiles, group_size, scaling):
    """Two blocks for up to 21 shares, the last one not whole; no whole turns along k; both orders of copies."""
    case = random_case(7, 330, 640, bits, group_size, torch.float16)
    x, weight, scale, bias, *_ = case
    out, plan = torch.empty(7, 330, dtype=x.dtype), choice.skinny(330, 640, bits, group_size, tiles, 1)
    assert plan.name == f"skinny_{tiles}_{scaling}" and plan.grid[1] == 2
    for backwards in (False, True):
        linear.launch(Emulator(folder, backwards=backwards), plan, x.dtype, bits, x, weight, scale, bias, out, 7, 640,
                      group_size)
        assert_as_near_as_torch(out, *case)


def test_groups_of_merged_shards_take_the_simple_kernel(folder):
    assert run(folder, random_case(3, 20, 352, 4, 88, torch.float16)) == ["simple_4"]


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("group_size", [None, 32, 256])
@pytest.mark.parametrize("bits", [8, 4])
def test_scales_of_other_types(folder, scale_dtype, group_size, bits):
    for dtype in HALVES:
        run(folder, random_case(2, 16, 512, bits, group_size, dtype, scale_dtype, biased=False))
        run(folder, random_case(2, 16, 512, bits, group_size, dtype, scale_dtype), has_tensor_cores=False)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("k, group_size, kernel", [
    (672, None, "dequantize_eights"), (768, 32, "dequantize_eights"), (88, 88, "dequantize_eights"),
    (264, 24, "dequantize_eights"), (30, None, "dequantize_any"), (60, 12, "dequantize_any"),
    (64, 2, "dequantize_any")])
def test_dequantising_is_bit_exact(folder, bits, dtype, k, group_size, kernel):
    emulator = Emulator(folder)
    for scale_dtype in (torch.float16, torch.float32):
        _, weight, scale, *_ = random_case(1, 5, k, bits, group_size, dtype, scale_dtype)
        for blocks in (None, 1):  # one for each row; one whose teams take several
            result = linear.dequantize(emulator, weight, scale, dtype, bits, group_size, None, blocks)
            assert torch.equal(result, dequantize(weight, scale, bits, dtype))
    assert emulator.launched == [kernel] * 4


def test_every_value_of_a_packed_weight_is_unpacked_right(folder):
    """All 256 bytes at all places of a 16-byte load, read back through the identity."""
    for bits in (8, 4):
        for dtype in HALVES:
            places = 16
            values = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(torch.int8)
            weight = torch.stack([values.roll(place) for place in range(places)], dim=1).contiguous()  # (256, 16)
            k = places * 8 // bits
            x, scale = torch.eye(k, dtype=dtype), torch.ones(256, dtype=torch.float16)
            exact = dequantize(weight, scale, bits, torch.float32)
            for has_tensor_cores, rows in ((True, k), (False, 16)):
                ops = cuda.Operators(lambda _, has=has_tensor_cores: Emulator(folder, has))
                result = ops.weight_only_linear(x[:rows], weight, scale, None, bits, None)
                assert torch.equal(result.float(), exact.t()[:rows])


@settings(max_examples=25)
@given(m=st.integers(1, 20), n=st.integers(1, 70), k_steps=st.integers(1, 24), bits=st.sampled_from([8, 4]),
       dtype=st.sampled_from(HALVES), groups=st.integers(0, 6), tensor_cores=st.booleans(), seed=st.integers(0, 99))
def test_any_shape(folder, m, n, k_steps, bits, dtype, groups, tensor_cores, seed):
    k = 2 * k_steps * max(groups, 1) if seed % 2 else 32 * k_steps * max(groups, 1)
    case = random_case(m, n, k, bits, k // groups if groups else None, dtype, biased=seed % 3 > 0, seed=seed)
    run(folder, case, has_tensor_cores=tensor_cores)


def test_many_rows_go_through_the_dequantised_weight(folder):
    for bits in (8, 4):
        assert run(folder, random_case(321, 24, 256, bits, 64, torch.float16)) == ["dequantize_eights"]
        assert run(folder, random_case(17, 24, 256, bits, None, torch.bfloat16), has_tensor_cores=False) == [
            "dequantize_eights"]


def test_leading_dimensions_no_rows_and_views(folder):
    emulator = Emulator(folder)
    ops = cuda.Operators(lambda _: emulator)
    x, weight, scale, bias, bits, group_size = random_case(6, 16, 256, 4, None, torch.float16)
    flat = ops.weight_only_linear(x, weight, scale, bias, bits, group_size)
    assert torch.equal(ops.weight_only_linear(x.view(2, 3, 256), weight, scale, bias, bits, group_size),
                       flat.view(2, 3, 16))
    assert ops.weight_only_linear(x[:0], weight, scale, bias, bits, group_size).shape == (0, 16)
    wide = torch.zeros(6, 263, dtype=torch.float16)
    wide[:, 7:] = x  # neither contiguous nor aligned
    assert torch.equal(ops.weight_only_linear(wide[:, 7:], weight, scale, bias, bits, group_size), flat)
    long = torch.zeros(6 * 256 + 1, dtype=torch.float16)[1:].view(6, 256).copy_(x)  # contiguous, not aligned
    assert torch.equal(ops.weight_only_linear(long, weight, scale, bias, bits, group_size), flat)
    packed = reference.PackedWeight(weight, scale, bits, group_size)
    assert torch.equal(ops.linear(x, packed, bias), flat)


def test_float32_goes_to_the_reference(folder):
    case = random_case(3, 16, 256, 8, None, torch.float32)
    emulator = Emulator(folder)
    assert torch.equal(cuda.Operators(lambda _: emulator).weight_only_linear(*case),
                       reference.weight_only_linear(*case))
    assert emulator.launched == []


def test_mistakes_are_refused_before_anything_runs(folder):
    x, weight, scale, bias, bits, group_size = random_case(2, 16, 256, 4, None, torch.float16)
    ops = cuda.Operators(lambda _: Emulator(folder))

    def refused(match, **changed):
        arguments = dict(x=x, weight=weight, scale=scale, bias=bias, bits=bits, group_size=group_size) | changed
        with pytest.raises(ValueError, match=match):
            ops.weight_only_linear(**arguments)

    refused("bits is 3", bits=3)
    refused("has 128 columns", bits=8)
    refused("has 256 columns", x=x[:, :254])
    refused("groups of 100 do not divide", group_size=100)
    refused(r"\(16, 2\) is needed", group_size=128)
    refused("bias must have x's dtype", bias=bias.float())
    refused("contiguous int8", weight=weight.t())
    misaligned = torch.zeros(16 * 128 + 4, dtype=torch.int8)[4:].view(16, 128)
    refused("begins 4 bytes behind a multiple of 16.*clone", weight=misaligned)


GLM_130B = [(36864, 12288), (12288, 12288), (65536, 12288), (12288, 32768)]


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_decoding_at_glm_130b_s_shapes_fills_an_h100(parts, bits, m):
    """Skinny kernels throughout; and what is under way at a time is more bytes than keep an H200's memory busy (4.8
    TB/s times the 0.8 microseconds that it takes to answer under load)."""
    for n, k in GLM_130B:
        column_parallel = k == 12288 and n != 12288
        n, k = (n // parts, k) if column_parallel else (n, k // parts)
        for group_size in (None, 32, 128):
            plan = choice.choose(m, n, k, bits, group_size, True, 132)
            _, tiles, _ = plan.name.split("_")
            assert plan.name.startswith("skinny_") and plan.grid[0] == 1
            blocks, warps = plan.grid[1], plan.threads // 32
            turn = 32 * 16 * 2 * int(tiles) * choice.STAGES[int(tiles)]  # bytes that a warp asks for
            assert (choice.DEPTH[int(tiles)] - 1) * blocks * warps * turn >= 4.8e12 * 0.8e-6
            assert 132 <= blocks <= 2 * 132
            x_share = m * 2 / (16 * int(tiles) * bits / 8)  # read from L2, to bytes of the weight
            assert x_share <= (1 if n < 12288 else 0.5)


def test_choice_at_the_edges():
    def name(*arguments):
        plan = choice.choose(*arguments)
        return plan and plan.name

    assert name(8, 12288, 12288, 4, None, True, 132) == "skinny_4_ROW"
    assert name(9, 12288, 12288, 4, None, True, 132) == "wide_2_ROW"
    assert name(33, 12288, 12288, 8, 128, True, 132) == "wide_8_GROUPS"
    assert name(320, 12288, 12288, 4, None, True, 132) == "wide_8_ROW"
    assert name(321, 12288, 12288, 4, None, True, 132) is None
    assert name(16, 12288, 12288, 4, None, False, 80) == "simple_4"
    assert name(17, 12288, 12288, 4, None, False, 80) is None
    assert name(1, 12288, 12288 + 16, 4, None, True, 132) is None  # rows that are no whole number of 16 bytes
    assert name(1, 12288, 12288 + 16, 8, None, True, 132) == "skinny_1_ROW"
    assert name(1, 12288, 12288, 4, 12288, True, 132) == "skinny_1_ROW"  # one group is one scale a row
    assert name(1, 12288, 12288, 4, 4, True, 132) is None
    assert choice.choose(1, 16 * 65536, 256, 4, None, True, 132).grid == (1, 264)  # two blocks a processor, at most
    assert name(9, 65536 * 256, 128, 4, None, True, 132) is None  # more blocks than a grid has
    assert name(8, 512, 12288, 4, None, True, 132) == "skinny_1_ROW"  # few rows of weights: smaller tiles


def test_the_columns_are_cut_where_blocks_are_few():
    """An H100's 132 processors, weights of GLM-130B: no processor has more than a quarter above its share of the steps
    for 64 rows, and each part has some steps."""
    for n, k in GLM_130B:
        plan = choice.wide(64, n, k, 4, None, 132)
        steps, blocks = k // 128, plan.grid[0] * plan.grid[1]
        most = -(-blocks // 132) * -(-steps // plan.splits)
        assert most <= 1.25 * n / 256 * steps / 132 and steps // plan.splits >= 6
    assert choice.wide(64, 65536, 128, 4, None, 132).splits == 1  # there is one step
