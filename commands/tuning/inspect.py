"""python -m tuning inspect: what a model will be given, a JSON line a sample, without a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from commands.tuning.common import add_model, add_settings, load_tuned, settings_of, write_lines
from runtime.arguments import CommandParser
from runtime.errors import UserError
from tuning.options import Settings

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer
    from tuning.data.sample import Sample

ABOUT = """\
What a model will be given, a JSON line a sample, in the data set's order.

    python -m tuning inspect --task rte --data-dir RTE --split dev --cloze-eval --pattern-id 0 --tokenizer-type ...
    python -m tuning inspect --task pretrain --train-data FILE --indices 0,1,5 --tokenizer-type ...
"""


def main(argv: Sequence[str]) -> int:
    parser = CommandParser(description=ABOUT, prog="python -m tuning inspect")
    add_settings(parser)
    add = parser.add_argument
    add_model(parser)
    add("--examples", action="store_true", help="what was read from the files instead")
    add("--indices", type=_numbers, metavar="N,N", help="pretrain: these packed samples")
    add("--batches", type=Path, metavar="FILE", help="pretrain: batches, JSON lines of count and indices")
    arguments = parser.parse_args(argv)
    settings = settings_of(arguments)

    from tuning.tasks import PRETRAIN, module_of

    counted: dict[str, Any] = {}
    if settings.data.task == PRETRAIN:
        lines = list(_pretraining(settings, arguments))
    elif arguments.examples:
        from tuning.data.sample import shown_example

        lines = [shown_example(example) for example in module_of(settings.data.task).examples(settings)]
    else:
        lines, counted = _samples(settings, arguments.load)
    write_lines(lines, arguments.output)
    if counted:
        print(", ".join(f"{name} {value}" for name, value in counted.items()), file=sys.stderr)
    if missing := sum("error" in line for line in lines):
        print(f"{missing} of {len(lines)} rows cannot be built: see their errors", file=sys.stderr)
    return 0


def _samples(settings: Settings, load: Path | None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Lines, and what was counted on the way."""
    from tuning.data import chat, language
    from tuning.data.sample import shown
    from tuning.tasks import CHAT, module_of, samples_of
    from tuning.tokenizers import open_for

    if settings.data.task == CHAT:
        return [chat.shown_row(number, sample) for number, sample in enumerate(samples_of(settings, load))], {}
    tokenizer, module = open_for(settings, load), module_of(settings.data.task)
    samples = module.samples(settings, tokenizer)
    if settings.data.task in language.TEXTS:
        return [language.shown_window(number, sample) for number, sample in enumerate(samples)], {}
    counted = module.facts(settings, samples).items() if hasattr(module, "facts") else ()
    return ([shown(sample, partial(_read, tokenizer)) for sample in samples],
            {name: value for name, value in counted if value})


def _read(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """For people: padding is shown by its first token."""
    pad = tokenizer.commands.get("pad")
    return tokenizer.decode([token for before, token in zip((None, *ids), ids, strict=False)
                             if token != pad or before != pad], special_tokens=True)


def _pretraining(settings: Settings, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    from tuning.data.pretrain import open_pretraining, read_orders, shown_batch
    from tuning.tokenizers import open_for

    if (arguments.indices is None) == (arguments.batches is None):
        raise UserError("--task pretrain shows packed samples, --indices N,N, or batches, --batches FILE: name one")
    orders = read_orders(arguments.batches) if arguments.batches else ()
    source = open_pretraining(settings, open_for(settings, arguments.load))
    told = _losses(arguments) if arguments.load and orders else lambda samples: {}
    for index in arguments.indices or ():
        sample = source.sample(index)
        yield {"index": index, "input_ids": list(sample.ids), "loss_mask": list(sample.loss_mask)}
    for order in orders:
        try:
            batch = source.batch(order)
            yield shown_batch(order, batch) | told(batch.samples(order))
        except UserError as error:
            yield {"count": order.count, "error": str(error)}


def _losses(arguments: argparse.Namespace) -> Callable[[Sequence[Sample]], dict[str, Any]]:
    """Samples of a batch -> their loss under the checkpoint."""
    import torch

    from tuning.batch import batch_of
    from tuning.losses import loss_of

    tuned = load_tuned(arguments)
    device = next(tuned.model.parameters()).device

    def told(samples: Sequence[Sample]) -> dict[str, Any]:
        with torch.inference_mode():
            return {"loss": float(loss_of(tuned, batch_of(samples, tuned.model.config, device)))}

    return told


def _numbers(word: str) -> list[int]:
    try:
        numbers = [int(each) for each in word.split(",")]
    except ValueError:
        numbers = [-1]
    if min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{word} is no list of numbers of 0 or more, as 0,1,5")
    return numbers
