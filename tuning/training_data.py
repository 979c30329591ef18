"""What a training reads: the rows of a task, or documents with blanks; and the samples of each step."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from runtime.errors import UserError
from runtime.hashing import hash_file
from runtime.reading import NoSuchFile
from tuning.data.pattern_texts import open_pattern_texts
from tuning.data.pretrain import Order, Pretraining, open_parts
from tuning.data.sample import Kind, Sample, Unbuildable, built
from tuning.notes import notes_on
from tuning.options import SPLITS, Settings
from tuning.steps import (
    DrawnSteps,
    EpochSteps,
    GivenSteps,
    MixedSteps,
    Work,
    drawn_order,
    epoch_steps,
    read_batches,
    read_orders,
)
from tuning.tasks import CHAT, PRETRAIN, kind_of, samples_of
from tuning.tokenizers import open_for
from tuning.train_options import TrainOptions


@dataclass(frozen=True)
class TrainingData:
    steps: GivenSteps | EpochSteps | MixedSteps | DrawnSteps
    samples_of: Callable[[Work], Sequence[Sample]]
    contents: dict[str, str]  # what is read -> its hash
    rows: Sequence[Sample | Unbuildable] = ()  # of a task
    labels: int = 0  # outputs of a classification head; 0: none is asked
    validation: Sequence[Sample | Unbuildable] = ()  # rows of the validation split
    notes: Sequence[str] = ()  # what is to be known of all of them
    held_out: Mapping[str, Sequence[Sequence[Sample]]] = field(default_factory=dict)  # of pretraining: batches of `dev`
    # and of `test`


def read(settings: Settings, options: TrainOptions, load: Path, ranks: int) -> TrainingData:
    """ranks: of data parallelism. Raises UserError for what is wrong with a file."""
    size = options.batch_size * ranks
    return (_documents if settings.data.task == PRETRAIN else _rows)(settings, options, load, size)


def _rows(settings: Settings, options: TrainOptions, load: Path, size: int) -> TrainingData:
    rows = samples_of(settings, load)
    lacking = {number: row.error for number, row in enumerate(rows) if isinstance(row, Unbuildable)}
    is_mixed = bool(settings.cloze.block_lm_ratio)
    if is_mixed and options.batches is not None:
        raise UserError("--block-lm-ratio draws which steps read other texts, and --batches says what each reads: "
                        "leave one of them out")
    mixed = open_pattern_texts(settings, open_for(settings, load), rows) if is_mixed else None
    if options.batches is not None:
        steps = read_batches(options.batches, options.train_iters, len(rows), lacking)
    else:
        known = [number for number in range(len(rows)) if number not in lacking]
        steps = epoch_steps(known, size, options.epochs, options.train_iters, settings.data.seed)
        if mixed is not None:
            steps = MixedSteps(steps, mixed.order)
    held_out, notes = _validation(settings, options, load)
    contents = {"the rows": hash_of(rows)} | ({"the rows of validation": hash_of(held_out)} if held_out else {})

    def samples_read(work: Work) -> Sequence[Sample]:
        return [rows[row] for row in work.rows] if work.order is None else mixed.samples(work.order)

    return TrainingData(steps, samples_read, contents, rows, labels_of(rows), held_out,
                        [*notes_on(settings, rows), *notes])


def _validation(settings: Settings, options: TrainOptions,
                load: Path) -> tuple[Sequence[Sample | Unbuildable], list[str]]:
    """Rows of the dev split, and what is to be known of them; none with --batches, which have no epochs, and where no
    file of chats is named for it."""
    kind = kind_of(settings.data.task)
    is_missing = kind == CHAT and (settings.streams.tokenized or not settings.chat.validation_file)
    if options.batches is not None or not options.eval_epoch or kind == "language" or is_missing:
        return (), []
    held_out = replace(settings, data=replace(settings.data, split="dev"))
    try:
        rows = samples_of(held_out, load)
    except NoSuchFile as error:
        return (), [f"no validation: {error}"]
    if not (whole := built(rows)):
        return (), ["no validation: its split has no row that makes a sample"]
    if kind == "cloze" and (lacking := sum(
            sample.label is None and sample.kind is not Kind.GENERATIVE for sample in whole)):
        return (), [f"no validation: {lacking} of the {len(whole)} rows of its split have no label"]
    return (_drawn(rows, options.validation_rows, settings.data.seed),
            [f"validation: {note}" for note in notes_on(held_out, rows)])


def _drawn(rows: Sequence[Sample | Unbuildable], count: int | None, seed: int) -> Sequence[Sample | Unbuildable]:
    """So many of the rows, in their order."""
    if count is None or count >= len(rows):
        return rows
    return [rows[number] for number in sorted(random.Random(seed).sample(range(len(rows)), count))]


def _documents(settings: Settings, options: TrainOptions, load: Path, size: int) -> TrainingData:
    source, *others = open_parts(settings, open_for(settings, load))
    sets = () if source.supervised is None else source.supervised.sets
    files = {"--train-data": hash_file(settings.documents.train_data)} | {
        f"--multi-task-data {number}": hash_of(rows) for number, rows in enumerate(sets)} | {
        flag: hash_file(path) for flag, path in (("--valid-data", settings.streams.valid_data),
                                                 ("--test-data", settings.streams.test_data)) if path is not None}
    if options.batches is not None:
        steps = read_orders(options.batches, options.train_iters)
        return TrainingData(steps, lambda work: source.samples(work.order), files)
    if options.train_iters is None:
        raise UserError("how long to pretrain? --train-iters N, or --batches FILE")
    held_out, notes = {}, []
    for name, part in zip(("dev", "test"), others, strict=True) if options.eval_interval else ():
        if part is not None:
            held_out[name] = _held_out(part, options, settings.data.seed, name)
        elif settings.data.split not in SPLITS:
            notes.append(f"--split {settings.data.split} leaves no documents for {name}")
    steps = DrawnSteps(len(source.documents), size, options.train_iters, settings.data.seed,
                       options.eval_interval if "dev" in held_out else 0)
    return TrainingData(steps, lambda work: _made(source, work.order), files, notes=notes, held_out=held_out)


def _made(source: Pretraining, order: Order) -> Sequence[Sample]:
    """A batch that was drawn; empty where its blanks find no place."""
    try:
        return source.batch(order).samples(order)
    except UserError:
        return ()


def _held_out(source: Pretraining, options: TrainOptions, seed: int, name: str) -> list[Sequence[Sample]]:
    """Batches of a validation, which are the same each time; fewer where some cannot be made. UserError: none can."""
    size = options.eval_batch_size or options.batch_size
    made = [_made(source, drawn_order(f"{seed} {name} {number}", number, size, len(source.documents)))
            for number in range(options.eval_iters)]
    if not any(made):
        raise UserError(f"no blank finds a place in the documents for {name}: they are too short; give them a larger "
                        "share (--split), or --eval-interval 0")
    return [batch for batch in made if batch]


def labels_of(rows: Sequence[Sample | Unbuildable]) -> int:
    """1 where a head scores choices, else as many as there are labels."""
    heads = [row for row in rows if isinstance(row, Sample) and row.kind is Kind.HEAD]
    if any(row.has_choices for row in heads):
        return 1
    return max((row.meta.get("labels", (row.label or 0) + 1) for row in heads), default=0)


def hash_of(rows: Sequence[Sample | Unbuildable]) -> str:
    """Of all that a model is given."""
    return hashed(json.dumps([row.guid, row.error] if isinstance(row, Unbuildable) else [
        row.guid, row.label, row.verbalizer_ids, row.segment_id, *(
            [each.input_ids, each.places, each.blocks, each.sep, each.target, each.loss_mask, each.visible,
             each.prompt_positions] for each in row.rows)]) for row in rows)


def hashed(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()
