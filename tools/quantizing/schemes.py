"""The schemes of quantisation that are compared, linears that compute with one for a while, and the errors it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch

from glm.linear import linears
from glm.spec import place_of
from kernels.packing import dequantize
from quantization import GROUP_SIZES
from quantization.functional import Scheme, check_scheme, quantize
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


def scheme_records(weights: Mapping[str, torch.Tensor], schemes: Mapping[str, Scheme]) -> list[dict]:
    """Size of the weights as they are in the checkpoint, then packed under each scheme, scales included."""
    count = sum(weight.numel() for weight in weights.values())

    def record(name: str, bits: int | None, group_size: int | None, size: int) -> dict:
        return {"scheme": name, "bits": bits, "group_size": group_size, "stored_bytes": size,
                "bits_per_weight": 8 * size / count}

    def packed_bytes(bits: int, group_size: int | None) -> int:
        scales = sum(n * (k // (group_size or k)) for n, k in (weight.shape for weight in weights.values()))
        return count * bits // 8 + scales * SCALE_BYTES

    return [record(PLAIN, None, None, sum(weight.nbytes for weight in weights.values())),
            *(record(name, *scheme, packed_bytes(*scheme)) for name, scheme in schemes.items())]


@contextmanager
def quantized(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], scheme: Scheme) -> Iterator[None]:
    """While it lasts, the linears of these weights compute what packed ones would: in float32 a packed weight is
    nothing but the numbers that it stands for, and plain products of these are fastest for many tokens.

    weights: by their name in the model, in the dtype of the checkpoint, which loading quantises from; the model's own
    are made from them again afterwards, so that memory holds one model and one weight.
    """
    def replace(name: str, weight: torch.Tensor) -> None:
        path, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(path), attribute, torch.nn.Parameter(weight, requires_grad=False))

    places = {name: model.get_parameter(name).device for name in weights}
    try:
        for name, weight in weights.items():
            replace(name, dequantize(*quantize(weight.to(places[name]), *scheme), scheme.bits, torch.float32))
        yield
    finally:
        for name, weight in weights.items():
            replace(name, weight.to(places[name], torch.float32))


@torch.inference_mode()
def linear_errors(model: torch.nn.Module, weights: Mapping[str, torch.Tensor], schemes: Mapping[str, Scheme],
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

    with ExitStack() as hooks:
        for name, linear in linears(model):
            hook = linear.register_forward_pre_hook(lambda _, given, name=name: hear(name, given[0]))
            hooks.callback(hook.remove)
        run()
    return records
