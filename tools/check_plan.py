"""Compares plans with measurements: peak memory, and the time of loading, of a context and of a decoded token.

    python tools/check_plan.py                                       # five shapes, four precisions
    python tools/check_plan.py --models shape-335m --precisions bf16,8 --context 256

Every shape gets a random bfloat16 checkpoint below --folder, removed afterwards. Every measurement is a process of its
own. It loads the checkpoint, generates, and then takes the machine's rates in turn with its own times, because on a
shared machine they change by the second; the best of each counts. Reading memory and multiplying are timed for about
as long as a step and a context take: a shorter time could catch a fast moment that no step or context lasts for.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("glm-small", "shape-110m", "odd", "shape-335m", "glm-1.3b")
ODD = dict(num_layers=7, hidden_size=640, num_attention_heads=10, inner_hidden_size=1900, vocab_size=20001,
           max_sequence_length=1500, position_encoding_2d=True, num_image_tokens=0)
PRECISIONS = ("fp32", "bf16", "bf16,8", "bf16,4")
STORED = "bf16"


def config_of(name: str):
    from glm.config import ModelConfig

    return ModelConfig(**ODD) if name == "odd" else ModelConfig.from_name(name)


def write_checkpoint(folder: Path, name: str) -> None:
    from glm.loading import DTYPES
    from glm.shard import save_checkpoint
    from tools.benchmarking.own import random_model

    config = config_of(name)
    save_checkpoint(folder, 1, random_model(config, DTYPES[STORED], "cpu").state_dict(), config)


def setup_of(name: str, precision: str, context: int, new_tokens: int):
    from planning.shapes import Format, Setup

    kind, _, bits = precision.partition(",")
    return Setup(config_of(name), Format(kind, int(bits) if bits else None), file=Format(STORED), context=context - 1,
                 new_tokens=new_tokens + 1)


def measure(folder: Path, name: str, precision: str, context: int, new_tokens: int, rounds: int) -> dict:
    """Memory and times of a run, and the machine's rates meanwhile. Needs a process of its own."""
    from statistics import fmean

    import torch

    from generation.batch import generate
    from generation.params import SamplingParams
    from glm.loading import DTYPES, load_model
    from glm.options import ModelOptions
    from planning import machine
    from planning.memory import plan
    from planning.shapes import linears
    from runtime import parallel

    setup = setup_of(name, precision, context, new_tokens)
    begin = time.perf_counter()
    parallel.start(1)
    model = load_model(ModelOptions(folder, bits=setup.run.bits, device=torch.device("cpu"),
                                    dtype=DTYPES[setup.run.precision]), setup.config)
    loading = time.perf_counter() - begin
    loaded = highest()
    ids = torch.randint(setup.config.vocab_size - 1, (context,)).tolist()
    params = SamplingParams(top_k=1, min_gen_length=new_tokens)

    def run() -> tuple[float, float]:
        """Seconds of the context, and of a step behind it."""
        stamps = [time.perf_counter()]
        generate(model, [ids], params, end_tokens=[setup.config.vocab_size - 1], limits=[new_tokens],
                 on_step=lambda _: stamps.append(time.perf_counter()))
        steps = [after - before for before, after in itertools.pairwise(stamps[1:])]
        return stamps[1] - stamps[0] - min(steps), min(steps)

    run()
    peak = highest()
    shapes = [(weight.rows, weight.columns) for weight in linears(setup)]
    size = plan(setup).weights
    found = [(machine.bandwidth(size, min if size < machine.BUFFER else fmean),
              machine.matrix_rate(setup.run.precision, shapes, context - 1, fmean), *run()) for _ in range(rounds)]
    best = {}
    if found:
        bandwidths, rates, prefills, tokens = zip(*found, strict=True)
        best = {"bandwidth": max(bandwidths), "rate": max(rates), "prefill": min(prefills), "token": min(tokens)}
    return {"peak": peak, "loaded": loaded, "loading": loading} | best


def highest() -> int:
    """Bytes that this process had in memory at most. getrusage would include its parent's before the fork."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def planned(name: str, precision: str, context: int, new_tokens: int, found: dict) -> dict:
    from planning import memory, speed
    from planning.devices import Device

    setup = setup_of(name, precision, context, new_tokens)
    room = memory.plan(setup)
    sizes = {"peak": room.host, "loaded": room.host_loading}
    if "token" not in found:
        return sizes
    here = Device("cpu", "", "cpu", 0, found["bandwidth"], {setup.run.precision: found["rate"]}, found["bandwidth"],
                  found["bandwidth"], "", True)
    times = speed.plan(setup, room, here, None)
    return sizes | {"prefill": times.prefill, "token": times.token}


def compare(folder: Path, name: str, precision: str, arguments: argparse.Namespace) -> dict:
    """The measurement, in a process of its own, and the plan made with the rates that it found."""
    numbers = arguments.context, arguments.new_tokens, arguments.rounds
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(folder), "--models", name, "--precisions",
               precision, "--context", str(numbers[0]), "--new-tokens", str(numbers[1]), "--rounds", str(numbers[2])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = json.loads(done.stdout)
    return {"model": name, "precision": precision, "measured": found,
            "planned": planned(name, precision, *numbers[:2], found)}


def line(record: dict) -> str:
    def pair(key: str, unit: float, digits: int) -> str:
        if key not in record["planned"]:
            return "–"
        one, other = record["planned"][key], record["measured"][key]
        return f"{one / unit:.{digits}f} / {other / unit:.{digits}f} ({100 * (one / other - 1):+.0f}%)"

    kind, _, bits = record["precision"].partition(",")
    rates = {"bandwidth": 0.0, "rate": 0.0} | record["measured"]
    cells = [record["model"], f"{kind}, INT{bits}" if bits else kind, pair("loaded", 1e6, 0), pair("peak", 1e6, 0),
             pair("prefill", 1e-3, 1), pair("token", 1e-3, 2), f"{rates['bandwidth'] / 1e9:.0f}",
             f"{rates['rate'] / 1e12:.2f}"]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    from runtime.arguments import CommandParser

    parser = CommandParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="presets, or odd")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, metavar="P",
                        help="fp32, bf16, bf16,8 (packed INT8 in bf16) ...")
    parser.add_argument("--context", type=int, default=512, metavar="N", help="tokens read (default: 512)")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N", help="tokens generated (default: 16)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N",
                        help="times that all is timed; 0: memory alone (default: 5)")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: the system's for such)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.models[0], arguments.precisions[0], arguments.context,
                                 arguments.new_tokens, arguments.rounds)))
        return 0
    print("| model | precision | loaded, MB, planned / measured | peak, MB | context, ms | token, ms | GB/s | "
          "TFLOP/s |")
    print("|---|---|---|---|---|---|---|---|")
    records = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory(prefix="check-plan-", dir=arguments.folder) as folder:
            write_checkpoint(Path(folder), name)
            for precision in arguments.precisions:
                records.append(compare(Path(folder), name, precision, arguments))
                print(line(records[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(records, indent=1))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from runtime.program import run

    run(main)
