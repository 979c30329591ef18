"""The optimisers of a training from scratch: Muon for the layers' matrices, AdamW for the rest, or AdamW for all.

Muon takes the matrices inside the layers, which it was made for (Jordan et al. 2024); the embedding, which is also the
output matrix, norms and biases go to AdamW, without weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tuning.optimizer import Optimizer
from tuning.train_options import OptimizerOptions

KINDS = ("matrix", "embedding", "vector")
# Most rows of the embedding get nothing from a batch but the faint push of the softmax. Usual memory and epsilon of
# Adam blow it up to full steps until all rare rows point the same way; a longer memory of a row and an epsilon above
# the faint gradients keep them apart.
OF_EMBEDDINGS = {"betas": (0.9, 0.99), "eps": 1e-5}
OF_ALL = {"betas": (0.9, 0.95), "eps": 1e-8, "fused": True}


@dataclass(frozen=True)
class Rates:
    """Peaks; the loop's own rate is a share of them."""

    matrices: float  # of the layers
    rest: float  # embedding, norms and biases
    weight_decay: float  # of the matrices


class MatrixOptimizer(Optimizer):
    """Its rate is a share of the peaks, 1 at most."""

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], name: str, rates: Rates, clip: float):
        """name: "muon", or "adamw" for all."""
        self.name, self.rates = name, rates
        super().__init__(parameters, OptimizerOptions(lr=1.0, weight_decay=rates.weight_decay, clip_grad=clip))

    @property
    def decayed(self) -> list[str]:
        return sorted(name for name, parameter in self.parameters.items() if _kind(name, parameter) == "matrix")

    def made(self) -> list[torch.optim.Optimizer]:
        kinds: dict[str, list[torch.nn.Parameter]] = {kind: [] for kind in KINDS}
        for name, master in self.masters.items():
            kinds[_kind(name, master)].append(master)
        rates = self.rates
        matrices = {"params": kinds["matrix"], "share": rates.matrices, "weight_decay": rates.weight_decay}
        rest = [{"params": kinds[kind], "share": rates.rest, "weight_decay": 0.0, **more}
                for kind, more in (("embedding", OF_EMBEDDINGS), ("vector", {}))]
        if self.name == "adamw":
            return [torch.optim.AdamW([matrices, *rest], **OF_ALL)]
        muon = torch.optim.Muon([matrices], momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(rest, **OF_ALL)]


def moments_by_name(parameters: Mapping[str, torch.Tensor], saved: Sequence[Mapping[str, Any]]) -> dict[str, dict]:
    """What states kept before they had names: torch's state dictionaries of Muon and AdamW, or of AdamW alone."""
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name, parameter in parameters.items():
        names[_kind(name, parameter)].append(name)
    of_each = [KINDS] if len(saved) == 1 else [KINDS[:1], KINDS[1:]]
    return {name: each["state"][number] for kinds, each in zip(of_each, saved, strict=True)
            for number, name in enumerate(name for kind in kinds for name in names[kind]) if number in each["state"]}


def _kind(name: str, parameter: torch.Tensor) -> str:
    if parameter.ndim < 2:
        return "vector"
    return "embedding" if "word_embeddings" in name else "matrix"
