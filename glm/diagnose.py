"""Where a number that is none comes from: the layer, the tensor-parallel rank and, where it is damaged, the weight.

The batch at fault is run once more and looked at from the inside, on all ranks of its group.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType

import torch

import kernels
from glm.linear import Linear, linears
from glm.spec import Cut, place_of
from runtime import parallel
from runtime.errors import UserError
from runtime.parallel import agree

CHUNK = 256  # places whose logits are computed at a time


@torch.inference_mode()
def diagnose(model, tokens: torch.Tensor, position_ids: torch.Tensor, blocked: torch.Tensor | None) -> str:
    """One line on the first layer that gives NaN or infinity for this input (arguments as GLM.hidden_states).

    Every rank of the tensor-parallel group calls it, with the same input, and gets the same line.
    """
    stages: list[tuple[int, str, bool]] = []  # layer (-1: before the first), part, whether this rank's part is finite

    def hear(layer: int, hidden: torch.Tensor) -> None:
        stages.append((layer, "the embedding" if layer < 0 else "its sum", _is_finite(hidden)))

    with _watched(model, stages):
        hidden = model.hidden_states(tokens, position_ids, blocked, observe=hear)
    last = model.config.num_layers
    stages.append((last, "the final layer norm", _is_finite(hidden)))
    weight = model.head_weight
    head = kernels.backend(weight).head
    stages.append((last, "the logits", all(_is_finite(head(part, weight))
                                           for part in hidden.flatten(0, -2).split(CHUNK))))

    everybody = [(stages, _damaged(model))]
    if parallel.size() > 1:
        everybody = [None] * parallel.size()
        torch.distributed.all_gather_object(everybody, (stages, _damaged(model)), group=parallel.group())
    for number, (layer, part, _) in enumerate(stages):
        ranks = [rank for rank, (found, _) in enumerate(everybody) if not found[number][2]]
        if ranks:
            damaged = {rank: everybody[rank][1].get(layer, ()) for rank in range(len(everybody))}
            where = _name(layer, last, part) + _ranks(ranks, len(everybody), damaged)
            return f"{where}: {_cause(damaged, weight.dtype)}"
    return "run once more, it gave numbers: a device or its memory may be at fault"


@torch.inference_mode()
def check_weights(model, checkpoint=None) -> None:
    """Raises UserError, on all ranks, where a weight is NaN or infinity. checkpoint: its folder, for the message.

    Not all of these reach the logits: a softmax may lose the NaN of a query or a key, and then scores are wrong.
    """
    def check() -> None:
        begin = f"{checkpoint}: " if checkpoint else ""
        rank = f" on tensor-parallel rank {parallel.rank()} of {parallel.size()}" if parallel.size() > 1 else ""
        for name, parameter in model.named_weights():
            if not _is_finite(parameter):
                raise UserError(f"{begin}{name}{rank} holds NaN or infinity; the checkpoint is damaged")

    agree(check)


@contextmanager
def _watched(model, stages: list[tuple[int, str, bool]]) -> Iterator[None]:
    """While it lasts, `stages` hears of the linears that end a layer's two parts.

    Of what is summed over the ranks, each rank looks at its own summand: the sum would be no number on all of them.
    """
    def hear(layer: int, part: str, linear: Linear, given: tuple[torch.Tensor, ModuleType], _) -> None:
        stages.append((layer, part, _is_finite(linear.product(*given))))

    handles = []
    for name, linear in linears(model):
        if linear.cut is Cut.COLUMNS:
            layer, path = place_of(f"{name}.weight")
            part = "attention" if path.startswith("attention") else "MLP"
            handles.append(linear.register_forward_hook(partial(hear, layer, part)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _damaged(model) -> dict[int, list[str]]:
    """Names of this rank's parameters that hold NaN or infinity, by layer as in `stages`."""
    found: dict[int, list[str]] = {}
    last = model.config.num_layers
    for name, parameter in model.named_weights():
        if not _is_finite(parameter):
            parts = name.split(".")
            layers = [int(parts[2])] if parts[1] == "layers" else [-1, last] if "embeddings" in name else [last]
            for layer in layers:
                found.setdefault(layer, []).append(name)
    return found


def _is_finite(x: torch.Tensor) -> bool:
    """Without memory for a mask, if all is well: a sum is a number only if all of its terms are (or it overflows)."""
    return not x.is_floating_point() or bool(x.sum(dtype=torch.float32).isfinite()) or bool(x.isfinite().all())


def _name(layer: int, last: int, part: str) -> str:
    return f"layer {layer} ({part})" if 0 <= layer < last else part


def _ranks(ranks: list[int], count: int, damaged: dict[int, list[str]]) -> str:
    if count == 1:
        return " on rank 0"
    ranks = [rank for rank, names in damaged.items() if names] or ranks
    if len(ranks) == count:
        return f" on all {count} tensor-parallel ranks"
    return f" on tensor-parallel rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))} of {count}"


def _cause(damaged: dict[int, list[str]], dtype: torch.dtype) -> str:
    names = list(dict.fromkeys(name for found in damaged.values() for name in found))
    if names:
        more = f" and {len(names) - 2} more" if len(names) > 2 else ""
        return f"NaN or infinity in {', '.join(names[:2])}{more}; the checkpoint is damaged"
    mend = "use a precision with more room (--bf16, --fp32)" if dtype == torch.float16 else "the weights are too large"
    return f"its weights are numbers, but {str(dtype).removeprefix('torch.')} overflows; {mend}"
