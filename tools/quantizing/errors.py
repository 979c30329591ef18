"""How far packed weights, and what linears make with them of a real text, are from the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from glm.spec import place_of
from kernels.packing import dequantize
from quantization.functional import Scheme, quantize
from tools.quantizing.swapping import watched


@torch.inference_mode()
def linear_errors(model, weights: Mapping[str, torch.Tensor], schemes: Mapping[str, Scheme],
                  run: Callable[[], None]) -> list[dict]:
    """A record for every linear and scheme, in the order in which `run` computes the linears, each of them once.

    run: reads a text with the model; its linears' inputs are looked at on the way, and nothing of them is kept.
    weights: by name, in the checkpoint's dtype. Beside the model there is one weight at a time, in float32 three times.
    """
    records = []

    def hear(name: str, x: torch.Tensor) -> None:
        stored = weights[f"{name}.weight"].to(x.device)
        weight, x = stored.float(), x.reshape(-1, x.shape[-1]).float()
        output = (x @ weight.t()).norm()
        layer, linear = place_of(f"{name}.weight")
        for scheme_name, scheme in schemes.items():
            difference = dequantize(*quantize(stored, *scheme), scheme.bits, torch.float32).sub_(weight)
            found = {"weight_error": difference.norm() / weight.norm(), "largest_weight_error": difference.abs().max(),
                     "weight_deviation": weight.std(), "output_error": (x @ difference.t()).norm() / output}
            records.append({"layer": layer, "linear": linear, "scheme": scheme_name}
                           | {key: float(value) for key, value in found.items()})

    with watched(model, hear):
        run()
    return records
