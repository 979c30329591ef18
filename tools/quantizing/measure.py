"""The whole report, as a value that JSON can hold (docs/quantization.md has every field)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

import glm
from evaluation.scorer import Scorer
from glm.checkpoint import convert_command, find_shards, read_config
from glm.diagnose import check_weights
from glm.shard import read_shard
from glm.spec import LINEARS, SCALE, place_of
from quantization.functional import Scheme
from runtime.errors import UserError
from runtime.files import versions
from runtime.show import Progress
from tools.quantizing import choices, text
from tools.quantizing.errors import linear_errors
from tools.quantizing.schemes import PLAIN, name_of, packed_bytes, quantized_weights, schemes_of
from tools.quantizing.swapping import quantized

SCHEMA = 1


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    checkpoint: Path
    texts: Sequence[Path]
    tasks: Sequence[str]
    data_path: Path
    group_sizes: Sequence[int] | None  # None: the usual ones that divide the model's columns
    groups_of_int8: bool = False
    limit: int | None = None  # rows of every data file
    window: int = 128  # tokens that are read at a time
    tokens: int = 16384  # most of a text that are scored
    device: str = "cpu"
    tokenizer_path: Path | None = None
    model: str | None = None


def measure(settings: Settings) -> dict:
    """Memory: the model in float32 and a few of its weights. Raises UserError for every mistake."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("the report is made by one process; start it without launcher")
    longest = read_config(settings.checkpoint, settings.model).max_sequence_length
    configs, found = choices.find(settings.tasks, settings.data_path, longest)
    shard = _whole_shard(settings.checkpoint)
    model, tokenizer = glm.load(settings.checkpoint, settings.device, "float32", settings.tokenizer_path,
                                model=settings.model)
    weights = quantized_weights(shard.tensors)
    schemes = schemes_of(weights, settings.group_sizes, settings.groups_of_int8)
    check_weights(model, settings.checkpoint)
    scorer = Scorer(model)
    size = max(text.SMALLEST, min(settings.window, model.config.max_sequence_length) // text.STEP * text.STEP)
    texts = {str(path): text.requests_of(path, tokenizer, size, settings.tokens) for path in settings.texts}
    works = choices.prepared(configs, found, model, tokenizer, settings.limit)
    kinds = {linear: {name: weight for name, weight in weights.items() if place_of(name)[1] == linear}
             for linear in LINEARS}
    alone = {name_of(scheme) for scheme in (Scheme(4), list(schemes.values())[-1])}  # the coarsest and the finest INT4
    with Progress(2 + len(schemes) + len(alone) * len(kinds), unit="steps") as progress:
        progress.task("errors of the linears")
        sample = _sample(texts)
        errors = linear_errors(model, weights, schemes, lambda: scorer.window_losses(sample))
        progress.advance()
        progress.task(PLAIN)
        losses, chosen = _losses(scorer, texts), choices.choose(scorer, works)
        loss_records = text.loss_records(PLAIN, losses, losses)
        choice_records = choices.choice_records(PLAIN, chosen, chosen)
        progress.advance()
        sensitivity = []
        for name, scheme in schemes.items():
            progress.task(name)
            with quantized(model, weights, scheme):
                loss_records += text.loss_records(name, losses, _losses(scorer, texts))
                choice_records += choices.choice_records(name, chosen, choices.choose(scorer, works))
            progress.advance()
            for linear, part in kinds.items() if name in alone else ():
                progress.task(f"{name}, {linear} alone")
                with quantized(model, part, scheme):
                    record = text.loss_records(name, losses, _losses(scorer, texts))[-1]
                sensitivity.append({"linear": linear}
                                   | {key: record[key] for key in ("scheme", "increase", "interval")})
                progress.advance()
    return {
        "schema": SCHEMA, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": str(settings.checkpoint), "model": asdict(model.config), "versions": versions(),
        "settings": {"texts": list(texts), "tasks": list(configs), "window": size, "tokens": settings.tokens,
                     "limit": settings.limit, "device": settings.device,
                     "tokens_for_errors": sum(request.size for request in sample)},
        "schemes": _scheme_records(weights, schemes), "linears": errors, "loss": loss_records,
        "sensitivity": sensitivity, "choices": choice_records,
    }


def _whole_shard(checkpoint: Path):
    """The only file of an unquantised checkpoint, mapped: quantisation starts from what it holds, in its dtype."""
    first, *others = find_shards(checkpoint)
    shard = read_shard(first)
    if any(name.endswith(SCALE) for name in shard.tensors):
        raise UserError(f"{shard.path} is quantised already; the report needs the unquantised checkpoint that it was "
                        "made from")
    if others:
        raise UserError(f"{checkpoint} is in {len(others) + 1} parts; the report needs it in one: "
                        + convert_command(checkpoint, "tp1", 1))
    return shard


def _sample(texts: Mapping[str, list]) -> list:
    """Windows of the largest size there is, as many as one pass reads at a time, from all texts that have some alike
    and spread evenly over each."""
    size = max(requests[0].size for requests in texts.values())
    full = [requests for requests in texts.values() if requests[0].size == size]
    share = max(1, text.CPU_TOKENS // size // len(full))
    return [request for requests in full for request in requests[::-(-len(requests) // share)]]


def _losses(scorer: Scorer, texts: Mapping[str, list]) -> dict:
    return {name: text.losses(scorer, requests) for name, requests in texts.items()}


def _scheme_records(weights: Mapping[str, torch.Tensor], schemes: Mapping) -> list[dict]:
    """Size of the linears' weights under each scheme; the checkpoint's own first."""
    stored = sum(weight.numel() * weight.element_size() for weight in weights.values())
    count = sum(weight.numel() for weight in weights.values())
    sizes = {name: packed_bytes(weights, scheme) for name, scheme in schemes.items()}
    return [{"scheme": PLAIN, "bits": None, "group_size": None, "stored_bytes": stored,
             "bits_per_weight": 8 * stored / count}] + [
        {"scheme": name, "bits": scheme.bits, "group_size": scheme.group_size, "stored_bytes": sizes[name],
         "bits_per_weight": 8 * sizes[name] / count} for name, scheme in schemes.items()]
