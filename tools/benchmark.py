"""Speed of the model on this machine, beside what the machine can do at best and beside other engines.

    python tools/benchmark.py --model shape-335m --dtype bf16 fp32
    python tools/benchmark.py --load checkpoints/glm-small
    python tools/benchmark.py --model shape-335m --against transformers llama.cpp openvino --json result.json
    python tools/benchmark.py --model glm-1.3b --bits 8 4 --group-size 32
    python tools/benchmark.py pairs --model shape-335m --against llama.cpp --rounds 5
    python tools/benchmark.py evaluation --data-path data --rows 300
    python tools/benchmark.py serving --clients 1 4 16
    python tools/benchmark.py training --against transformers

Decoding is bound by reading the weights once per step, so its ceiling is the read bandwidth; a prompt is bound by
arithmetic, so its ceiling is what torch reaches on bare matrix products of the same shapes. Both are measured here,
around every result. Random weights take the place of a checkpoint unless --load names one.
"""

import argparse
import shlex
import sys
from pathlib import Path

EMBEDDED = Path(__file__).resolve().parent.parent / "checkpoints" / "glm-small"
PEERS = ("transformers", "llama.cpp", "openvino")


def make_parser() -> argparse.ArgumentParser:
    from runtime.arguments import CommandParser

    parser = CommandParser(prog="benchmark.py", description=__doc__)

    def shared(add, dtype):
        add("--device", default="cpu", help="cpu, cuda or cuda:N")
        add("--dtype", nargs="+", default=[dtype], choices=("bf16", "fp16", "fp32"), help="one or more")
        add("--threads", type=int, help="of the processor (default: torch's choice)")
        add("--json", type=Path, metavar="FILE", help="also write the results to this file")
        add("--no-plan", action="store_true", help="load a checkpoint even if it cannot fit in memory")

    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    model = commands.add_parser("model", help="prefill and decoding of a model; the word may be left out")
    add = model.add_argument
    add("--model", help="preset of glm/config.py (default: shape-335m, or what the checkpoint says)")
    add("--load", type=Path, metavar="CHECKPOINT", help="measure this checkpoint instead of random weights")
    shared(add, "bf16")
    add("--bits", nargs="*", type=int, default=[], choices=(8, 4), help="also with packed INT8, INT4 weights")
    add("--group-size", type=int, metavar="N", help="columns of packed weights that share a scale (default: a row)")
    add("--prefill", nargs="*", type=int, default=[128, 512, 1024, 2048], metavar="TOKENS", help="prompt lengths")
    add("--contexts", nargs="*", type=int, default=[1, 128, 512], metavar="TOKENS", help="places before the decoded")
    add("--widths", nargs="*", type=int, default=[1, 4], metavar="N", help="1: greedy, others: beams")
    add("--steps", type=int, default=24, help="decoding steps timed for each result")
    add("--repeats", type=int, default=3, help="prefills timed for each result")
    add("--buffer-mb", type=int, default=1024, help="read to measure the bandwidth; far more than any cache")
    add("--against", nargs="+", default=[], choices=PEERS, metavar="ENGINE", help=f"also: {', '.join(PEERS)}")
    parser.epilog = "Of model, or without a COMMAND:\n\n" + model.format_help().partition("\n\n")[2]
    pairs = commands.add_parser("pairs", help="this model and another engine in turn, round by round")
    add = pairs.add_argument
    add("--model", default="shape-335m", help="preset of glm/config.py")
    add("--dtype", nargs="+", default=["bf16"], choices=("bf16", "fp16", "fp32"), help="of x, too: the first")
    add("--prefill", nargs="*", type=int, default=[128, 512, 2048], metavar="TOKENS", help="prompt lengths")
    add("--contexts", nargs="*", type=int, default=[1, 512], metavar="TOKENS", help="places before the decoded")
    add("--steps", type=int, default=16, help="decoding steps of a round")
    add("--rounds", type=int, default=5, help="that both take part in")
    add("--threads", type=int, help="of the processor (default: torch's choice)")
    add("--against", default="llama.cpp", choices=PEERS, metavar="ENGINE", help=", ".join(PEERS))
    kernels = commands.add_parser("kernels", help="products with packed weights, beside torch's and the memory")
    add = kernels.add_argument
    add("--size", nargs=2, type=int, default=[4096, 4096], metavar=("N", "K"), help="of the weights")
    add("--rows", nargs="+", type=int, default=[1, 2, 4, 16, 32, 512], metavar="M", help="of x")
    add("--dtype", default="bf16", choices=("bf16", "fp16", "fp32"), help="of x")
    add("--groups", nargs="*", type=int, default=[128, 32], metavar="N", help="group sizes beside whole rows")
    add("--matrices", type=int, default=10, help="weights used in turn, so that none stays in a cache")
    add("--repeats", type=int, default=3, help="passes over them")
    add("--threads", type=int, help="of the processor (default: torch's choice)")
    evaluation = commands.add_parser("evaluation", help="the evaluator on real data, beside one item after the other")
    add = evaluation.add_argument
    add("--load", type=Path, metavar="CHECKPOINT", default=EMBEDDED, help="default: the embedded model")
    add("--data-path", type=Path, required=True, metavar="DIR",
        help="what scripts/prepare_data.sh has written: CoLA, C3, LAMBADA and CMRC2018")
    shared(add, "fp32")
    add("--rows", type=int, default=300, help="of every task that is scored")
    add("--generated-rows", type=int, default=48, help="of every task that generates")
    add("--batch", type=int, default=16, help="items at a time in generation")
    add("--repeats", type=int, default=3, help="passes over all of them")
    serving = commands.add_parser("serving", help="the server under clients, beside the same texts without it")
    add = serving.add_argument
    add("--load", type=Path, metavar="CHECKPOINT", default=EMBEDDED, help="default: the embedded model")
    add("--dtype", nargs="+", default=["fp32"], choices=("bf16", "fp16", "fp32"), help="one or more")
    add("--clients", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="at once")
    add("--requests", type=int, default=4, help="of every client, one after the other")
    add("--threads", type=int, help="of the processor (default: torch's choice)")
    add("--no-plan", action="store_true", help="load a checkpoint even if it cannot fit in memory")
    training = commands.add_parser("training", help="a step of tuning, beside transformers with peft")
    add = training.add_argument
    add("--model", default="shape-335m", help="preset of glm/config.py")
    add("--methods", nargs="+", default=["full", "lora"], choices=("full", "lora"), help="all weights, or LoRA")
    add("--dtype", nargs="+", default=["fp32"], choices=("bf16", "fp32"), help="of the products")
    add("--rows", type=int, default=4, help="of a step")
    add("--source", type=int, default=192, metavar="TOKENS", help="of each row, that are read")
    add("--target", type=int, default=64, metavar="TOKENS", help="of each row, that are learned")
    add("--steps", type=int, default=5, help="of each engine, in turn, that count; one before does not")
    add("--threads", type=int, help="of the processor (default: torch's choice)")
    add("--against", nargs="*", default=[], choices=("transformers",), metavar="ENGINE", help="also: transformers")
    return parser


def parse(argv: list[str]) -> argparse.Namespace:
    """The command is `model` unless another one is named."""
    parser = make_parser()
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        argv = ["model", *argv]
    return parser.parse_args(argv or ["model"])


def measure_model(arguments: argparse.Namespace) -> None:
    import torch

    import glm
    from glm.checkpoint import read_config
    from glm.config import ModelConfig
    from glm.loading import DTYPES
    from quantization.functional import Scheme
    from runtime.errors import UserError
    from runtime.pages import large_bytes
    from runtime.resources import free_memory
    from tools.benchmarking import own, peers, results
    from tools.benchmarking.rates import Bandwidth

    torch.manual_seed(0)
    own.check_counts(prefill=arguments.prefill, contexts=arguments.contexts, widths=arguments.widths,
                     steps=[arguments.steps], repeats=[arguments.repeats])
    name = arguments.model or "shape-335m"
    config = read_config(arguments.load, arguments.model) if arguments.load else ModelConfig.from_name(name)
    own.check_places(config, arguments.prefill, arguments.contexts, arguments.steps)
    shape = own.shape_of(config)
    if arguments.bits:
        own.check_groups(arguments.group_size, shape)
    before, bandwidth = results.load_average(), Bandwidth(arguments.device, arguments.buffer_mb << 20)
    found, skipped = [], {}

    def keep(measured):
        for result in measured:
            found.append(result)
            results.say(f"{result.engine} {result.precision} {result.kind} {result.tokens} x{result.width}: "
                        f"{result.tokens_per_second:.1f} tokens/s, {100 * result.share:.0f}% of the ceiling")

    def measure_one(model, name, large):
        results.say(f"{name}: {own.in_large_pages(model, large)}")
        keep(own.prefills(model, arguments.prefill, name, arguments.device, arguments.repeats))
        keep(own.decodes(model, arguments.contexts, arguments.widths, name, arguments.steps, bandwidth))
        if arguments.device.startswith("cuda"):
            keep(own.recorded_decodes(model, arguments.contexts, arguments.widths, name, arguments.steps, bandwidth))

    for precision in arguments.dtype:
        dtype, large = DTYPES[precision], large_bytes()
        reason = None if arguments.load else own.too_large(config, precision, free_memory(arguments.device))
        if reason and not arguments.bits:
            raise UserError(f"{name} in {precision}: {reason}; with --bits 4 only packed weights are made")
        if reason:
            skipped[f"{own.ENGINE} {precision}"] = reason
        elif arguments.load:
            measure_one(glm.load(arguments.load, arguments.device, dtype, model=arguments.model)[0], precision, large)
        else:
            measure_one(own.ready_model(config, dtype, arguments.device), precision, large)
        for bits in arguments.bits:
            scheme, large = Scheme(bits, arguments.group_size), large_bytes()
            held = f"{precision}, INT{bits}" + (f" g{arguments.group_size}" if arguments.group_size else "")
            measure_one(own.ready_model(config, dtype, arguments.device, scheme), held, large)
    for engine in arguments.against:
        try:
            keep(peers.measure(engine, arguments, shape, bandwidth))
        except peers.Missing as reason:
            skipped[engine] = str(reason)
        except Exception as error:  # one engine's failure must not cost the others' results
            skipped[engine] = f"it failed: {type(error).__name__}: {error}"
        if engine in skipped:
            results.say(f"{engine}: {skipped[engine]}")
    facts = {"model": str(arguments.load or name), "layers": shape.layers, "hidden": shape.hidden,
             "heads": shape.heads, "inner": shape.inner, "vocabulary": shape.vocabulary, "parameters": shape.parameters}
    machine = results.describe(arguments.device, before)
    results.show(results.tables(found), machine, facts,
                 [f"{engine}: not measured: {reason}" for engine, reason in skipped.items()])
    if arguments.json:
        results.write(arguments.json, found, skipped, machine, facts, vars(arguments), command())


def measure_pairs(arguments: argparse.Namespace) -> None:
    from glm.config import ModelConfig
    from runtime.show import table
    from tools.benchmarking import pairs, results

    before, config, found = results.load_average(), ModelConfig.from_name(arguments.model), []
    for pair in pairs.measure(arguments, config):
        found.append(pair)
        results.say(f"{pair.precision} {pair.work}: {' '.join(pairs.row(pair)[2:])}")
    results.show([table(*pairs.table(found))], results.describe("cpu", before),
                 {"model": arguments.model, "rounds": arguments.rounds})


def measure_evaluation(arguments: argparse.Namespace) -> None:
    import glm
    from glm.loading import DTYPES
    from runtime.errors import UserError
    from tools.benchmarking import evaluation, own, results

    for name in ("rows", "generated_rows", "batch", "repeats"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: must be at least 1")
    found, before = [], results.load_average()
    for precision in arguments.dtype:
        model, tokenizer = glm.load(arguments.load, arguments.device, DTYPES[precision])
        for result in evaluation.measure(model, tokenizer, arguments.data_path, precision, arguments.rows,
                                         arguments.generated_rows, arguments.batch, arguments.repeats):
            found.append(result)
            results.say(f"{result.task} {result.kind} {precision}: {result.items / result.seconds:.1f} items/s, "
                        + ", ".join(f"{ratio:.1f} times {way}" for way, ratio in result.ratios.items()))
    facts = {"model": str(arguments.load), "parameters": own.shape_of(model.config).parameters}
    machine = results.describe(arguments.device, before)
    results.show(evaluation.tables(found), machine, facts)
    if arguments.json:
        results.write(arguments.json, found, {}, machine, facts, vars(arguments), command())


def measure_kernels(arguments: argparse.Namespace) -> None:
    from glm.loading import DTYPES
    from tools.benchmarking import kernel_table, results

    before = results.load_average()
    table = kernel_table.measure(*arguments.size, arguments.rows, DTYPES[arguments.dtype], arguments.groups,
                                 arguments.matrices, arguments.repeats)
    results.show([table], results.describe("cpu", before), {"weights": "{} x {}".format(*arguments.size)})


def measure_serving(arguments: argparse.Namespace) -> None:
    from runtime.show import table
    from tools.benchmarking import results, serving

    before = results.load_average()
    tables = []
    for precision in arguments.dtype:
        heads, rows = serving.table(serving.measure(arguments.load, precision, arguments.clients, arguments.requests))
        tables.append(table([precision, *heads[1:]], rows))
    results.show(tables, results.describe("cpu", before), {"model": str(arguments.load), "tokens": serving.TOKENS})


def measure_training(arguments: argparse.Namespace) -> None:
    import torch

    from runtime.show import table
    from tools.benchmarking import own, results, training

    own.check_counts(rows=[arguments.rows], source=[arguments.source], target=[arguments.target],
                     steps=[arguments.steps])
    before = results.load_average()
    works = [(method, precision) for precision in arguments.dtype for method in arguments.methods]
    found = list(training.measure([training.OWN, *arguments.against], works, arguments.steps, model=arguments.model,
                                  rows=arguments.rows, source=arguments.source, target=arguments.target,
                                  threads=torch.get_num_threads()))
    results.show([table(*training.table(found))], results.describe("cpu", before),
                 {"model": arguments.model, "rows": arguments.rows, "source": arguments.source,
                  "target": arguments.target})


def command() -> str:
    return "python tools/benchmark.py " + shlex.join(sys.argv[1:])


def require_fit(arguments: argparse.Namespace) -> None:
    """Raises UserError if the checkpoint does not fit into this machine's memory; without importing torch."""
    if getattr(arguments, "load", None) is None or arguments.no_plan:
        return
    from planning.check import require_model

    for precision in arguments.dtype:
        require_model(arguments.load, getattr(arguments, "model", None), getattr(arguments, "device", "cpu"), precision,
                      "this benchmark")


def main() -> int:
    arguments = parse(sys.argv[1:])
    from runtime.errors import UserError

    try:
        require_fit(arguments)
        if arguments.threads:
            import torch

            torch.set_num_threads(arguments.threads)
        measures = {"model": measure_model, "pairs": measure_pairs, "kernels": measure_kernels,
                    "evaluation": measure_evaluation, "serving": measure_serving, "training": measure_training}
        measures[arguments.command](arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from runtime.program import run

    run(main)
