"""How far a result may be from the exact one. No bound is tuned by hand, or to a processor: arithmetic says it.

Of a computation in float64, one in less precision may err at most twice as much as the reference's in the same
precision, which shows how the case at hand passes errors on, and by what this one sum at least costs in any order of
its terms, where the reference happens to be better (vectors sum in many short parts, plain C++ in one long one) or
exact: a walk of as many random steps as it has terms, and the rounding of the result.
"""

import math

import torch


def of_an_integer(dtype, times=math.inf):
    """Standard deviation of what integers of 15 bits lose of a number, relative to the mean magnitude, of which the
    largest is `times`. Their step is 2^-14 of the largest, or of 8 times the mean (bf16: 32), beyond which remainders
    follow; rounding errs evenly by half a step."""
    return 2.0**-14 / math.sqrt(12) * min(times, 32 if dtype is torch.bfloat16 else 8)


def of_integers(x, weight):
    """What a product x (..., k) @ weight (n, k).T may lose more in FP32 where x is made of integers of 15 bits: no sum
    errs by more than six standard deviations."""
    x, weight, error = x.double().flatten(0, -2), weight.double(), of_an_integer(x.dtype)
    return 6 * error * (x.abs().mean(-1, keepdim=True) * weight.norm(dim=-1)).max()


def assert_as_good(ours, same_precision, exact, terms, more=0.0):
    """ours, same_precision: what is tested, and the reference; exact: in float64. terms: of the longest sum behind an
    element, in float32; of sums one after another, of all. more: absolute, what `ours` is allowed beyond that."""
    assert ours.dtype == same_precision.dtype and ours.shape == same_precision.shape
    exact = exact.double()
    step = torch.finfo(ours.dtype).eps + math.sqrt(terms) * torch.finfo(torch.float32).eps
    allowed = 2 * (same_precision.double() - exact).abs().max() + step * exact.abs().max() + more
    error = (ours.double() - exact).abs().max()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
