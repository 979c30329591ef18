"""How far a result may be from the exact one. No bound is tuned by hand, or to a processor: arithmetic says it.

Of a computation in float64, one in less precision may err at most twice as much as the reference's in the same
precision, which shows how the case at hand passes errors on, and by what this one sum at least costs in any order of
its terms, where the reference happens to be better (vectors sum in many short parts, plain C++ in one long one) or
exact: a walk of as many random steps as it has terms, and the rounding of the result.
"""

import math

import torch


def assert_as_good(ours, same_precision, exact, terms):
    """ours, same_precision: what is tested, and the reference; exact: in float64. terms: of the longest sum behind an
    element, in float32; of sums one after another, of all."""
    assert ours.dtype == same_precision.dtype and ours.shape == same_precision.shape
    exact = exact.double()
    step = torch.finfo(ours.dtype).eps + math.sqrt(terms) * torch.finfo(torch.float32).eps
    allowed = 2 * (same_precision.double() - exact).abs().max() + step * exact.abs().max()
    error = (ours.double() - exact).abs().max()
    assert error <= allowed, f"error {error:.3g}, allowed {allowed:.3g}"
