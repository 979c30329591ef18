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
     "--adam", "--fast-decode", "--shuffle-blocks",
     "--no-lazy-loader", "--half-lazy-loader", "--no-pre-tokenize", "--new-save-directory", "--no-deepspeed-load",
     "--few-superglue", "--presplit-sentences",
     "--reset-position-ids", "--reset-attention-mask"), 0) | dict.fromkeys(  # read without --block-lm alone
    ("--num-workers", "--log-interval", "--eval-interval", "--eval-iters", "--save-epoch", "--distributed-backend",
     "--DDP-impl", "--local-rank", "--checkpoint-num-layers", "--vocab-size",
     "--make-vocab-size-divisible-by", "--layernorm-epsilon", "--out-seq-length", "--temperature", "--top-p",
     "--top-k", "--no-load-optimizer", "--eval-max-preds-per-seq", "--master-port",
     "--loader-scatter", "--cache-dir", "--save-splits", "--save-test-data", "--attention-scale", "--mem-length",
     "--text-key", "--eval-text-key", "--delim", "--input-data-sizes-file", "--max-preds-per-seq",  # of no reader there
     "--eval-seq-length",
     "--tokenizer-model-type"), 1)  # whose vocabulary is downloaded there; here it is a folder's
_OF_PRETRAINING = ("--eval-interval", "--eval-iters", "--eval-seq-length")  # validation of rows has epochs
# Flags that would change what is computed, and cannot here: why, and what does instead.
_ANOTHER_MODEL = "trains another architecture than GLM's"
_GLM_REFUSED = {
    "--transformer-xl": _ANOTHER_MODEL, "--encoder-decoder": _ANOTHER_MODEL, "--pretrained-bert": _ANOTHER_MODEL,
    "--masked-lm": "trains a BERT, which has no block positions and of which no checkpoint was published; leave it out "
                   "and give --bert-prob 1, for short blanks alone",
    "--sentinel-token": "needs a mask and a sop of its own for each blank, which no published checkpoint has; leave it "
                        "out: blanks are told apart by their positions",
    "--switch-linear": "goes on from the schedule within a checkpoint, which is not read here; say the rate that it "
                       "had: --lr RATE --lr-decay-style linear --warmup 0, and the rest of --train-iters",
    "--use-tfrecords": "reads BERT's TFRecords; --train-data FILE takes JSON lines of prompt and text",
    "--filter-english": "leaves out documents of other languages; leave them out of the file",
    "--load-splits": "takes a division of documents from a file; say the files of each part, --valid-data and "
                     "--test-data, or their shares, --split 949,50,1",
    "--eval-seq-length": "validates at another length; validation has that of --seq-length here",
}
_EVALUATED = ("lambda", "wikitext", "language_model", "multichoice")  # tasks that finetune_glm.py evaluates alone
_FOLDERS = {"mnli": "MNLI", "cola": "CoLA", "mrpc": "MRPC", "qnli": "QNLI", "qqp": "QQP", "sst2": "SST-2",
            "agnews": "Agnews", "yelp-polarity": "yelp_review_polarity_csv", "yelp-full": "yelp_review_full_csv",
            "yahoo": "Yahoo", "squad": "SQuAD", "race": "RACE"}  # of --multi-task-data, within --data-dir
_TASK_NAMES = {"squad": "squad-cloze"}  # of these, where another one has the name here
_OF_ADAM = ("--adam-beta1", "--adam-beta2", "--adam-eps")
_OF_SAVING = ("--save", "--experiment-name", "--no-validation", "--adapet")  # beside _OF_TRAINING
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
    if wrong := [flag for flag in flags if flag in _GLM_REFUSED]:
        raise UserError(f"{wrong[0]} {_GLM_REFUSED[wrong[0]]}")
    if is_pretraining:
        flags["--task"] = ["pretrain"]
        _settle_corpora(flags)
    elif task := _value(flags, "--task"):
        flags["--task"] = [task.lower()]
    is_of_validation = flags.pop("--eval-valid", None) is not None  # in place of the test, behind the last epoch
    if _value(flags, "--task") in _EVALUATED or _value(flags, "--epochs") == "0":
        return _evaluated(flags, left_out, "dev" if is_of_validation else "test")
    if is_of_validation:
        left_out.append("--eval-valid")
    name, folder = _value(flags, "--experiment-name"), _value(flags, "--save")
    flags.pop("--experiment-name", None)
    if name and folder:
        flags["--save"] = [str(Path(folder) / name)]
    if flags.pop("--no-validation", None) is not None:
        flags["--eval-epoch"] = ["0"]
    if flags.pop("--adapet", None) is not None:
        flags["--loss-func"] = ["adapet"]
    if flags.get("--optimizer") == ["adafactor"]:  # which gets nothing but the rate there
        left_out += [flag for flag in (*_OF_ADAM, "--weight-decay") if flags.pop(flag, None)]
        flags["--weight-decay"] = ["0"]
    _settle_device(flags)
    _settle_batch(flags)
    return Translated([["train", *_joined(flags)]], left_out)


def _evaluated(flags: dict[str, list[str]], left_out: list[str], split: str) -> Translated:
    """What trains nothing."""
    _settle_device(flags)
    kept = {flag: values for flag, values in flags.items() if flag not in (*_OF_TRAINING, *_OF_SAVING)}
    if _value(kept, "--task") not in _EVALUATED:
        kept["--split"] = [split]
    unused = [flag for flag in flags if flag not in kept and flag != "--epochs"]  # 0 of them
    return Translated([["evaluate", *_joined(kept)]], left_out + unused)


def _settle_corpora(flags: dict[str, list[str]]) -> None:
    """Files in place of the names of corpora that are classes of that program; tasks with their folders."""
    if len(files := flags.get("--train-data", [])) > 1:
        raise UserError(f"--train-data {' '.join(files)}: one file is read here, of JSON lines of prompt and text; "
                        "put the documents of all into one")
    tasks = flags.get("--multi-task-data", [])
    if tasks and not any("=" in task for task in tasks):
        if unknown := [task for task in tasks if task.lower() not in _FOLDERS]:
            raise UserError(f"--multi-task-data {unknown[0]}: there are {', '.join(_FOLDERS)}")
        folder = Path(_value(flags, "--data-dir", "."))
        flags.pop("--data-dir", None)
        flags["--multi-task-data"] = [",".join(
            f"{_TASK_NAMES.get(task.lower(), task.lower())}={folder / _FOLDERS[task.lower()]}" for task in tasks)]


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
        save = Path(_value(mine, "--save", "."))
        mine.pop("--save", None)
        commands.append(["predict", "--split", "test", *_joined(mine), "--output",
                         str(save / "generated_predictions.txt")])
    return Translated(commands, left_out)


def _settle_device(flags: dict[str, list[str]]) -> None:
    """The originals run on GPUs; without one a CPU does, which has no use for their float16."""
    if "--device" not in flags:
        flags["--device"] = [default_device()]
    device = _value(flags, "--device")
    if flags.pop("--fp16", None) is not None:
        flags.setdefault("--dtype", ["float16" if device.startswith("cuda") else "float32"])


def _settle_batch(flags: dict[str, list[str]]) -> None:
    """There a batch is what is computed at once, and a step has several; here it is a step's rows, computed in
    parts."""
    parts = _value(flags, "--gradient-accumulation-steps", "1")
    if parts.isdecimal() and int(parts) > 1:
        batch = _value(flags, "--batch-size", "4")
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


def _value(flags: Mapping[str, Sequence[str]], flag: str, default: str = "") -> str:
    """Its first value; that none was given is said later, by the command's own parser."""
    return next(iter(flags.get(flag, [default])), "")


def _joined(flags: Mapping[str, Sequence[str]]) -> list[str]:
    return [word for flag, values in flags.items() for word in (flag, *values)]
