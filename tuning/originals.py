"""The command lines of GLM's repository and of ChatGLM-6B's ptuning folder, said in the words of this program.

What those programs need and this one does not (how many processes load data, which parts of a state are kept) is left
out, and said. What this one cannot do is refused. Knows no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from planning.machine import default_device
from runtime.arguments import flag_name
from runtime.errors import UserError
from tuning.train_options import OptimizerOptions, TrainOptions

GLM_PROGRAMS = ("finetune_glm.py", "finetune_gpt2.py", "pretrain_glm.py", "pretrain_gpt2.py")
CHATGLM_PROGRAM = "main.py"
PROGRAMS = (*GLM_PROGRAMS, CHATGLM_PROGRAM)

# Flags of the GLM repository that have another name here.
_GLM_NAMES = {"--load-pretrained": "--load", "--max-position-embeddings": "--max-sequence-length",
              "--intermediate-size": "--inner-hidden-size", "--task-name": "--task"}
# Flags without effect here, and how many values each has.
_GLM_NOTHING = dict.fromkeys(
    ("--block-lm", "--finetune", "--deepspeed", "--deepspeed-activation-checkpointing", "--no-load-optim",
     "--no-load-rng", "--no-load-lr-scheduler", "--no-load-iteration", "--no-save-optim", "--no-save-rng",
     "--overwrite", "--resume-dataloader", "--lazy-loader", "--shuffle", "--fp32-embedding", "--fp32-layernorm",
     "--fp32-tokentypes", "--fp32-allreduce", "--cpu-optimizer", "--cpu-torch-adam", "--deep-init", "--loose-json",
     "--adam", "--fast-decode", "--shuffle-blocks", "--load-splits",
     "--no-lazy-loader", "--half-lazy-loader", "--no-pre-tokenize", "--new-save-directory", "--no-deepspeed-load",
     "--few-superglue"), 0) | dict.fromkeys(
    ("--num-workers", "--log-interval", "--eval-interval", "--eval-iters", "--save-epoch", "--distributed-backend",
     "--DDP-impl", "--local-rank", "--checkpoint-num-layers", "--vocab-size",
     "--make-vocab-size-divisible-by", "--layernorm-epsilon", "--out-seq-length", "--temperature", "--top-p",
     "--top-k", "--no-load-optimizer", "--eval-max-preds-per-seq", "--master-port",
     "--loader-scatter", "--cache-dir", "--save-splits", "--save-test-data", "--attention-scale", "--mem-length"), 1)
_OF_PRETRAINING = ("--eval-interval", "--eval-iters")  # validation of rows has epochs
_CHATGLM_NAMES = {
    "--model-name-or-path": "--load", "--output-dir": "--save", "--learning-rate": "--lr",
    "--max-steps": "--train-iters", "--num-train-epochs": "--epochs", "--per-device-train-batch-size": "--batch-size",
    "--per-device-eval-batch-size": "--eval-batch-size", "--save-steps": "--save-interval",
    "--quantization-bit": "--quantization-bit-width", "--ptuning-checkpoint": "--prefix-encoder",
    "--adam-epsilon": "--adam-eps", "--max-grad-norm": "--clip-grad", "--deepspeed": "--deepspeed-config",
}
_CHATGLM_NOTHING = dict.fromkeys(
    ("--overwrite-cache", "--overwrite-output-dir", "--predict-with-generate"), 0) | dict.fromkeys(
    ("--logging-steps", "--preprocessing-num-workers", "--cache-dir", "--report-to", "--local-rank"), 1)
_OF_TRAINING = {f"--{flag_name(each).replace('_', '-')}" for options in (OptimizerOptions, TrainOptions)
                for each in fields(options)} - {"--eval-batch-size"}
# What Hugging Face's Trainer does where ptuning's scripts say nothing: this program's own defaults are GLM's.
_TRAINER = {"--weight-decay": "0", "--warmup": "0", "--lr-decay-style": "linear", "--lr-decay-ratio": "0",
            "--lr": "5e-5", "--seed": "42"}


@dataclass
class Translated:
    """What to run: commands of `python -m tuning` with their arguments, one after the other."""

    commands: list[list[str]]
    left_out: list[str] = field(default_factory=list)  # flags without effect here


def translated(program: str, words: Sequence[str]) -> Translated:
    """UserError for a program or a flag that is not known."""
    name = Path(program).name
    if name in GLM_PROGRAMS:
        return _of_glm(name, words)
    if name == CHATGLM_PROGRAM:
        return _of_chatglm(words)
    raise UserError(f"{program}: not a program of the originals; there are {', '.join(PROGRAMS)}")


def _of_glm(program: str, words: Sequence[str]) -> Translated:
    is_pretraining = program.startswith("pretrain")
    nothing = {flag: count for flag, count in _GLM_NOTHING.items() if not (is_pretraining and flag in _OF_PRETRAINING)}
    flags, left_out = _read(words, _GLM_NAMES, nothing)
    if is_pretraining:
        flags["--task"] = ["pretrain"]
    elif "--task" in flags:
        flags["--task"] = [flags["--task"][0].lower()]
    if (name := flags.pop("--experiment-name", None)) and "--save" in flags:
        flags["--save"] = [str(Path(flags["--save"][0]) / name[0])]
    if flags.pop("--no-validation", None) is not None:
        flags["--eval-epoch"] = ["0"]
    if flags.pop("--adapet", None) is not None:
        flags["--loss-func"] = ["adapet"]
    if flags.get("--optimizer") == ["adam"]:
        del flags["--optimizer"]
    _settle_device(flags)
    _settle_batch(flags)
    return Translated([["train", *_joined(flags)]], left_out)


def _of_chatglm(words: Sequence[str]) -> Translated:
    flags, left_out = _read(words, _CHATGLM_NAMES, _CHATGLM_NOTHING)
    wants = {name: flags.pop(name, None) is not None for name in ("--do-train", "--do-eval", "--do-predict")}
    if not (wants["--do-train"] or wants["--do-predict"]):
        raise UserError("main.py: neither --do_train nor --do_predict was said, so there is nothing to do")
    flags["--task"] = ["chat"]
    _settle_device(flags)
    commands = []
    if wants["--do-train"]:
        mine = {name: [value] for name, value in _TRAINER.items()} | flags
        mine.pop("--test-file", None)
        if not wants["--do-eval"]:
            mine.pop("--validation-file", None)
        _settle_batch(mine)
        if "--train-iters" in mine:
            mine.pop("--epochs", None)
        commands.append(["train", *_joined(mine)])
    if wants["--do-predict"]:
        mine = {name: value for name, value in flags.items() if name not in (*_OF_TRAINING, "--train-file")}
        save = mine.pop("--save", ["."])[0]
        commands.append(["predict", "--split", "test", *_joined(mine), "--output",
                         str(Path(save) / "generated_predictions.txt")])
    return Translated(commands, left_out)


def _settle_device(flags: dict[str, list[str]]) -> None:
    """The originals run on GPUs; without one a CPU does, which has no use for their float16."""
    device = flags.setdefault("--device", [default_device()])[0]
    if flags.pop("--fp16", None) is not None:
        flags.setdefault("--dtype", ["float16" if device.startswith("cuda") else "float32"])


def _settle_batch(flags: dict[str, list[str]]) -> None:
    """There a batch is what is computed at once, and a step has several; here it is a step's rows, computed in
    parts."""
    parts = flags.get("--gradient-accumulation-steps", ["1"])[0]
    if parts.isdecimal() and int(parts) > 1:
        batch = flags.get("--batch-size", ["4"])[0]
        if batch.isdecimal():
            flags["--batch-size"] = [str(int(batch) * int(parts))]


def _read(words: Sequence[str], names: Mapping[str, str],
          nothing: Mapping[str, int]) -> tuple[dict[str, list[str]], list[str]]:
    """Flags with their values by our names, and those that have no effect here. A flag that is said twice with
    different values is refused, as both cannot be meant; but what stands behind a lone -- replaces what is before."""
    found: dict[str, list[str]] = {}
    left_out: list[str] = []
    if "--" in words:
        before, behind = words[:words.index("--")], words[words.index("--") + 1:]
        (found, left_out), (more, others) = (_read(each, names, nothing) for each in (before, behind))
        return found | more, left_out + others
    place = 0
    while place < len(words):
        flag, equals, value = words[place].partition("=")
        if not flag.startswith("--"):
            raise UserError(f"{words[place]!r} is no flag, and belongs to none before it")
        flag = flag if flag in nothing else flag.replace("_", "-")
        end = place + 1
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        values = ([value] if equals else []) + list(words[place + 1:end])
        place = end
        if flag in nothing:
            if len(values) != nothing[flag]:
                raise UserError(f"{flag} takes {'a value' if nothing[flag] else 'no value'}, not {values}")
            left_out.append(flag)
            continue
        flag = names.get(flag, flag)
        if found.get(flag, values) != values:
            raise UserError(f"{flag} is said twice: {' '.join(found[flag])}, and {' '.join(values)} behind it; the "
                            "original would take the last without a word; leave one of them out")
        found[flag] = values
    return found, left_out


def _joined(flags: Mapping[str, Sequence[str]]) -> list[str]:
    return [word for flag, values in flags.items() for word in (flag, *values)]
