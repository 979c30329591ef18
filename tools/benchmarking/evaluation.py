"""Items per second of the evaluator on real data, beside scoring one item after the other with the same model.

Every batch of the evaluator's own plan is timed, and right after it the same items one by one: on a shared machine only
what is measured in the same seconds can be compared. Both must come to the same scores.
Shapes: s sequence, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from evaluation.config import MultiChoiceTaskConfig
from evaluation.data import read_rows, to_example
from evaluation.discovery import data_files, missing
from evaluation.requests import GenerateRequest, Request, ScoreRequest, batches_of, default_max_tokens
from evaluation.scorer import Scorer
from evaluation.task_file import load_task
from evaluation.tasks import MultiChoiceTask, Task, task_class
from glm.inputs import position_ids, row_positions
from runtime.errors import UserError
from runtime.files import REPOSITORY
from runtime.show import table
from tools.benchmarking.own import shape_of
from tools.benchmarking.rates import clock, matrix_rate

TASKS = REPOSITORY / "tasks"
FILES = {"CoLA": "bloom/glue_cola.yaml", "C3": "chinese/clue/c3.yaml", "LAMBADA": "lambada/lambada.yaml",
         "CMRC2018": "chinese/clue/cmrc2018.yaml"}
SCORED, GENERATED = ("CoLA", "C3", "LAMBADA"), ("CMRC2018", "LAMBADA")
TOLERANCE = 1e-5  # between log-probabilities in float32; relative, for those above 1
ALONE = "one at a time"  # a way to generate
SHORT = 24  # tokens of a context in which there is little to read
CEILING_ROWS = 2048  # of the bare matrix products


@dataclass(frozen=True)
class Result:
    """One task: answered in the evaluator's batches, and in others' ways."""

    task: str
    kind: str  # "score": choices' log-probabilities; "generate"
    precision: str
    items: int
    batch: int | None  # items at a time in generation
    tokens: int  # fed (score) or generated
    seconds: float  # of one pass over all items, the median of the repetitions
    others: dict[str, float]  # the same of each other way: of `choice_by_choice` ..., or ALONE
    ratios: dict[str, float]  # how many times as fast as each other way, the median over repetitions
    flops: float | None  # of the products that the answers need; None where that is not counted
    ceiling: float | None  # FLOP/s of bare products
    difference: float | None  # largest of two log-probabilities
    same: float  # share of equal predictions, which are the best beams in generation

    def as_dict(self) -> dict:
        return asdict(self) | {"items_per_second": self.items / self.seconds,
                               "tokens_per_second": self.tokens / self.seconds,
                               "others_items_per_second": {name: self.items / s for name, s in self.others.items()}}


def requests_of(name: str, kind: str, data_path: Path, tokenizer) -> list[Request]:
    """All requests of a task."""
    config = load_task(TASKS / FILES[name], data_path)
    if reason := missing(config):
        raise UserError(f"{reason}; bash scripts/prepare_data.sh prepares it, --data-path says where it is")
    found = [row for paths in data_files(config).values() for path in paths for row in read_rows(path, config)]
    task: Task = task_class(config)(config, tokenizer)
    if kind == "score" and name == "LAMBADA":  # its last word as the only choice
        task = MultiChoiceTask(MultiChoiceTaskConfig(name=name, path=config.path, use_task_mask=True), tokenizer)
        found = [{**row, "choices_pretokenized": row["targets_pretokenized"]} for row in found]
    return [task.request(to_example(row, index, tokenizer)) for index, row in enumerate(found)]


def sample(batches: list[list[int]], rows: int) -> list[list[int]]:
    """Evenly spaced batches of a plan, of `rows` items together at least, where there are so many."""
    mean = sum(map(len, batches)) / len(batches)
    count = min(len(batches), -(-rows // mean))
    return [batches[int((i + 0.5) * len(batches) / count)] for i in range(int(count))]


def measure(model, tokenizer, data_path: Path, precision: str, rows: int, generated_rows: int, batch: int,
            repeats: int) -> Iterator[Result]:
    device = next(model.parameters()).device
    for name in SCORED:
        requests = requests_of(name, "score", data_path, tokenizer)
        yield score(model, name, requests, precision, rows, repeats, device)
    for name in GENERATED:
        requests = requests_of(name, "generate", data_path, tokenizer)
        yield generate(model, name, requests, precision, generated_rows, batch, repeats, device)
    # the same questions without their passages, every answer as long as allowed: all decoding, little to read
    yield generate(model, "questions", short(requests_of("CMRC2018", "generate", data_path, tokenizer)), precision,
                   generated_rows, batch, repeats, device)


def short(requests: Sequence[GenerateRequest]) -> list[GenerateRequest]:
    """The last tokens of each context, answered at full length."""
    return [replace(request, context=request.context[-SHORT:],
                    params=replace(request.params, min_gen_length=request.limit),
                    shared_position=min(len(request.context), SHORT) - 2)
            for request in requests]


def score(model, name: str, requests: Sequence[ScoreRequest], precision: str, rows: int, repeats: int,
          device) -> Result:
    scorer, shape = Scorer(model), shape_of(model.config)
    batches = [[requests[i] for i in batch]
               for batch in sample(batches_of(requests, default_max_tokens(model, requests)), rows)]
    requests = [request for batch in batches for request in batch]
    others = {"choice by choice": choice_by_choice, "item by item": item_by_item}
    ways: dict[str, Callable] = {"": scorer.choice_log_probs} | {
        way: lambda batch, answer=answer: [answer(model, request) for request in batch]
        for way, answer in others.items()}
    rate = matrix_rate(CEILING_ROWS, shape.linears, next(model.parameters()).dtype, str(device))
    seconds, answers = alternate(ways, batches, repeats, str(device))
    pairs = [(ours, theirs) for way in others for ours, theirs in zip(answers[""], answers[way], strict=True)]
    difference = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
    same = [_best(ours) == _best(theirs) for ours, theirs in pairs]
    is_far = any(abs(a - b) > TOLERANCE * max(1.0, abs(b))
                 for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
    if precision == "fp32" and (is_far or not all(same)):
        raise UserError(f"{name}: the scores of a batch and of single items differ by {difference:.2g} "
                        f"(allowed: {TOLERANCE:g}), and {same.count(False)} predictions do")
    tokens = sum(request.size for request in requests)
    places = sum(len(ids) for request in requests for ids in request.segments)
    spared = (shape.hidden + 3 * shape.inner) * shape.hidden  # of the last layer, which has no places to go on to
    flops = 2.0 * (tokens * (shape.layer_parameters - spared) + places * (spared + shape.vocabulary * shape.hidden))
    return result(name, "score", precision, requests, None, tokens, seconds, flops, rate, difference, same)


def generate(model, name: str, requests: Sequence[GenerateRequest], precision: str, rows: int, batch: int,
             repeats: int, device) -> Result:
    scorer = Scorer(model)
    batches = [[requests[i] for i in each] for each in sample(batches_of(requests, 2**62, batch), rows)]
    requests = [request for each in batches for request in each]
    ways = {"": partial(scorer.generate, at_once=batch),
            ALONE: lambda batch: [scorer.generate([request])[0] for request in batch]}
    seconds, answers = alternate(ways, batches, repeats, str(device))
    # of beams that are nearly as likely, rounding may change the order
    same = [ours["beams"][0] == alone["beams"][0]
            for ours, alone in zip(answers[""], answers[ALONE], strict=True)]
    tokens = sum(len(answer["beams"][0]) + 1 for answer in answers[""])
    return result(name, "generate", precision, requests, batch, tokens, seconds, None, None, None, same)


def result(name, kind, precision, requests, batch, tokens, seconds, flops, ceiling, difference, same) -> Result:
    ours = seconds.pop("")
    ratios = {way: median(b / a for a, b in zip(ours, theirs, strict=True)) for way, theirs in seconds.items()}
    return Result(name, kind, precision, len(requests), batch, tokens, median(ours),
                  {way: median(theirs) for way, theirs in seconds.items()}, ratios, flops, ceiling, difference,
                  sum(same) / len(same))


def alternate(ways: dict[str, Callable], batches: Sequence[Sequence[Request]], repeats: int,
              device: str) -> tuple[dict[str, list[float]], dict[str, list]]:
    """Answers every batch in each way, one way after the other: the seconds of every repetition, and the answers."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for answer in ways.values():
        answer(batches[-1][:1])  # warm-up
    for _ in range(repeats):
        spent = dict.fromkeys(ways, 0.0)
        answers: dict[str, list] = {way: [] for way in ways}
        for batch in batches:
            for way, answer in ways.items():
                begin = clock(device)
                answers[way] += answer(batch)
                spent[way] += clock(device) - begin
        for way, total in spent.items():
            seconds[way].append(total)
    return seconds, answers


def tables(results: Sequence[Result]) -> list[str]:
    """One of scoring, one of generation."""
    kinds = {kind: [r for r in results if r.kind == kind] for kind in ("score", "generate")}
    return [
        table(("task", "dtype", "items", "items/s", "choice by choice", "times", "item by item", "times", "tokens/s",
               "TFLOP/s", "bare", "%", "difference", "same"),
              [[*_begin(r), f"{r.items / r.seconds:.1f}",
                *(text for way, seconds in r.others.items()
                  for text in (f"{r.items / seconds:.1f}", f"{r.ratios[way]:.1f}")),
                f"{r.tokens / r.seconds:.0f}", f"{r.flops / r.seconds / 1e12:.3f}", f"{r.ceiling / 1e12:.3f}",
                f"{100 * r.flops / r.seconds / r.ceiling:.0f}", f"{r.difference:.1g}", f"{100 * r.same:.1f}%"]
               for r in kinds["score"]],
              2, "Scoring: batches of the evaluator, beside one item after the other with all logits"),
        table(("task", "dtype", "items", "batch", "items/s", ALONE, "times", "tokens/s", "same"),
              [[*_begin(r), str(r.batch), f"{r.items / r.seconds:.2f}", f"{r.items / r.others[ALONE]:.2f}",
                f"{r.ratios[ALONE]:.1f}", f"{r.tokens / r.seconds:.0f}", f"{100 * r.same:.1f}%"]
               for r in kinds["generate"]],
              2, "Generation: a batch of items, beside one at a time"),
    ]


def _begin(r: Result) -> list[str]:
    return [r.task, r.precision, str(r.items)]


def _best(log_probs: Sequence[float]) -> int:
    return max(range(len(log_probs)), key=log_probs.__getitem__)


# One item after the other: as plain as it can be written


@torch.inference_mode()
def choice_by_choice(model, request: ScoreRequest) -> list[float]:
    """A forward pass for each choice, with the logits of every place."""
    return [item_by_item(model, replace(request, continuations=(ids,)), multiple=1)[0] for ids in request.continuations]


@torch.inference_mode()
def item_by_item(model, request: ScoreRequest, multiple: int = 32) -> list[float]:
    """One forward pass with all choices behind the context, padded to a multiple of 32, with all logits, as the
    original has it."""
    c = len(request.context)
    tokens = list(request.context)
    allowed = [[j <= i or not request.causal for j in range(c)] for i in range(c)]  # for each token those that it sees
    begins = []
    for ids in request.continuations:
        begins.append(len(tokens))
        for i, token in enumerate((request.lead, *ids[:-1])):
            allowed.append([True] * c + [False] * (begins[-1] - c) + [True] * (i + 1))
            tokens.append(token)
    positions, in_blank = row_positions(
        c, [(request.first_position, request.advance, len(ids)) for ids in request.continuations])
    width = -(-len(tokens) // multiple) * multiple
    blocked = torch.ones(1, width, width, dtype=torch.bool)
    for i, row in enumerate(allowed):
        blocked[0, i, :len(row)] = ~torch.tensor(row)
    fill = [0] * (width - len(tokens))
    device = next(model.parameters()).device
    padded, *places = (torch.tensor([row + fill], device=device) for row in (tokens, positions, in_blank))
    log_probs = torch.log_softmax(model.logits(padded, position_ids(model.config, *places), blocked.to(device))[0],
                                  dim=-1)  # (s, v)
    found = []
    for begin, ids in zip(begins, request.continuations, strict=True):
        places = torch.arange(begin, begin + len(ids), device=device)
        found.append(log_probs[places, torch.tensor(ids, device=device)].double().sum().item())
    return found
