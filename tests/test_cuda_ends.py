"""What stands at the end of a product on CUDA: activation and residual, on the emulator and as interpreted PTX."""

import pytest
import torch

from kernels.cuda import choice, linear
from kernels.cuda.linear import End
from kernels.layer import Activation
from tests.cuda_emulator import Emulator, shared_folder
from tests.ptx_interpreter import Interpreter
from tests.test_cuda_kernels import HALVES, assert_as_near_as_torch, random_case

pytestmark = pytest.mark.usefixtures("one_thread")
ENDS = [None, *Activation]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shared_folder(tmp_path_factory)


def end_of(case, activation, has_residual=True) -> End:
    x, weight = case[:2]
    end = End(activation)
    residual = torch.randn(x.shape[0], weight.shape[0] // end.rows, generator=torch.Generator().manual_seed(1))
    return End(activation, residual.to(x.dtype), 1.7) if has_residual else end


def run(device, case, end):
    with torch.no_grad():
        result = linear.weight_only_linear(device, *case, end)
    assert_as_near_as_torch(result, *case, end)
    return device.launched


@pytest.mark.parametrize("bits, dtype", [(4, torch.float16), (8, torch.bfloat16)])
@pytest.mark.parametrize("activation", ENDS)
@pytest.mark.parametrize("m, n, kernel", [(1, 40, "skinny_1"), (3, 72, "skinny_"), (8, 200, "skinny_"),
                                          (17, 200, "wide_4")])
def test_products_end_with_activation_and_residual(folder, bits, dtype, activation, m, n, kernel):
    """Whole tiles and tails; half of 200 rows ends inside of a tile."""
    case = random_case(m, n, 640, bits, None, dtype)
    [launched] = run(Emulator(folder, processors=2), case, end_of(case, activation, m != 3))
    assert launched.startswith(kernel)


@pytest.mark.parametrize("activation", [None, Activation.GEGLU, Activation.GELU])
def test_the_end_of_a_product_in_parts(folder, activation):
    """What stands there is done to their sum; more results than a block adds up."""
    case = random_case(9, 560, 512, 4, 128, torch.float16)
    x, weight, scale, bias, *_ = case
    end, emulator = end_of(case, activation), Emulator(folder)
    out = torch.empty(9, 560 // end.rows, dtype=x.dtype)
    plan = choice.wide(9, 560, 512, 4, 128, 4, splits=3)
    linear.launch(emulator, plan, x.dtype, 4, x, weight, scale, bias, out, 9, 512, 128, end)
    assert_as_near_as_torch(out, *case, end)
    assert emulator.launched == ["wide_2_GROUPS", "add_parts"]


@pytest.mark.parametrize("group_size", [32, 128])
@pytest.mark.parametrize("activation", [Activation.GEGLU, Activation.SWIGLU])
def test_gated_ends_of_grouped_weights(folder, activation, group_size):
    for dtype in HALVES:
        case = random_case(4, 56, 512, 4, group_size, dtype)
        run(Emulator(folder, processors=2), case, end_of(case, activation))


@pytest.mark.parametrize("activation", ENDS)
@pytest.mark.parametrize("m", [1, 2, 5])
def test_ends_of_the_simple_kernels(folder, activation, m):
    case = random_case(m, 22, 192, 4, 24, torch.float16)
    assert run(Emulator(folder, has_tensor_cores=False), case, end_of(case, activation)) == [
        f"simple_{1 if m == 1 else 2 if m == 2 else 4}"]


def test_many_rows_end_in_torch(folder):
    case = random_case(321, 24, 256, 4, None, torch.float16)
    assert run(Emulator(folder), case, end_of(case, Activation.GEGLU)) == ["dequantize_eights"]


@pytest.mark.parametrize("activation", ENDS)
def test_ends_in_ptx(folder, activation):
    case = random_case(2, 24, 256, 4, None, torch.float16)
    assert run(Interpreter(folder, processors=2), case, end_of(case, activation)) == ["skinny_1_ROW"]


def test_ends_that_do_not_fit_are_refused(folder):
    case = random_case(2, 23, 256, 4, None, torch.float16)
    with pytest.raises(ValueError, match="halves of a gated activation are made of 23 rows"):
        run(Emulator(folder), case, End(Activation.GEGLU))
    with pytest.raises(ValueError, match=r"residual is torch.float32 \(2, 23\); torch.float16 \(2, 23\)"):
        run(Emulator(folder), case, End(residual=torch.zeros(2, 23)))
