"""Compares the planned time of decoding and of scoring with what they take, over lengths, rows and ranks.

    python tools/check_cost.py                                                 # two shapes, three precisions, one rank
    python tools/check_cost.py --models shape-335m --precisions bf16 --ranks 1 2 4

The plan is made as `python -m glm plan` makes it, in a process of its own, from some layers that are timed there; then
random weights of the whole model decode and score, in as many processes as there are ranks. Decoding is the loop of
generation behind a cache that nothing has been read into; scoring is one batch of the evaluation's scorer, whose rows
have one scored token in four. The fastest of --repeats counts; of ranks, whose waits for one another differ from step
to step, the middle one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS, PRECISIONS = ("glm-small", "shape-335m"), ("fp32", "bf16", "bf16,8", "bf16,4")
DECODING = ((1, 64), (1, 512), (1, 2048), (4, 64), (4, 512), (4, 2048), (16, 64), (16, 512), (64, 64), (64, 256))
SCORING = ((1, 64), (1, 512), (1, 2048), (4, 64), (4, 512), (16, 64), (16, 128), (64, 64))  # rows, tokens of a row
STEPS, SCORED = 6, 4  # tokens that are decoded; one of so many tokens is scored
FEW_TOKENS, MOST = 512, 20  # batches of fewer tokens are scored more often, so often at most


def config_of(name: str):
    from glm.config import ModelConfig

    if Path(name).is_dir():
        return ModelConfig.from_file(Path(name) / "model_config.json").override(max_sequence_length=2112)
    return ModelConfig.from_name(name).override(max_sequence_length=2112)


def setup_of(name: str, precision: str, degree: int):
    from planning.shapes import Setup
    from tools.check_plan import format_of

    run = format_of(precision)
    return Setup(config_of(name), run, degree=degree, new_tokens=1, int8_vocabulary=bool(run.bits) and degree == 1)


def planned(setup) -> dict[str, list[float]]:
    """Seconds of each case of decoding and of scoring."""
    from evaluation.hours import batch_seconds
    from planning import machine, memory, speed

    device, scorer = (machine.host(replace(setup, rows=64, read_rows=64, scored=scored), memory.plan(setup).weights)
                      for scored in (0, 1))  # which has masks
    decoded = [speed.plan(each, memory.plan(each), device, None).token for each in (
        replace(setup, rows=rows, read_rows=rows, context=context) for rows, context in DECODING)]
    scored = [batch_seconds(requests_of(rows, width), setup, scorer, None) for rows, width in SCORING]
    return {"decoding": decoded, "scoring": scored}


def measured(setup, repeats: int) -> dict[str, list[float]]:
    """The same by the whole model, on this rank of as many as its launcher has started."""
    import torch

    from glm.loading import DTYPES, share_small_sums
    from quantization.functional import Scheme
    from runtime import parallel
    from tools.benchmarking.own import ready_model

    parallel.start(setup.degree, device="cpu")
    share_small_sums(torch.device("cpu"))
    scheme = Scheme(setup.run.bits, setup.run.group_size) if setup.run.bits else None
    model = ready_model(setup.config, DTYPES[setup.run.precision], "cpu", scheme)
    found = {"decoding": [decoding(model, rows, context, repeats) for rows, context in DECODING],
             "scoring": [scoring(model, rows, width, repeats) for rows, width in SCORING]}
    parallel.stop()
    return found


def decoding(model, rows: int, context: int, repeats: int) -> float:
    """Seconds of a step of the loop that decodes."""
    from generation.batch import Batch
    from generation.groups import Row
    from generation.params import SamplingParams
    from generation.sampling import rules
    from tools.benchmarking.rates import repeat

    count = STEPS * repeats
    end = model.config.vocab_size - 1
    params = SamplingParams(top_k=1, min_gen_length=count + 2)
    asked = [Row([0] * (context + 1), params, count + 2, rules([end], [], [])) for _ in range(rows)]
    batch = Batch(model, rows, context + count + 2)
    batch.sequences._read = lambda *_: None  # the cache holds zeros, which take as long
    batch.add(asked)
    return counts(repeat(batch.step, count))


def scoring(model, rows: int, width: int, repeats: int) -> float:
    from evaluation.scorer import Scorer
    from tools.benchmarking.rates import repeat

    scorer, requests = Scorer(model), requests_of(rows, width)
    count = max(1, min(MOST, repeats * FEW_TOKENS // (rows * width)))  # the same on all ranks
    return counts(repeat(lambda: scorer.answer(requests), count))


def counts(timing) -> float:
    from runtime import parallel

    return timing.best if parallel.size() == 1 else timing.median


def requests_of(rows: int, width: int) -> list:
    from evaluation.requests import ScoreRequest

    wanted = width // SCORED
    count = width - wanted
    contexts = [tuple((place + row) % 1000 for place in range(count)) for row in range(rows)]  # equal: read once
    return [ScoreRequest(context, ((1, *range(wanted - 1)),), 2, count, 1) for context in contexts]


def child(arguments: list[str], ranks: int = 1) -> dict:
    """What a process of this program prints: the first of so many ranks."""
    from tools.check_plan import answer_of

    begin = ["-m"] if ranks == 1 else ["scripts/launch.py", str(ranks)]
    return answer_of([*begin, "tools.check_cost", *arguments])


def lines(name: str, precision: str, ranks: int, plan: dict, found: dict) -> Iterator[str]:
    from tools.check_plan import pair

    for kind, cases in (("decoding", DECODING), ("scoring", SCORING)):
        cells = [f"{rows} × {width}: {pair(1e3 * one, 1e3 * other, '.3g')}"
                 for (rows, width), one, other in zip(cases, plan[kind], found[kind], strict=True)]
        yield f"| {Path(name).name} | {precision.replace(',', ', INT')} | {ranks} | {kind} | {'; '.join(cells)} |"


def main() -> int:
    from planning.check import check_divisible
    from runtime.arguments import CommandParser
    from tools.check_plan import keep

    parser = CommandParser(__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="presets, or folders")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, metavar="P", help="fp32, bf16, bf16,8 ...")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1], metavar="N", help="that share the model")
    parser.add_argument("--repeats", type=int, default=2, metavar="N", help="times that all is done (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--child", choices=("plan", "measure"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        setup = setup_of(arguments.models[0], arguments.precisions[0], arguments.ranks[0])
        found = planned(setup) if arguments.child == "plan" else measured(setup, arguments.repeats)
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps(found))
        return 0
    for name, ranks in product(arguments.models, arguments.ranks):
        check_divisible(config_of(name), ranks)  # before an hour has gone into the cases in front of it
    print("| model | precision | ranks | | rows × tokens: planned / measured ms |\n|---|---|---|---|---|")
    records = []
    for name, precision, ranks in product(arguments.models, arguments.precisions, arguments.ranks):
        asked = ["--models", name, "--precisions", precision, "--ranks", str(ranks)]
        plan = child([*asked, "--child", "plan"])
        found = child([*asked, "--repeats", str(arguments.repeats), "--child", "measure"], ranks)
        records.append({"model": name, "precision": precision, "ranks": ranks, "planned": plan, "measured": found})
        print("\n".join(lines(name, precision, ranks, plan, found)), flush=True)
    keep(records, arguments.json)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from runtime.program import run

    run(main)
