"""Train a GLM from scratch with GLM's own objective, on a CPU or one GPU.

    python tools/pretrain.py --corpus corpus/ --vocabulary ice_text.model --output run/ --model glm-small --steps 3000

The corpus comes from tools/prepare_corpus.py. The run's folder holds state.pt (resumed from when it is there: same
flags, same loss curve, whenever the run was killed), log.jsonl and loss.png. tools/export_checkpoint.py makes a
checkpoint of it. More in docs/pretraining.md.
"""

import argparse
import math
import sys
import time
from pathlib import Path

HELD_OUT_SEED = 10_000_019


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


def batch_loss(model, batch: dict, shrink: float):
    """Mean cross entropy over the targets of a packed batch, and their number. Logits are made for the targets only."""
    import torch

    from tools.pretraining.data import blocked_of
    from tools.pretraining.objective import NO_TARGET

    hidden = model.hidden_states(batch["tokens"], batch["positions"], blocked_of(batch["segments"], batch["context"]),
                                 embedding_gradient_scale=shrink)
    wanted = batch["targets"] != NO_TARGET
    logits = model.head(hidden[wanted])
    return torch.nn.functional.cross_entropy(logits, batch["targets"][wanted]), int(wanted.sum())


def to_tensors(batch: dict, device: str) -> dict:
    import torch

    return {name: torch.from_numpy(array).to(device) for name, array in batch.items()}


def held_out_losses(model, corpora: dict, options, ids, autocast) -> dict[str, float]:
    """Loss per target token for every language, as "zh" ([gMASK]) and "zh [MASK]"; the rows are the same every time."""
    import torch

    from tools.pretraining.data import Mixture, draw_batch

    losses = {}
    for language, corpus in corpora.items():
        for name, mixture in ((language, Mixture(0.0, 0.0)), (f"{language} [MASK]", Mixture(1.0, 0.0))):
            total, count = 0.0, 0
            for first in range(0, options.evaluation_rows, 8):
                rows = min(8, options.evaluation_rows - first)
                batch = draw_batch(corpus, HELD_OUT_SEED, first, rows, 256, mixture, ids)
                with torch.no_grad(), autocast():
                    loss, targets = batch_loss(model, to_tensors(batch, options.device), 1.0)
                total, count = total + loss.item() * targets, count + targets
            losses[name] = round(total / count, 4)
    return losses


def report_held_out(losses: dict[str, float], index: dict[str, dict]) -> str:
    """Perplexity per token, and bits per character of the held-out text, which do not depend on the vocabulary."""
    lines = []
    for name, loss in losses.items():
        files = [facts["held_out"] for facts in index.values() if facts["language"] == name.split()[0]]
        tokens, characters = (sum(facts[what] for facts in files) for what in ("tokens", "characters"))
        lines.append(f"{name}: {loss:.4f} nats per token, perplexity {math.exp(loss):.1f}, "
                     f"{loss * tokens / characters / math.log(2):.3f} bits per character")
    return "\n".join(lines)


def train(options: argparse.Namespace, asked) -> None:
    """asked: of runtime.program.Interrupts; when it is, the step's state is saved before the end."""
    from functools import partial

    import torch

    from glm.config import ModelConfig
    from glm.model import GLM
    from glm.tokenizers.icetk import IcetkTokenizer
    from runtime.errors import UserError
    from runtime.files import replacing
    from tools.pretraining import run
    from tools.pretraining.data import Mixture, draw_batch, open_corpus, read_index
    from tools.pretraining.objective import ids_of
    from tools.pretraining.optimizer import Schedule, make_optimizers, set_rates

    if options.mask_share + options.smask_share > 1:
        raise UserError(f"--mask-share {options.mask_share:g} and --smask-share {options.smask_share:g} are more than "
                        "all samples together")
    if options.threads:
        torch.set_num_threads(options.threads)
    tokenizer = IcetkTokenizer(options.vocabulary, num_image_tokens=0)
    config = ModelConfig.from_name(options.model).override(
        num_layers=options.num_layers, hidden_size=options.hidden_size, num_attention_heads=options.num_attention_heads,
        inner_hidden_size=options.inner_hidden_size, vocab_size=options.vocab_size or tokenizer.num_tokens)
    if tokenizer.num_tokens > config.vocab_size:
        raise UserError(f"{options.vocabulary} has {tokenizer.num_tokens} ids, more than vocab_size "
                        f"{config.vocab_size}; leave --vocab-size out")
    ids, weights = ids_of(tokenizer), parse_weights(options.weights)
    eos = tokenizer.command("eos")
    languages = sorted({facts["language"] for facts in read_index(options.corpus).values()})
    corpus = open_corpus(options.corpus, eos, weights)
    held_out = {language: open_corpus(options.corpus, eos, weights, ".heldout", language)
                for language in languages}
    mixture = Mixture(options.mask_share, options.smask_share)
    schedule = Schedule(options.steps, options.warm_up, options.decay_from)
    autocast = partial(torch.autocast, options.device.split(":")[0], dtype=torch.bfloat16, enabled=not options.fp32)

    torch.manual_seed(options.seed)  # the initial weights are the only use of torch's generator
    model = GLM(config, dtype=torch.float32, device=options.device, skip_init=False)
    optimizers = make_optimizers(model, options.optimizer, options.matrix_rate, options.rate, options.weight_decay)
    run.check_same_data(options.output, options.corpus, options.vocabulary, read_index(options.corpus))
    progress = run.load_state(options.output, model, optimizers)
    with replacing(options.output / "model_config.json") as temporary:
        config.save(temporary)
    step = progress["step"]
    if options.evaluate_only:
        print(report_held_out(held_out_losses(model, held_out, options, ids, autocast), read_index(options.corpus)))
        return
    loss_of = torch.compile(batch_loss) if options.compile else batch_loss
    parameters = list(model.parameters())
    print(f"{sum(p.numel() for p in parameters):,} parameters, from step {step} to {options.steps}", flush=True)

    log = options.output / run.LOG
    end = min(options.steps, options.stop_at or options.steps)
    lines = run.Lines(step, end, options.rows * options.width)
    while step < end:
        began = time.perf_counter()
        batch = draw_batch(corpus, options.seed, progress["rows"], options.rows, options.width, mixture, ids)
        set_rates(optimizers, schedule.factor(step))
        with autocast():
            loss, targets = loss_of(model, to_tensors(batch, options.device), options.embedding_gradient_shrink)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, options.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress = {"step": step + 1, "rows": progress["rows"] + options.rows,
                    "tokens": progress["tokens"] + options.rows * options.width}
        step = progress["step"]
        seconds = time.perf_counter() - began
        entry = {**progress, "loss": round(loss.item(), 5), "norm": round(float(norm), 4), "targets": targets,
                 "rate": round(schedule.factor(step - 1), 5), "seconds": round(seconds, 3)}
        if step % options.evaluate_every == 0 or step == end:
            entry["held_out"] = held_out_losses(model, held_out, options, ids, autocast)
        run.append_log(log, entry)
        if line := lines.after(step, loss.item(), entry.get("held_out", {})):
            print(line, flush=True)
        if step % options.save_every == 0 or step == end or asked:
            run.save_state(options.output, model, optimizers, progress)
        asked.check()
    run.plot_log(log, options.output / "loss.png")


def main(arguments: list[str] | None = None) -> None:
    options = make_parser().parse_args(arguments)
    from runtime.files import Lock
    from runtime.program import FORESEEN, Interrupts, ended

    try:
        with Lock(options.output, "--output"), Interrupts() as asked:
            train(options, asked)
    except FORESEEN as error:
        sys.exit(ended(error, f"the same command goes on from the last saved step: {options.output}"))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from runtime.program import run

    run(main)
