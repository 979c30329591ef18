"""What a ChatGLM-6B answers to the prompts of a file, as ptuning's evaluation draws it: top-p 0.7 at temperature 0.95.

A reply is a function of the seed and its row's number, whatever is answered beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from generation.batch import generate
from generation.params import SamplingParams
from glm.prompt_form import Context
from tuning.data import chat_files
from tuning.data.chat import read_special
from tuning.options import Settings

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer
    from tuning.model import Tuned

DRAWN = SamplingParams(top_p=0.7, temperature=0.95)
COMMANDS = 2  # of a prompt: gmask, bos


def replies(tuned: Tuned, settings: Settings, tokenizer: Tokenizer, load: Path, batch_size: int,
            numbers: Sequence[int] | None = None) -> Iterator[dict[str, str]]:
    """For each row, in order, its answer in the file and the model's: {"labels", "predict"}. numbers: of the rows that
    are asked for; None: all."""
    prompts, wanted = chat_files.prompts(settings)
    special, chat = read_special(load), settings.chat
    numbers = range(len(prompts)) if numbers is None else numbers
    contexts = {}
    for number in numbers:
        ids = tokenizer.encode(prompts[number])[:chat.max_source_length - COMMANDS]
        contexts[number] = Context((*ids, special.gmask, special.bos), len(ids), 0)
    for begin in range(0, len(numbers), batch_size):
        rows = numbers[begin:begin + batch_size]
        part = [contexts[number] for number in rows]
        found = generate(tuned.model, [context.ids for context in part], DRAWN, end_tokens=[tokenizer.command("eop")],
                         limits=[chat.max_target_length] * len(part),
                         shared_positions=[context.shared_position for context in part],
                         seeds=[(settings.data.seed, number) for number in rows])
        for number, answers in zip(rows, found, strict=True):
            yield {"labels": wanted[number], "predict": tokenizer.decode(answers[0][0]).strip()}
