"""Scores of seq2seq tasks: losses, and what the model writes beside its references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from generation.params import BeamParams
from glm.tokenizers.interface import UNKNOWN_TEXT, Tokenizer
from runtime.errors import UserError
from tuning.batch import batch_of
from tuning.data import seq2seq
from tuning.data.blanks import MASK
from tuning.data.sample import Sample, Unbuildable, built
from tuning.data.seq2seq_samples import BLANKS, mask_of
from tuning.data.texts import fix_text
from tuning.decoding import filled, written
from tuning.evaluate import shared
from tuning.losses import loss_of
from tuning.options import Settings
from tuning.tokenizers import open_for

if TYPE_CHECKING:
    from tuning.model import Tuned


def evaluate_texts(tuned: Tuned, settings: Settings, samples: Sequence[Sample | Unbuildable], batch_size: int,
                   losses: Sequence[str] = (), load: Path | None = None) -> dict[str, Any]:
    """Of a seq2seq task: rows (guid, prediction_ids, prediction, ref, figures of its own), skipped, metrics, losses.

    batch_size: of losses, and of blanks that are filled together; it does not change what is written. losses: their
    names. load: the checkpoint, where the tokenizer is its own.
    """
    whole = built(samples)
    if set(losses) - {"cross_entropy"}:
        raise UserError(f"--losses {','.join(losses)}: a seq2seq task has cross_entropy alone")
    if losses and settings.data.split == "test":
        raise UserError("--losses: samples of the test split have no answers; take --split dev or train")
    found = {name: _losses(tuned, settings, whole, batch_size) for name in losses}
    rows = ([] if settings.seq2seq.no_decode or not whole
            else _written(tuned, whole, settings, batch_size, open_for(settings, load)))
    of_rows, metrics = seq2seq.figures(settings, whole, [row["prediction"] for row in rows]) if rows else ([], {})
    rows = [row | figures for row, figures in zip(rows, of_rows, strict=True)]
    return {"rows": rows, "skipped": [each.guid for each in samples if isinstance(each, Unbuildable)],
            "metrics": metrics, "losses": found}


@torch.inference_mode()
def _losses(tuned: Tuned, settings: Settings, samples: Sequence[Sample], batch_size: int) -> list[float]:
    """Means over the tokens of consecutive batches."""
    device = next(tuned.model.parameters()).device
    return shared(range(0, len(samples), batch_size), lambda begins: [
        float(loss_of(tuned, batch_of(samples[begin:begin + batch_size], tuned.model.config, device),
                      label_smoothing=settings.seq2seq.label_smoothing)) for begin in begins])


def _written(tuned: Tuned, samples: Sequence[Sample], settings: Settings, batch_size: int,
             tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Data-parallel ranks share the rows."""
    model, asked, limit = tuned.model, settings.seq2seq, settings.data.tgt_seq_length
    sop, end = map(tokenizer.command, ("sop", "eop"))
    params = BeamParams(num_beams=asked.num_beams, length_penalty=settings.cloze.length_penalty,
                        no_repeat_ngram_size=asked.no_repeat_ngram_size, min_gen_length=asked.min_tgt_length,
                        ranking="seq2seq", stochastic=not asked.select_topk)
    sequences = [sample.rows[0] for sample in samples]
    if settings.data.task in BLANKS:
        mask = tokenizer.command(MASK)
        sources = [row.input_ids[:row.sep] for row in sequences]
        parts = [sources[begin:begin + batch_size] for begin in range(0, len(sources), batch_size)]
        generated = shared(parts, lambda own: [filled(model, part, mask, sop, end, params, limit) for part in own])
        answers = [put_in_place(*each, mask, sop) for part, of_part in zip(parts, generated, strict=True)
                   for each in zip(part, of_part, strict=True)]
    else:
        answers = shared(range(len(sequences)), lambda numbers: written(
            model, [sequences[number] for number in numbers], params, end, limit,
            [(settings.data.seed, number) for number in numbers], mask_of(settings) in settings.form.advancing,
            has_places=not settings.cloze.no_block_position))
    rows, rules = [], seq2seq.rules_of_answers(settings)
    for sample, answer in zip(samples, answers, strict=True):
        ids = [token for token in answer if token not in (end, tokenizer.commands.get("pad"))]
        text = tokenizer.detokenize(readable(ids, tokenizer))
        rows.append({"guid": sample.guid, "prediction_ids": ids,
                     "prediction": fix_text(text, rules) if rules else text, "ref": sample.reference})
    return rows


def put_in_place(source: Sequence[int], generated: Sequence[int], mask: int, sop: int) -> list[int]:
    """The source with its blanks filled. generated: the answers, with sop between them; blanks without one vanish."""
    answers: list[list[int]] = [[]]
    for token in generated:
        if token == sop:
            answers.append([])
        else:
            answers[-1].append(token)
    found, place = [], 0
    for token in source:
        if token == mask:
            found += answers[place] if place < len(answers) else []
            place += 1
        else:
            found.append(token)
    return found


def readable(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Without those that the tokenizer does not have: a model's vocabulary is padded."""
    text = getattr(getattr(tokenizer, "vocabulary", None), "size", tokenizer.num_tokens)  # commands may have gaps
    return [token for token in ids
            if token < text or (token < tokenizer.num_tokens and tokenizer.detokenize([token]) != UNKNOWN_TEXT)]
