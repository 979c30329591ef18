"""From what a command line says to a training: data, the model and what of it learns, and what is kept in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from glm.checkpoint import identity_of, open_checkpoint
from glm.dropout import Dropout
from glm.families import chatglm, chatglm2
from glm.loading import DTYPES
from glm.spec import in_layer
from runtime import parallel
from runtime.arguments import flag_name
from runtime.errors import UserError
from runtime.files import unusual
from runtime.hashing import hash_file
from tuning.adapters import begin
from tuning.batch import batch_of
from tuning.data import cloze
from tuning.data.sample import Sample, built
from tuning.deepspeed_config import DeepSpeed
from tuning.learned_places import check_places, notes_on_places
from tuning.loop import Progress, Training, Validate, train
from tuning.losses import loss_of
from tuning.model import Head, PromptEncoder, Tuned, begin_as_words, initialise, load
from tuning.optimizer import Optimizer
from tuning.options import GROUPS, CheckpointOptions, PartsOptions, Settings
from tuning.report import STEP, oddities, write_report, write_rows
from tuning.run import Run, read_log
from tuning.saving import save
from tuning.schedules import Schedule
from tuning.summaries import Summaries
from tuning.tokenizers import open_for
from tuning.train_options import OptimizerOptions, TrainOptions
from tuning.training_data import TrainingData, hashed
from tuning.validation import Validation, evaluated, evaluated_documents, reading, validated

if TYPE_CHECKING:
    from runtime.program import Interrupts

FEW = 2  # rows of validation, which tell the names of its metrics
BEST = "best"  # folder within --save: the checkpoint of the best epoch
FREE = ("save_interval",)  # flags that may change; of a file its contents count, not its name


@dataclass(frozen=True)
class Asked:
    """All that a command line says of a training."""

    save: Path
    checkpoint: CheckpointOptions
    parts: PartsOptions
    settings: Settings
    options: TrainOptions
    optimizer: OptimizerOptions
    deepspeed: DeepSpeed = field(default_factory=DeepSpeed)


def run_training(asked: Asked, data: TrainingData, interrupts: Interrupts | None = None,
                 tell: Callable[[Mapping[str, Any]], None] = lambda line: None,
                 say: Callable[[str], None] = lambda note: None) -> None:
    """The whole of it, from where the folder says that it was left. Nothing happens where it is finished.

    tell: hears of every step. say: of what is to be known of the rows, when a first step went well: a mistake that ends
    the program before is a line alone.
    """
    settings, options, optimizer = asked.settings, asked.options, asked.optimizer
    run = parallel.agree(lambda: Run(asked.save, recorded(asked), contents(asked, data), parallel.is_first_process()),
                         sequential=True)  # the first makes the folder's record
    if run.is_finished:
        return
    summaries = parallel.agree(lambda: Summaries(options.summary_dir, asked.save)
                               if options.summary_dir is not None and parallel.is_first_process() else None)
    tuned = opened(asked, data.labels)
    check_places(tuned, data, settings)
    tuned.is_checkpointed = options.checkpoint_activations
    steps = optimizer.lr_decay_iters or len(data.steps)
    schedule = Schedule(optimizer.lr_decay_style, max(1, steps), optimizer.warmup, optimizer.lr_decay_ratio)
    loss, learned = loss_function(tuned, settings, options), learning(tuned, settings)
    if is_divided(asked.deepspeed):
        from tuning.zero import DividedOptimizer

        moving = DividedOptimizer(learned, optimizer, tuned, loss, asked.deepspeed.zero,
                                  options.gradient_accumulation_steps, tuned.is_split)
        loss = moving.loss
    else:
        moving = Optimizer(learned, optimizer)
    training = Training(
        data.steps, data.samples_of, loss, moving, schedule, options.gradient_accumulation_steps, options.save_interval,
        validation_of(asked, tuned, data), tuned.is_split, settings.cloze.loss_func == "hinge")
    known = [*data.notes, *notes_on_places(tuned)]
    notes = list(known) if parallel.is_first_process() else []

    def told(line: Mapping[str, Any]) -> None:
        while notes:
            say(notes.pop(0))
        if summaries is not None:
            summaries.add(line)
        tell(line)

    try:
        train(training, run, interrupts, told)
        if summaries is not None:
            summaries.begin()  # those of a run that was ended behind its last step
    finally:
        run.close()
        if summaries is not None:
            summaries.close()
    with training.optimizer.written():
        keep(asked, tuned, asked.save, len(data.steps))
    if parallel.is_first_process():
        for note in oddities(read_log(asked.save)):
            say(note)
        held_out = built(data.validation)
        read = reading(settings, asked.checkpoint.load) if held_out else lambda sample: sample.text
        write_report(asked.save, held_out, known, read)
    run.finish()


def is_divided(deepspeed: DeepSpeed) -> bool:
    """Whether DeepSpeed divides the training over ranks. UserError where it cannot. One rank without offloading has all
    in any case."""
    if deepspeed.stage == 3 and parallel.size() > 1:
        raise UserError("zero_optimization.stage 3 divides weights that --model-parallel-size divides already; give "
                        "stage 1 or 2, or --model-parallel-size 1")
    return bool(deepspeed.stage) and (parallel.data_parallel_size() > 1 or deepspeed.is_offloaded)


def keep(asked: Asked, tuned: Tuned, folder: Path, steps: int) -> None:
    save(folder, tuned, steps, DTYPES[asked.options.save_dtype or asked.checkpoint.dtype], asked.checkpoint.load)


def validation_of(asked: Asked, tuned: Tuned, data: TrainingData) -> Validate | None:
    options = asked.options
    if "dev" in data.held_out:
        return partial(_document_losses, asked, tuned, data)
    if not data.validation:
        return None

    def metrics(epoch: int) -> Mapping[str, float]:
        found = evaluated(tuned, asked.settings, options, data.validation, asked.checkpoint.load)
        if parallel.is_first_process():
            write_rows(asked.save, epoch, found)
        return found["metrics"]

    if (name := options.validation_metric) is not None:  # a wrong one is said before an epoch is lost to it
        some = evaluated(tuned, asked.settings, options, built(data.validation)[:FEW], asked.checkpoint.load)["metrics"]
        if name not in some:
            raise UserError(f"--validation-metric {name}: the task has {', '.join(some)}")
    return partial(validated, Validation(metrics, options.eval_epoch, options.validation_metric,
                                         lambda steps: keep(asked, tuned, asked.save / BEST, steps)))


def _document_losses(asked: Asked, tuned: Tuned, data: TrainingData, steps: int, progress: Progress,
                     whole: Callable[[], AbstractContextManager[None]]) -> dict[str, Any]:
    """Of the held-out documents, behind so many steps; of those of the test in the end."""
    with whole():
        found = {name: evaluated_documents(tuned, asked.settings, batches) for name, batches in data.held_out.items()
                 if name == "dev" or steps == len(data.steps)}
    if parallel.is_first_process():
        write_rows(asked.save, steps - 1, found["dev"], STEP)
    return {"validation": found["dev"]["metrics"]} | ({"test": found["test"]["metrics"]} if "test" in found else {})


def recorded(asked: Asked) -> dict[str, Any]:
    """Flag -> value, of all that decides what a training computes and is not at its default.

    Rows and parts of a step are counted over all data-parallel ranks, whose number may change.
    """
    found: dict[str, Any] = {}
    ranks, options = parallel.data_parallel_size(), asked.options
    options = replace(options, batch_size=options.batch_size * ranks,
                      gradient_accumulation_steps=options.gradient_accumulation_steps * ranks)
    groups = [getattr(asked.settings, name) for name in GROUPS]
    for group in (*groups, asked.checkpoint, asked.parts, options, asked.optimizer):
        names = {field.name: flag_name(field) for field in fields(group)}
        found |= {names[name]: value for name, value in unusual(group).items() if names[name] not in FREE}
    return {name: value for name, value in found.items() if value and not isinstance(value, Path)}


def contents(asked: Asked, data: TrainingData) -> dict[str, str]:
    """What is read -> its hash."""
    checkpoint, parts, options = open_checkpoint(asked.checkpoint.load), asked.parts, asked.options
    found = {"--load": hashed(identity_of(file) for file in checkpoint.index.files), **data.contents}
    for name, path in (("--head", parts.head), ("--prompt-encoder", parts.prompt_encoder),
                       ("--prefix-encoder", parts.prefix_encoder), ("--adapter", parts.adapter),
                       ("--batches", options.batches)):
        if path is not None:
            if not path.exists():
                raise UserError(f"{name} {path}: there is no such file")
            files = [path] if path.is_file() else sorted(each for each in path.iterdir() if each.is_file())
            found[name] = hashed(map(hash_file, files))
    return found


def opened(asked: Asked, labels: int) -> Tuned:
    """The model and what is beside it; what no file gives begins with drawn weights."""
    tuned = load(asked.checkpoint, asked.parts)
    begin(tuned, asked.settings.data.seed)
    prompt, seed = asked.settings.prompt, asked.settings.data.seed
    width, device = tuned.model.config.hidden_size, next(tuned.model.parameters()).device
    if tuned.head is None and labels:
        tuned.head = initialise(Head(width, labels), seed).to(device)
    count = prompt.num_prompt_tokens + prompt.prefix_prompt
    if tuned.prompt is None and prompt.continuous_prompt and count:
        tuned.prompt = initialise(PromptEncoder(width, count, prompt.prompt_func), seed).to(device)
        if prompt.prompt_init:
            tokens = cloze.verbalizer_tokens(asked.settings, open_for(asked.settings, asked.checkpoint.load))
            begin_as_words(tuned.prompt, tuned.model, tokens, seed)
    elif prompt.prompt_init:
        raise UserError("--prompt-init begins a new prompt encoder: " + (
            "leave --prompt-encoder away" if tuned.prompt is not None else
            "say how many tokens it has, --continuous-prompt --num-prompt-tokens N"))
    return tuned


def learning(tuned: Tuned, settings: Settings) -> dict[str, torch.nn.Parameter]:
    """What is trained: all, or what is beside a frozen model and its first --tune-prefix-layers. LoRA and prefixes
    freeze it."""
    if not settings.prompt.freeze_transformer and not tuned.is_adapted:
        return tuned.learn(lambda name: True)
    count, known = settings.prompt.tune_prefix_layers or 0, tuned.model.config.num_layers
    if count > known:
        raise UserError(f"--tune-prefix-layers {count}: the model has {known} layers")
    layers = tuple(in_layer(number, "") for number in range(count))
    frozen = {name for name in tuned.frozen() if not name.startswith(layers)}
    return tuned.learn(lambda name: name not in frozen)


def loss_function(tuned: Tuned, settings: Settings,
                  options: TrainOptions) -> Callable[[Sequence[Sample], int, int], torch.Tensor]:
    """Samples, the number of the first within the step, the step -> their mean loss, with dropout."""
    shares, prefix = (options.hidden_dropout, options.attention_dropout, options.output_dropout), options.hidden_dropout
    if tuned.model.config.family in (chatglm.NAME, chatglm2.NAME):  # published without any but their prefix'
        shares = (0.0, 0.0, options.output_dropout)
    device, cloze = next(tuned.model.parameters()).device, settings.cloze

    def loss(samples: Sequence[Sample], first: int, step: int) -> torch.Tensor:
        batch = batch_of(samples, tuned.model.config, device, cloze.pool_token, first)
        dropout = Dropout(*shares, settings.data.seed, step, prefix_share=prefix) if any((*shares, prefix)) else None
        return loss_of(tuned, batch, cloze.loss_func, cloze.length_penalty, settings.seq2seq.label_smoothing, dropout)

    return loss
