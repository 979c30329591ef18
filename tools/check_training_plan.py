"""Compares plans of trainings with measurements: peak memory, and the time of a step.

    python tools/check_training_plan.py --checkpoint checkpoints/glm-small               # six cases
    python tools/check_training_plan.py --checkpoint checkpoints/glm-small --cases 0 2   # the first and the third

Rows are random words, made for it below --folder and removed afterwards; shape-110m gets random weights. The plan is
that of `python -m tuning plan`, made right before the training. Every measurement is a training by the command itself,
in a process of its own; the fastest of its steps counts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("bell", "rings", "over", "quiet", "town", "while", "people", "walk", "home", "talk", "rain", "snow", "music")
ROWS, STEPS = 32, 4
CASES = (  # model, tokens of source and target, flags
    ("checkpoint", 400, 112, "--batch-size 4"),
    ("checkpoint", 400, 112, "--batch-size 8 --checkpoint-activations --attention-dropout 0"),
    ("shape-110m", 96, 32, "--batch-size 8"),
    ("shape-110m", 400, 112, "--batch-size 2 --checkpoint-activations"),
    ("shape-110m", 96, 32, "--batch-size 8 --lora-rank 8"),
    ("shape-110m", 96, 32, "--batch-size 8 --lora-rank 8 --quantization-bit-width 4"),
)


def write_rows(folder: Path) -> None:
    """A text a line; longer than any case cuts them to."""
    draw = random.Random(1)
    for split in ("train", "val"):
        for name, count in (("source", 700), ("target", 200)):
            lines = (" ".join(draw.choices(WORDS, k=count)) for _ in range(ROWS))
            (folder / f"{split}.{name}").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_checkpoint(folder: Path, name: str) -> None:
    import torch

    from glm.config import ModelConfig
    from glm.shard import save_checkpoint
    from tools.benchmarking.own import random_model

    config = ModelConfig.from_name(name).override(num_image_tokens=0)  # the tokenizer has none
    save_checkpoint(folder, 1, random_model(config, torch.float32, "cpu").state_dict(), config)


def words_of(case: tuple, load: Path, rows: Path, tokenizer: Path, save: Path) -> list[str]:
    """The arguments of the training, and of its plan."""
    _, source, target, flags = case
    return ["--task", "customization", "--data-dir", str(rows), "--load", str(load), "--save", str(save),
            "--tokenizer-path", str(tokenizer), "--src-seq-length", str(source), "--tgt-seq-length", str(target),
            "--train-iters", str(STEPS), "--eval-epoch", "0", "--lr", "1e-5", *flags.split()]


def measure(words: list[str]) -> dict:
    """Peak memory and the time of a step, of a training in this process."""
    from tools.check_plan import highest
    from tuning import loop
    from tuning.__main__ import main

    seconds, step_of = [], loop.one_step

    def timed(*arguments):
        begin = time.perf_counter()
        line = step_of(*arguments)
        seconds.append(time.perf_counter() - begin)
        return line

    loop.one_step = timed  # before the command imports it
    if main(["train", *words]):
        raise SystemExit("the training failed")
    return {"measured": highest(), "seconds": min(seconds[1:])}  # the first one also makes the moments


def planned(words: list[str]) -> dict:
    """By a process of its own."""
    from tools.check_plan import output_of

    plan = json.loads(output_of(["-m", "tuning", "plan", *words, "--json"]))
    return {"planned": plan["host"], "planned_seconds": plan["seconds"] / plan["of_epoch"]}


def line(case: tuple, found: dict) -> str:
    from tools.check_plan import pair

    model, source, target, flags = case
    cells = [model, str(source + target), f"`{flags}`", pair(found["planned"] / 1e6, found["measured"] / 1e6),
             pair(found["planned_seconds"], found["seconds"], ".2f"), f"{os.getloadavg()[0]:.0f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    from runtime.arguments import CommandParser
    from tools.check_plan import answer_of, keep

    parser = CommandParser(__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="DIR",
                        help="a small model, whose tokenizer all cases use")
    numbers = range(len(CASES))
    parser.add_argument("--cases", type=int, nargs="+", default=numbers, choices=numbers, metavar="N",
                        help="their numbers, from 0 on")
    parser.add_argument("--folder", type=Path, help="where files are written (default: the system's for such)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(json.loads(arguments.child))))
        return 0
    print("| model | tokens of a row | flags | peak, MB, planned / measured | step, s | load |")
    print("|---|---|---|---|---|---|")
    records = []
    for number in arguments.cases:
        with tempfile.TemporaryDirectory(prefix="check-plan-", dir=arguments.folder) as name:
            case, folder = CASES[number], Path(name)
            write_rows(folder)
            load = arguments.checkpoint
            if case[0] != "checkpoint":
                load = folder / "model"
                write_checkpoint(load, case[0])
            words = words_of(case, load.resolve(), folder, arguments.checkpoint.resolve(), folder / "run")
            child = [str(Path(__file__).resolve()), "--checkpoint", str(load), "--child", json.dumps(words)]
            records.append(planned(words) | answer_of(child))
            print(line(case, records[-1]), flush=True)
    keep(records, arguments.json)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from runtime.program import run

    run(main)
