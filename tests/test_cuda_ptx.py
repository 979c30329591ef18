"""The compiled CUDA kernels' numbers, without a GPU: their PTX interpreted, against kernels.reference. Needs nvcc."""

import pytest
import torch

from kernels import cuda
from kernels.cuda import linear
from kernels.cuda.build import Program
from kernels.packing import dequantize
from tests.cuda_emulator import shared_folder
from tests.ptx_arithmetic import Fault
from tests.ptx_interpreter import Interpreter, parsed
from tests.test_cuda_kernels import assert_as_near_as_torch, random_case

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = {4: torch.float16, 8: torch.bfloat16}  # each width with one dtype of x: both take seconds to compile


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shared_folder(tmp_path_factory)


@pytest.mark.parametrize("bits, m, n, k, group_size, kernel", [
    (4, 1, 20, 288, None, "skinny_1_ROW"), (4, 3, 40, 256, 128, "skinny_2_STAGE"),
    (4, 8, 72, 160, 32, "skinny_4_CHUNK"), (4, 2, 11, 192, 24, "simple_2"), (4, 9, 18, 672, None, "wide_2_ROW"),
    (8, 1, 20, 144, None, "skinny_1_ROW"), (8, 3, 40, 128, 64, "skinny_1_STAGE"),
    (8, 8, 72, 80, 16, "skinny_2_CHUNK"), (8, 1, 11, 96, None, "simple_1"), (8, 19, 18, 144, 48, "wide_4_GROUPS")])
def test_products(folder, bits, m, n, k, group_size, kernel):
    case = random_case(m, n, k, bits, group_size, WEIGHTS[bits])
    device = Interpreter(folder, has_tensor_cores=not kernel.startswith("simple"), processors=1)
    with torch.no_grad():
        result = cuda.Operators(lambda _: device).weight_only_linear(*case)
    assert_as_near_as_torch(result, *case)
    assert device.launched[0] == kernel and device.launched[1:] in ([], ["add_parts"])
    assert device.conflicts == 0


@pytest.mark.parametrize("bits, k, group_size", [(4, 96, 24), (8, 30, None)])
def test_dequantised_weights_are_the_same_bits(folder, bits, k, group_size):
    _, weight, scale, *_ = random_case(1, 5, k, bits, group_size, WEIGHTS[bits])
    found = linear.dequantize(Interpreter(folder), weight, scale, WEIGHTS[bits], bits, group_size)
    assert torch.equal(found, dequantize(weight, scale, bits, WEIGHTS[bits]))


def test_a_barrier_that_is_left_out_is_found(folder):
    case = random_case(1, 20, 288, 4, None, torch.float16)
    kernel = parsed(folder, Program(linear.SOURCE, 0, 4), "skinny_1_ROW")
    places = [place for place, (operation, *_) in enumerate(kernel.code) if operation == "bar.sync"]
    assert places
    kept = {place: kernel.code[place] for place in places}
    for place in places:
        kernel.code[place] = ("mov.u32", ["%unused", "0"], None)
    try:
        with pytest.raises(Fault, match=r"^shared memory is read"), torch.no_grad():
            cuda.Operators(lambda _: Interpreter(folder)).weight_only_linear(*case)
    finally:
        for place, instruction in kept.items():
            kernel.code[place] = instruction
