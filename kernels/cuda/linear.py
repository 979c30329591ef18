"""Weight-only linear layers: the chosen kernel (choice.py) and its arguments."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import is_recording, reference
from kernels.cuda.build import KINDS, Program
from kernels.cuda.choice import LARGEST_INDEX, Plan, blocks_beside, choose, fits_eights
from kernels.cuda.driver import ALIGNMENT, Call, aligned
from kernels.cuda.expansion import Expansions
from kernels.layer import Activation, activated
from kernels.reference import check_packed

SOURCE = "linear.cu"
TEAM, TEAMS, ADDING_THREADS = 256, 4, 256  # TEAM as in dequantize.h


class End(NamedTuple):
    """What stands at the end of a product: activation(x W^T + bias) + alpha * residual."""

    activation: Activation | None = None
    residual: Tensor | None = None  # shaped as the result, of its dtype
    alpha: float = 1.0

    @property
    def rows(self) -> int:
        """Of the weight, for one column of the result."""
        return 2 if self.activation is not None and self.activation.is_gated else 1

    def of(self, product: Tensor) -> Tensor:
        """In plain torch, which rounds in between."""
        if self.activation is not None:
            product = activated(product, self.activation)
        return product if self.residual is None else reference.scaled_add(self.residual, product, self.alpha)

    def check(self, x: Tensor, n: int) -> None:
        if n % self.rows:
            raise ValueError(f"weight_only_linear: the halves of a gated activation are made of {n} rows of the weight")
        shape = (*x.shape[:-1], n // self.rows)
        if self.residual is not None and (self.residual.shape != shape or self.residual.dtype is not x.dtype
                                          or self.residual.device != x.device):
            raise ValueError(f"weight_only_linear: the residual is {self.residual.dtype} {tuple(self.residual.shape)}; "
                             f"{x.dtype} {shape} on x's device is needed")


NOTHING = End()


def weight_only_linear(device, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, bits: int,
                       group_size: int | None, end: End = NOTHING, expansions: Expansions | None = None) -> Tensor:
    """kernels.reference.weight_only_linear for x in float16 or bfloat16, on `device` (driver.Device), and its
    end. Where one kernel does all, it is in float32 and rounded once. expansions: what expands a weight beside the
    products; None: it is expanded before its own.

    Raises ValueError (check_packed, check_alignment, End.check) and kernels.cache.BuildError.
    """
    check_packed(x, weight, scale, bias, bits, group_size)
    check_alignment(weight)
    n, k = weight.shape[0], x.shape[-1]
    end.check(x, n)
    rows = aligned(x.reshape(-1, k))
    if n == 0 or rows.shape[0] == 0:
        return x.new_empty((*x.shape[:-1], n // end.rows))
    plan = choose(rows.shape[0], n, k, bits, group_size, device.has_tensor_cores, device.processors)
    if plan is None:
        def expand(out: Tensor) -> None:
            dequantize(device, weight, scale, x.dtype, bits, group_size, out, blocks_beside(device.processors))

        def multiply(whole: Tensor) -> Tensor:
            return end.of(F.linear(x, whole.view(n, k), bias))

        if expansions is None or is_recording():  # a recording has no use for what lies outside of it
            return multiply(dequantize(device, weight, scale, x.dtype, bits, group_size))
        return expansions.product(n * k, x.dtype, expand, multiply)
    out = x.new_empty((*x.shape[:-1], n // end.rows))
    if bias is not None:
        bias = bias.contiguous()
    launch(device, plan, x.dtype, bits, rows, weight, scale, bias, out, rows.shape[0], k, group_size, end)
    return out


def dequantize(device, weight: Tensor, scale: Tensor, dtype: torch.dtype, bits: int, group_size: int | None,
               out: Tensor | None = None, blocks: int | None = None) -> Tensor:
    """Packed weight -> (n, k) of dtype (float16 or bfloat16), as kernels.packing.dequantize, bit for bit. out: n * k
    values to fill; None: of memory that layers of a shape come to share, by torch's allocator. blocks: of TEAMS teams,
    at most; None: a team, which is a block, for each row."""
    n, k = weight.shape[0], weight.shape[1] * 8 // bits
    out = torch.empty((n, k), dtype=dtype, device=weight.device) if out is None else out
    name = "dequantize_eights" if fits_eights(n, k, group_size) else "dequantize_any"
    grid, threads = (n, TEAM) if blocks is None else (min(-(-n // TEAMS), blocks), TEAMS * TEAM)
    plan = Plan(name, (grid, 1), threads)
    launch(device, plan, dtype, bits, None, weight, scale, None, out, 0, k, group_size)
    return out


def check_alignment(weight: Tensor) -> None:
    if weight.data_ptr() % ALIGNMENT:
        raise ValueError(f"weight_only_linear: the packed weight begins {weight.data_ptr() % ALIGNMENT} bytes behind a "
                         f"multiple of {ALIGNMENT}, which its kernels cannot read; a copy (weight.clone()) can be read")


def launch(device, plan: Plan, dtype: torch.dtype, bits: int, x: Tensor | None, weight: Tensor, scale: Tensor,
           bias: Tensor | None, out: Tensor, m: int, k: int, group_size: int | None, end: End = NOTHING) -> None:
    n, is_grouped = weight.shape[0], group_size is not None and group_size != k
    size = group_size if is_grouped else k
    numbers = (m, n, k, k // size if is_grouped else 0, size, 2**31 // size + 1, KINDS[scale.dtype],
               0 if end.activation is None else end.activation + 1, plan.splits)
    residual = None if end.residual is None else end.residual.contiguous()
    program, floats = Program(SOURCE, KINDS[dtype], bits), (end.alpha,)
    if plan.splits == 1:
        call = Call((x, weight, scale, bias, residual, None), (), (out,), numbers, floats)
        device.launch(program, plan.name, plan.grid, plan.threads, call, plan.shared_bytes)
        return
    partial = torch.empty(plan.splits, m, n, dtype=torch.float32, device=out.device)
    call = Call((x, weight, scale, bias, residual), (), (partial, None), numbers, floats)
    device.launch(program, plan.name, plan.grid, plan.threads, call, plan.shared_bytes)
    call = Call((None, None, scale, bias, residual, partial), (), (out,), numbers, floats)
    device.launch(program, "add_parts", (-(-out.shape[-1] // ADDING_THREADS), m), ADDING_THREADS, call)


def read(device, data: Tensor) -> None:
    """Read a contiguous tensor once, to the last whole 16 bytes: the device's read bandwidth, for benchmarks."""
    count = data.numel() * data.element_size() // 16
    if data.data_ptr() % ALIGNMENT or not data.is_contiguous() or count >= LARGEST_INDEX:
        raise ValueError(f"read: the tensor must be contiguous, begin at a multiple of {ALIGNMENT} bytes and have less "
                         f"than {LARGEST_INDEX * 16} bytes")
    out = torch.empty(1, dtype=torch.float16, device=data.device)
    call = Call((data, *[None] * 5), (out,), (), (count, *[0] * 8), (0.0,))  # out: hardly ever written
    device.launch(Program(SOURCE, 0, 8), "read_all", (8 * device.processors, 1), 256, call)
