"""Positions that a model has learned, and those that a training needs: what does not fit is said before the first step.

Only the GLM repository's models have such tables; a longer one than the checkpoint's (--max-sequence-length, there
--max-position-embeddings) keeps its rows and begins with drawn ones behind them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from glm import spec
from glm.checkpoint.model_config import read_values
from glm.families import glm
from runtime.errors import UserError
from tuning.data.sample import Sample, Unbuildable, built
from tuning.data.seq2seq_samples import BLANKS
from tuning.options import CheckpointOptions, Settings
from tuning.tasks import PRETRAIN, kind_of

PLACES = "max_sequence_length"  # as flags and configurations name it

if TYPE_CHECKING:
    from glm.model import GLM
    from tuning.model import Tuned
    from tuning.training_data import TrainingData


def longer_than_learned(options: CheckpointOptions) -> int | None:
    """How many places are asked for, where they are more than a table of learned positions in the checkpoint has."""
    wanted = (options.shape or {}).get(PLACES)
    if wanted is None or options.load is None:
        return None
    others = {name: value for name, value in options.shape.items() if name != PLACES}
    values, _ = read_values(options.load, options.model, **others)
    learned = values.get(PLACES)
    is_learned = values.get("family") == glm.NAME and isinstance(learned, int)
    return wanted if is_learned and wanted > learned else None


@torch.no_grad()
def lengthen(model: GLM, places: int) -> None:
    """Its tables of positions get more rows, drawn as first weights are, always the same; those there are stay."""
    model.config = model.config.override(max_sequence_length=places)
    generator = torch.Generator().manual_seed(0)
    for tensor in model.config.table.before:
        if tensor.name in (spec.POSITION_EMBEDDINGS, spec.BLOCK_POSITION_EMBEDDINGS):
            table = model.get_submodule(tensor.name.removesuffix(".weight"))
            rows = 0.02 * torch.randn(spec.part(tensor, model.config).shape, generator=generator)
            rows = rows.to(table.weight)
            rows[:len(table.weight)] = table.weight
            table.weight, table.num_embeddings = torch.nn.Parameter(rows, requires_grad=False), len(rows)


def check_places(tuned: Tuned, data: TrainingData, settings: Settings) -> None:
    """UserError where a row, or a text that validation writes, has positions behind the model's."""
    if tuned.learned_places is not None and tuned.is_adapted:
        raise UserError("--max-sequence-length is more than the checkpoint learned, and an adapter does not hold new "
                        "positions: tune the whole model (no --lora-rank, no --pre-seq-len), or leave it away")
    if tuned.model.config.family != glm.NAME:
        return
    known = tuned.model.transformer.position_embeddings.num_embeddings
    needed, what = _needed(data, settings)
    if needed >= known:
        raise UserError(f"{what} needs the position {needed}, but the model has {known}, from 0: shorter rows "
                        f"(--seq-length, --src-seq-length, --tgt-seq-length), or --max-sequence-length {needed + 1}, "
                        "whose new positions begin as drawn")


def notes_on_places(tuned: Tuned) -> Iterator[str]:
    if tuned.learned_places is not None:
        yield (f"the checkpoint learned {tuned.learned_places} places, and {tuned.model.config.max_sequence_length} "
               "were asked for: the embeddings of the others begin as drawn")


def _needed(data: TrainingData, settings: Settings) -> tuple[int, str]:
    """The last position, and what needs it."""
    if settings.data.task == PRETRAIN:  # documents fill the length, unless they stand alone
        needed = 0 if settings.documents.sample_one_document else settings.data.seq_length - 1
        return needed, f"--seq-length {settings.data.seq_length}"
    most, guid = _last_of([*data.rows, *data.validation])
    writes = data.validation and kind_of(settings.data.task) == "seq2seq" and settings.data.task not in BLANKS
    if writes and not settings.seq2seq.no_decode and settings.data.tgt_seq_length > most:
        return settings.data.tgt_seq_length, f"--tgt-seq-length {settings.data.tgt_seq_length}"
    return most, f"the row {guid}"


def _last_of(rows: Sequence[Sample | Unbuildable]) -> tuple[int, str]:
    return max(((max(max(row.places, default=0), max(row.blocks, default=0)), sample.guid)
                for sample in built(rows) for row in sample.rows), key=lambda found: found[0], default=(0, ""))
