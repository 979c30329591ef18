"""Train a GLM from scratch with GLM's own objective, on a CPU or one GPU.

    python tools/pretrain.py --corpus corpus/ --vocabulary ice_text.model --output run/ --model glm-small --steps 3000

The corpus comes from tools/prepare_corpus.py. The run's folder holds state.pt (resumed from when it is there: same
flags, same loss curve, whenever the run was killed), log.jsonl and loss.png. tools/export_checkpoint.py makes a
checkpoint of it. More in docs/pretraining.md.
"""

import argparse
import math
import sys
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    from runtime.arguments import CommandParser, amount, count, count_or_zero, share

    parser = CommandParser(description=__doc__)
    add = parser.add_argument
    add("--corpus", type=Path, required=True, help="folder written by tools/prepare_corpus.py")
    add("--vocabulary", type=Path, required=True, help="the ice_text.model that the corpus was encoded with")
    add("--output", type=Path, required=True, help="folder of the run")
    add("--model", default="glm-small", help="preset of glm/config.py")
    for name in ("--num-layers", "--hidden-size", "--num-attention-heads", "--inner-hidden-size"):
        add(name, type=count, metavar="N", help="(default: the preset's)")
    add("--vocab-size", type=count, metavar="N", help="(default: as many as the vocabulary has ids)")
    add("--steps", type=count_or_zero, required=True, help="length of the whole run")
    add("--stop-at", type=count, help="save and leave after this step, the schedule staying that of --steps")
    add("--rows", type=count, default=16, help="rows in a batch")
    add("--width", type=count, default=256, help="tokens in a row")
    add("--optimizer", choices=("muon", "adamw"), default="muon", help="of the layers' matrices; all else has adamw")
    add("--matrix-rate", type=amount, default=4e-3, help="peak learning rate of the layers' matrices")
    add("--rate", type=amount, default=2e-3, help="peak learning rate of embedding, norms and biases")
    add("--weight-decay", type=amount, default=0.05, help="of the matrices")
    add("--warm-up", type=count_or_zero, default=100, help="steps")
    add("--decay-from", type=count_or_zero, help="keep the peak rate until this step, then a cosine to --steps "
                                       "(default: from the warm-up on)")
    add("--clip", type=amount, default=1.0, help="largest norm of the gradient")
    add("--embedding-gradient-shrink", type=share, default=0.1, help="share of the input embedding's gradient")
    add("--mask-share", type=share, default=0.25, help="share of [MASK] samples")
    add("--smask-share", type=share, default=0.05, help="share of [sMASK] samples; the rest is [gMASK]")
    add("--weights", nargs="*", default=[], metavar="NAME=FACTOR", help="take a file of the corpus more or less often")
    add("--seed", type=count_or_zero, default=1, help="of the first weights and of the samples")
    add("--save-every", type=count, default=100, help="steps")
    add("--evaluate-every", type=count, default=200, help="steps")
    add("--evaluation-rows", type=count, default=16, help="rows of held-out text per language and kind of blank")
    add("--evaluate-only", action="store_true", help="print the held-out losses of the run's saved state, and stop")
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--threads", type=count, help="of a CPU (default: torch's choice)")
    add("--fp32", action="store_true", help="no bfloat16 autocast")
    add("--compile", action="store_true", help="compile the forward and backward pass with torch.compile")
    return parser


def parse_weights(texts: list[str]) -> dict[str, float]:
    from runtime.errors import UserError

    try:
        return {name: float(factor) for name, factor in (text.split("=") for text in texts)}
    except ValueError:
        raise UserError(f"--weights {' '.join(texts)}: expected NAME=FACTOR, as in zh_poetry=0.5") from None


def report_held_out(losses: dict[str, float], index: dict[str, dict]) -> str:
    """Perplexity per token, and bits per character of the held-out text, which do not depend on the vocabulary."""
    lines = []
    for name, loss in losses.items():
        files = [facts["held_out"] for facts in index.values() if facts["language"] == name.split()[0]]
        tokens, characters = (sum(facts[what] for facts in files) for what in ("tokens", "characters"))
        lines.append(f"{name}: {loss:.4f} nats per token, perplexity {math.exp(loss):.1f}, "
                     f"{loss * tokens / characters / math.log(2):.3f} bits per character")
    return "\n".join(lines)


def pretrain(options: argparse.Namespace, asked) -> None:
    """asked: of runtime.program.Interrupts; when it is, the step's state is saved before the end."""
    import torch

    from glm.checkpoint import CONFIG_NAME
    from glm.tokenizers.icetk import IcetkTokenizer
    from runtime.errors import UserError
    from tuning import corpus_run, from_scratch
    from tuning.data.corpus import read_index
    from tuning.loop import train

    if options.mask_share + options.smask_share > 1:
        raise UserError(f"--mask-share {options.mask_share:g} and --smask-share {options.smask_share:g} are more than "
                        "all samples together")
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer = IcetkTokenizer(options.vocabulary, num_image_tokens=0)
    texts = from_scratch.open_texts(options, parse_weights(options.weights), tokenizer)
    model = from_scratch.open_model(options, tokenizer)
    corpus_run.check_same_data(options.output, options.corpus, options.vocabulary, read_index(options.corpus))
    run = corpus_run.CorpusRun(options.output, options.rows, options.width)
    training = from_scratch.training_of(options, model, texts, run)
    from_scratch.restore(model, run)
    from_scratch.save_config(model, options.output / CONFIG_NAME)
    if options.evaluate_only:
        losses = from_scratch.held_out_losses(model, texts, options.evaluation_rows, from_scratch.autocast_of(options))
        print(report_held_out(losses, read_index(options.corpus)))
        return
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {run.progress['step']} to "
          f"{options.steps}", flush=True)
    lines = corpus_run.Lines(len(training.steps), options.rows * options.width)

    def tell(line: dict) -> None:
        if told := lines.after(line["step"] + 1, line["loss"], line.get("held_out", {})):
            print(told, flush=True)

    train(training, run, asked, tell)
    corpus_run.plot_log(options.output / corpus_run.LOG, options.output / "loss.png")


def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    from runtime.files import Lock
    from runtime.program import FORESEEN, Interrupts, ended

    try:
        with Lock(options.output, "--output"), Interrupts() as asked:
            pretrain(options, asked)
    except FORESEEN as error:
        sys.exit(ended(error, f"the same command goes on from the last saved step: {options.output}"))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from runtime.program import run

    run(main)
