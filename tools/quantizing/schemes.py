"""Which schemes of quantisation are compared, and what they are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from glm.spec import is_packed
from quantization import GROUP_SIZES
from quantization.functional import Scheme, check_scheme
from runtime.errors import UserError

PLAIN = "fp32"  # the model that all others are compared with
SCALE_BYTES = 2  # float16


def name_of(scheme: Scheme) -> str:
    return f"INT{scheme.bits}" + (f" g{scheme.group_size}" if scheme.group_size else "")


def schemes_of(weights: Mapping[str, torch.Tensor], group_sizes: Sequence[int] | None,
               groups_of_int8: bool = False) -> dict[str, Scheme]:
    """Scheme by its name: INT8, INT4, and INT4 (INT8, too, with groups_of_int8) in groups.

    weights: those that are quantised, by name. group_sizes: UserError where one does not divide the columns of a
    weight; None: those of GROUP_SIZES that do.
    """
    sizes = [size for size in GROUP_SIZES if _fault(weights, size) is None] if group_sizes is None else group_sizes
    for size in sizes:
        if fault := _fault(weights, size):
            raise UserError(f"--group-sizes {size}: {fault}; name divisors, or leave --group-sizes away for those of "
                            f"{', '.join(map(str, GROUP_SIZES))} that are")
    sizes = sorted(set(sizes), reverse=True)
    found = [Scheme(8), *(Scheme(8, size) for size in sizes if groups_of_int8), Scheme(4),
             *(Scheme(4, size) for size in sizes)]
    return {name_of(scheme): scheme for scheme in found}


def _fault(weights: Mapping[str, torch.Tensor], size: int) -> str | None:
    for name, weight in weights.items():
        try:
            check_scheme(weight.shape[1], 4, size)
        except ValueError as error:
            return f"{name}: {error}"
    return None


def quantized_weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Those tensors of a checkpoint that quantisation packs."""
    return {name: tensor for name, tensor in tensors.items() if is_packed(name)}


def packed_bytes(weights: Mapping[str, torch.Tensor], scheme: Scheme) -> int:
    """What the weights take when they are packed, scales included."""
    scales = sum(weight.shape[0] * (weight.shape[1] // (scheme.group_size or weight.shape[1]))
                 for weight in weights.values())
    return sum(weight.numel() for weight in weights.values()) * scheme.bits // 8 + scales * SCALE_BYTES
