"""The report on quantisation, as a value that JSON can hold (docs/quantization.md has every field): the loss of texts
and the choices of tasks under every scheme, beside the same model in float32."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import glm
from evaluation.config import TaskType
from evaluation.data import read_text
from evaluation.discovery import load_tasks
from evaluation.plan import Limit, Work, look, prepare
from evaluation.requests import CPU_TOKENS, ScoreRequest, default_max_tokens
from evaluation.scorer import Scorer
from evaluation.statistics import paired_bootstrap, wilson
from glm.checkpoint import convert_command, find_shards, read_config
from glm.diagnose import check_weights
from glm.shard import read_shard
from glm.spec import LINEARS, SCALE, is_packed, place_of
from quantization.functional import Scheme
from runtime.errors import UserError
from runtime.files import versions
from runtime.show import Progress
from tools.quantizing.schemes import PLAIN, linear_errors, name_of, quantized, scheme_records, schemes_of

SCHEMA = 1
STEP, SMALLEST = 16, 32  # sizes of windows are multiples of 16, which the scorer does not pad
NATS_PER_TOKEN = SimpleNamespace(figure=lambda sums: sums[..., 0] / sums[..., 1])

Losses = dict[str, np.ndarray]  # by text: (windows, 2), summed cross entropy and number of tokens
Choices = dict[str, list[tuple[int, int | None]]]  # by task: (predicted, right) choice of every item


@dataclass(frozen=True)
class Settings:
    """Settings of a report."""

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
    configs = _multiple_choice(settings.tasks, settings.data_path, longest)
    found = look(configs, allow_missing=False)
    shard = _whole_shard(settings.checkpoint)
    model, tokenizer = glm.load(settings.checkpoint, settings.device, "float32", settings.tokenizer_path,
                                model=settings.model)
    weights = {name: tensor for name, tensor in shard.tensors.items() if is_packed(name)}
    schemes = schemes_of(weights, settings.group_sizes, settings.groups_of_int8)
    check_weights(model, settings.checkpoint)
    scorer = Scorer(model)
    size = max(SMALLEST, min(settings.window, longest) // STEP * STEP)
    texts = {str(path): windows(path, tokenizer, size, settings.tokens) for path in settings.texts}
    head = None if settings.limit is None else Limit(settings.limit)
    works = [prepare(config, tokenizer, found[config.name].rows, head,
                     lambda asked: default_max_tokens(model, asked), None, model.config) for config in configs]
    kinds = {linear: {name: weight for name, weight in weights.items() if place_of(name)[1] == linear}
             for linear in LINEARS}
    alone = {name_of(scheme) for scheme in (Scheme(4), list(schemes.values())[-1])}  # the coarsest and the finest INT4
    sample = _sample(texts)

    def losses() -> Losses:
        return {name: losses_of(scorer, requests) for name, requests in texts.items()}

    def choices() -> Choices:
        return {work.config.name: _choices(scorer, work) for work in works}

    with Progress(2 + len(schemes) + len(alone) * len(kinds), unit="steps") as progress:
        progress.task("errors of the linears")
        errors = linear_errors(model, weights, schemes, lambda: scorer.window_losses(sample))
        progress.advance()
        progress.task(PLAIN)
        plain, chosen = losses(), choices()
        loss_records, choice_records = _loss_records(PLAIN, plain, plain), _choice_records(PLAIN, chosen, chosen)
        progress.advance()
        sensitivity = []
        for name, scheme in schemes.items():
            progress.task(name)
            with quantized(model, weights, scheme):
                loss_records += _loss_records(name, plain, losses())
                choice_records += _choice_records(name, chosen, choices())
            progress.advance()
            for linear, part in kinds.items() if name in alone else ():
                progress.task(f"{name}, {linear} alone")
                with quantized(model, part, scheme):
                    record = _loss_records(name, plain, losses())[-1]
                sensitivity.append({"linear": linear}
                                   | {key: record[key] for key in ("scheme", "increase", "interval")})
                progress.advance()
    return {
        "schema": SCHEMA, "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": str(settings.checkpoint), "model": asdict(model.config), "versions": versions(),
        "settings": {"texts": list(texts), "tasks": [config.name for config in configs], "window": size,
                     "tokens": settings.tokens, "limit": settings.limit, "device": settings.device,
                     "tokens_for_errors": sum(request.size for request in sample)},
        "schemes": scheme_records(weights, schemes), "linears": errors, "loss": loss_records,
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


def _multiple_choice(paths: Sequence[str], data_path: Path, longest: int) -> list:
    """The multiple-choice tasks that task files and folders name, others left out; UserError where there is none.

    longest: tokens that the model takes.
    """
    configs = [config for config in load_tasks(paths, data_path, longest) if config.type is TaskType.MULTICHOICE]
    if not configs:
        raise UserError(f"--tasks {' '.join(map(str, paths))}: no multiple-choice task (type: mul) among them; choices "
                        "are what is compared")
    return list({config.name: config for config in configs}.values())


def windows(path: Path, tokenizer, size: int, most: int) -> list[ScoreRequest]:
    """Windows of a text file: of `size` tokens the first half is context, [gMASK] follows it, the rest is scored.

    They move by half a window, so that every token is scored once, but for the first and last ones; at most `most`
    tokens are scored, of windows spread evenly over the text. A text shorter than a window has smaller ones.
    Raises UserError for a file that cannot be read or holds less than SMALLEST tokens.
    """
    ids = tokenizer.encode(read_text(path))
    size = min(size, (len(ids) + 1) // STEP * STEP)
    if size < SMALLEST:
        raise UserError(f"{path}: the text has {len(ids)} tokens; at least {SMALLEST - 1} are needed")
    half = size // 2
    count = (len(ids) - half + 1) // half
    taken = np.unique(np.linspace(0, count - 1, min(count, max(1, most // half))).astype(int))
    mask, sop = tokenizer.command("[gMASK]"), tokenizer.command("sop")
    requests = []
    for start in (int(number) * half for number in taken):
        context = (*ids[start:start + half - 1], mask)
        scored = tuple(ids[start + half - 1:start + 2 * half - 1])
        requests.append(ScoreRequest(context, (scored,), sop, len(context), 1))
    return requests


def _sample(texts: Mapping[str, list[ScoreRequest]]) -> list[ScoreRequest]:
    """Windows of the largest size there is, as many as one pass reads at a time, from all texts that have some alike
    and spread evenly over each."""
    size = max(requests[0].size for requests in texts.values())
    full = [requests for requests in texts.values() if requests[0].size == size]
    share = max(1, CPU_TOKENS // size // len(full))
    return [request for requests in full for request in requests[::-(-len(requests) // share)]]


def losses_of(scorer: Scorer, requests: Sequence[ScoreRequest]) -> np.ndarray:
    """(windows, 2): summed cross entropy and number of tokens. The requests are of one size."""
    step = max(1, CPU_TOKENS // requests[0].size)
    sums = [loss for start in range(0, len(requests), step)
            for loss in scorer.window_losses(requests[start:start + step])]
    return np.array([[loss, len(request.continuations[0])] for loss, request in zip(sums, requests, strict=True)])


def _choices(scorer: Scorer, work: Work) -> list[tuple[int, int | None]]:
    answers: list[dict] = [{}] * len(work.requests)
    for batch in work.batches:
        for index, answer in zip(batch, scorer.answer([work.requests[index] for index in batch]), strict=True):
            answers[index] = answer
    items, start = [], 0
    for file in work.files.values():
        end = start + len(file.requests)
        items += work.task.items(file.examples, file.requests, answers[start:end])
        start = end
    return [(item["prediction"], item["label"]) for item in items]


def _with_all(names: Sequence[str]) -> dict[str, list[str]]:
    """Each name alone and, if there are several, all together."""
    return {name: [name] for name in names} | ({"all": list(names)} if len(names) > 1 else {})


def _loss_records(scheme: str, plain: Losses, found: Losses) -> list[dict]:
    """A record for every text and for all windows together.

    The interval is that of the increase, a 95% bootstrap over windows that are drawn in both.
    """
    records = []
    for text, names in _with_all(list(found)).items():
        before, after = (np.concatenate([each[name] for name in names]) for each in (plain, found))
        change = paired_bootstrap(NATS_PER_TOKEN, [(before, after)])
        records.append({
            "scheme": scheme, "text": text, "windows": len(after), "tokens": int(after[:, 1].sum()),
            "loss": float(NATS_PER_TOKEN.figure(after.sum(axis=0))), "increase": change.value,
            "interval": [change.low, change.high]})
    return records


def _choice_records(scheme: str, plain: Choices, found: Choices) -> list[dict]:
    """A record for every task and for all items together.

    accuracy: of the items that have a right choice; None where there is none (tasks that measure a bias).
    The interval is that of the share of flips, Wilson's 95%.
    """
    records = []
    for task, names in _with_all(list(found)).items():
        before, after = ([pair for name in names for pair in each[name]] for each in (plain, found))
        flips = sum(one[0] != other[0] for one, other in zip(before, after, strict=True))
        right = [predicted == label for predicted, label in after if label is not None]
        records.append({
            "scheme": scheme, "task": task, "n": len(after), "flips": flips, "share": flips / len(after),
            "interval": list(wilson(flips, len(after))), "accuracy": sum(right) / len(right) if right else None})
    return records
