"""The model's inner operations, one set of names in two backends: plain torch, and compiled code for CPU decoding.

    ops = kernels.backend(weight, rows)     # once per forward pass
    ops.linear(...); ops.layer_norm(...); ops.residual_layer_norm(...); ops.scaled_add(...); ops.geglu(...)
    ops.attend(...)
"""

import sys
from functools import cache

import torch

from kernels import reference

MAXIMUM_ROWS = 16  # the compiled CPU code is made for decoding: few rows, bound by reading the weights
COMPILED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def backend(weight: torch.Tensor, rows: int):
    """The operations for `rows` tokens (b * s) and weights like `weight`: compiled for decoding on a CPU, else torch.

    Both have the signatures of kernels.reference; the compiled ones do not record gradients.
    """
    if rows > MAXIMUM_ROWS or weight.device.type != "cpu" or weight.dtype not in COMPILED_DTYPES:
        return reference
    if torch.is_grad_enabled():
        return reference
    return compiled() or reference


@cache
def compiled():
    """The compiled CPU backend, or None where it cannot be built; why is said once on stderr."""
    from kernels import cpu

    try:
        return cpu.operators()
    except cpu.build.BuildError as error:
        print(f"kernels: decoding with torch's own operators, slower: {error}", file=sys.stderr)
        return None


def stack(layers, final_norm, keys, values, alpha, epsilon, positions_2d=False):
    """One call for all layers of a decoding step (reference.stack; cpu.stack.Stack.step), or None where the compiled
    backend cannot take these tensors. layers: list of reference.LayerWeights; keys, values: the cache, layer by layer.
    """
    from kernels.cpu.stack import Stack, fits

    if not compiled() or not fits(layers, final_norm, keys, values):
        return None
    return Stack(compiled(), layers, final_norm, keys, values, alpha, epsilon, positions_2d)
