"""Learning-rate schedules and the optimisers: Muon for the layers' matrices, AdamW for the rest."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then either a cosine to the end, or a constant rate with a cosine from `decay_from` on.

    With `decay_from` the length of a run can be decided late: what was trained so far does not depend on `steps`.
    """

    steps: int
    warm_up: int = 100
    decay_from: int | None = None  # None: the cosine begins where the warm-up ends
    final: float = 0.02  # share of the peak rate at the last step

    def factor(self, step: int) -> float:
        """Share of the peak rate for step 0, 1, ..., steps - 1."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        start = self.warm_up if self.decay_from is None else max(self.decay_from, self.warm_up)
        if step < start:
            return 1.0
        done = min((step - start) / max(self.steps - 1 - start, 1), 1.0)
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


def make_optimizers(model, name: str, matrix_rate: float, rate: float, weight_decay: float) -> list:
    """Optimisers whose groups carry their peak rate as "peak": one of Muon and one of AdamW, or AdamW alone.

    Muon takes the matrices inside the layers, which it was made for; the embedding (also the output matrix), norms and
    biases go to AdamW, without weight decay.
    """
    import torch

    matrices, embeddings, vectors = [], [], []
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif "word_embeddings" in parameter_name:
            embeddings.append(parameter)
        else:
            matrices.append(parameter)
    # Most rows of the embedding get nothing from a batch but the faint push of the softmax. Usual memory and epsilon
    # of Adam blow it up to full steps until all rare rows point the same way; a longer memory of a row and an epsilon
    # above the faint gradients keep them apart.
    groups = [{"params": embeddings, "lr": rate, "peak": rate, "weight_decay": 0.0, "betas": (0.9, 0.99), "eps": 1e-5},
              {"params": vectors, "lr": rate, "peak": rate, "weight_decay": 0.0}]
    matrix_group = {"params": matrices, "lr": matrix_rate, "peak": matrix_rate, "weight_decay": weight_decay}
    if name == "adamw":
        return [torch.optim.AdamW([matrix_group, *groups], betas=(0.9, 0.95), eps=1e-8, fused=True)]
    muon = torch.optim.Muon([matrix_group], momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)]


def set_rates(optimizers: list, factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
