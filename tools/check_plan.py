"""Compares planned peaks of memory with measured ones.

    python tools/check_plan.py                                       # five shapes, four precisions
    python tools/check_plan.py --models shape-335m --precisions bf16,8 --context 256

Every shape gets a random bfloat16 checkpoint below --folder, removed afterwards. Every measurement is a process of its
own, which loads the checkpoint and generates. Times: tools/check_cost.py.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
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


def format_of(precision: str):
    """UserError for what no weights are computed in."""
    from planning.shapes import ELEMENT, Format
    from runtime.errors import UserError

    kind, _, bits = precision.partition(",")
    if kind not in ELEMENT or bits not in ("", "4", "8"):
        raise UserError(f"--precisions {precision}: must be one of {', '.join(ELEMENT)}, alone or with ,8 or ,4 behind "
                        "it")
    return Format(kind, int(bits) if bits else None)


def setup_of(name: str, precision: str, context: int, new_tokens: int):
    from planning.shapes import Format, Setup

    run = format_of(precision)
    return Setup(config_of(name), run, file=Format(STORED), context=context - 1, new_tokens=new_tokens + 1,
                 int8_vocabulary=bool(run.bits))


def measure(folder: Path, name: str, precision: str, context: int, new_tokens: int) -> dict:
    """Bytes in memory at most, once loaded and in all. Needs a process of its own."""
    import torch

    from generation.batch import generate
    from generation.params import SamplingParams
    from glm.loading import DTYPES, load_model
    from glm.options import ModelOptions
    from runtime import parallel

    setup = setup_of(name, precision, context, new_tokens)
    parallel.start(1)
    model = load_model(ModelOptions(folder, bits=setup.run.bits, device=torch.device("cpu"),
                                    dtype=DTYPES[setup.run.precision]), setup.config)
    loaded = highest()
    ids = torch.randint(setup.config.vocab_size - 1, (context,)).tolist()
    generate(model, [ids], SamplingParams(top_k=1, min_gen_length=new_tokens),
             end_tokens=[setup.config.vocab_size - 1], limits=[new_tokens])
    return {"peak": highest(), "loaded": loaded}


def highest() -> int:
    """Bytes that this process had in memory at most. getrusage would include its parent's before the fork."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def planned(name: str, precision: str, context: int, new_tokens: int) -> dict:
    from planning import memory

    room = memory.plan(setup_of(name, precision, context, new_tokens))
    return {"peak": room.host, "loaded": room.host_loading}


def compare(folder: Path, name: str, precision: str, context: int, new_tokens: int) -> dict:
    """The measurement, in a process of its own, and the plan."""
    found = answer_of([str(Path(__file__).resolve()), "--child", str(folder), "--models", name, "--precisions",
                       precision, "--context", str(context), "--new-tokens", str(new_tokens)])
    return {"model": name, "precision": precision, "measured": found,
            "planned": planned(name, precision, context, new_tokens)}


def output_of(arguments: Sequence[str]) -> str:
    """What Python prints for these."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:  # its own line says why
        sys.stderr.write(done.stderr)
        raise SystemExit(done.returncode)
    return done.stdout


def answer_of(arguments: Sequence[str]) -> dict:
    """The JSON in its last line."""
    return json.loads(output_of(arguments).splitlines()[-1])


def pair(planned: float, measured: float, form: str = ".0f") -> str:
    return f"{planned:{form}} / {measured:{form}} ({100 * (planned / measured - 1):+.0f}%)"


def keep(records: Sequence[dict], path: Path | None) -> None:
    """All figures, in the file that --json names."""
    if path is not None:
        path.write_text(json.dumps(records, indent=1))


def line(record: dict) -> str:
    kind, _, bits = record["precision"].partition(",")
    cells = [record["model"], f"{kind}, INT{bits}" if bits else kind,
             *(pair(record["planned"][key] / 1e6, record["measured"][key] / 1e6) for key in ("loaded", "peak"))]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    from runtime.arguments import CommandParser

    parser = CommandParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="presets, or odd")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, metavar="P",
                        help="fp32, bf16, bf16,8 (packed INT8 in bf16) ...")
    parser.add_argument("--context", type=int, default=512, metavar="N", help="tokens read (default: 512)")
    parser.add_argument("--new-tokens", type=int, default=16, metavar="N", help="tokens generated (default: 16)")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: the system's for such)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    numbers = arguments.context, arguments.new_tokens
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.models[0], arguments.precisions[0], *numbers)))
        return 0
    print("| model | precision | loaded, MB, planned / measured | peak, MB |")
    print("|---|---|---|---|")
    records = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory(prefix="check-plan-", dir=arguments.folder) as folder:
            write_checkpoint(Path(folder), name)
            for precision in arguments.precisions:
                records.append(compare(Path(folder), name, precision, *numbers))
                print(line(records[-1]), flush=True)
    keep(records, arguments.json)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from runtime.program import run

    run(main)
