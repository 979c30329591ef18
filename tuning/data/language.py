"""Texts that are scored without tuning, and multiple choice, as the GLM repository evaluates them.

    wikitext, language_model   [ENC] beginning M | sop rest            windows of a text that move on
    lambda                     [ENC] text M eos | sop last word        right where every token is the likeliest
    multichoice                [ENC] text with M eos | sop choice      the choice of the highest log-probability

M is [gMASK] with --task-mask, else [MASK]; in multiple choice [MASK]. unidirectional: all but the first token of a text
stand behind sop, in multiple choice all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError, shown
from runtime.reading import read_text
from tuning.data.rows import json_lines
from tuning.data.sample import Example, Kind, Row, Sample, Unbuildable, shown_row
from tuning.options import Settings

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

TEXTS = ("lambda", "wikitext", "language_model")
TASKS = (*TEXTS, "multichoice")
MOST_NATS = 20  # a perplexity's logarithm is cut off there


def examples(settings: Settings) -> list[Example]:
    """The texts of the file, as it has them."""
    if settings.data.task == "multichoice":
        return [Example(str(number), row["inputs_pretokenized"], label=str(row["label"]),
                        num_choices=len(row["choices_pretokenized"]),
                        meta={"choices": row["choices_pretokenized"], "label": row["label"]})
                for number, row in enumerate(_rows(_file(settings), _choice_fault))]
    if settings.data.task == "lambda":
        return [Example(str(number), row["text"]) for number, row in enumerate(_rows(_file(settings), _text_fault))]
    text = read_text(_file(settings), is_prose=True)
    if not text.strip():
        raise UserError(f"{_file(settings)}: holds no text")
    if settings.data.task == "wikitext":
        return [Example("0", text)]
    lines = filter(None, map(str.strip, text.split("\n")))
    return [Example(str(number), line) for number, line in enumerate(lines)]


def samples(settings: Settings, tokenizer: Tokenizer) -> list[Sample | Unbuildable]:
    """Their numbers are their guids; of texts a sample is a window."""
    if not settings.form.pads_sources:
        raise UserError(f"--task {settings.data.task} reads texts as GLM's models do; python -m evaluation scores "
                        "those of other families (tasks/glm, tasks/lambada)")
    make = {"multichoice": _choices, "lambda": _last_words}.get(settings.data.task, _windows)
    return list(make(settings, tokenizer))


def metrics(settings: Settings, samples: Sequence[Sample], predictions: Sequence[int]) -> dict[str, float]:
    """Of multiple choice: times 100, as of all classification tasks."""
    right = sum(sample.label == prediction for sample, prediction in zip(samples, predictions, strict=True))
    return {"accuracy": 100 * right / max(1, len(samples))}


def text_metrics(task: str, windows: Sequence[Sample], values: Sequence[float]) -> dict[str, float]:
    """values: 1 or 0 of a last word, summed losses of a window in nats. tokens are those of all documents, words stand
    between single blanks of the file's text."""
    if task == "lambda":
        return {"accuracy": sum(values) / max(1, len(values))}
    tokens, words = (sum(window.meta.get(name, 0) for window in windows) for name in ("tokens", "words"))
    loss = sum(values)
    return {"loss": loss / max(1, tokens - 1), "ppl": math.exp(min(MOST_NATS, loss / max(1, tokens - 1))),
            "adjusted_ppl": math.exp(min(MOST_NATS, loss / max(1, words - 1))), "tokens": tokens, "words": words}


def shown_window(number: int, sample: Sample | Unbuildable) -> dict[str, Any]:
    """A line of `python -m tuning inspect`."""
    if isinstance(sample, Unbuildable):
        return {"index": number, "error": sample.error}
    return {"index": number} | shown_row(sample.rows[0])


def _windows(settings: Settings, tokenizer: Tokenizer) -> Iterator[Sample]:
    from tasks.glm.scored import windows

    width, step = settings.data.seq_length - 1, settings.streams.overlapping_eval
    if step > width:
        raise UserError(f"--overlapping-eval {step}: a window of --seq-length {settings.data.seq_length} moves on by "
                        f"{width} tokens at most")
    number = 0
    for example in examples(settings):
        ids = _encoded(settings, tokenizer, example.text_a)
        for place, (read, scored) in enumerate(windows(ids, width, step)):
            counted = 0
            if settings.streams.unidirectional:
                # only the last places count, those that a short window leaves empty included
                counted = width - step - 1 if place else 0
                read, scored = [*read, *scored][:1], [*read, *scored][1:]
            context = (tokenizer.command("ENC"), *read, _mask(settings, tokenizer))
            sizes = {"tokens": len(ids), "words": len(example.text_a.strip().split(" "))} if place == 0 else {}
            yield Sample(str(number), Kind.LANGUAGE, (_row(context, len(context) - 1, scored, tokenizer, counted),),
                         meta=sizes)  # of a document, in its first window
            number += 1


def _last_words(settings: Settings, tokenizer: Tokenizer) -> Iterator[Sample | Unbuildable]:
    length, is_opened = settings.data.seq_length, settings.streams.unidirectional
    begin, end, mask = tokenizer.command("ENC"), tokenizer.command("eos"), _mask(settings, tokenizer)
    for example in examples(settings):
        word = example.text_a.split()[-1]
        text = example.text_a.rstrip()[:-len(word)].strip()
        ids, answer = tokenizer.encode(text, special_tokens=True), tokenizer.encode(" " + word, special_tokens=True)
        ids, scored = (ids[:1], [*ids[1:], *answer]) if is_opened else (ids, answer)
        room = length - 3 - len(scored)
        if room < (len(ids) if is_opened else 0):
            yield Unbuildable(example.guid, f"a text of {len(ids) + len(scored)} tokens does not fit into "
                                            f"--seq-length {length}")
            continue
        context = (begin, *ids[max(0, len(ids) - room):], mask, end)
        row = _row(context, len(context) - 2, scored, tokenizer, len(scored) - len(answer))
        yield Sample(example.guid, Kind.GENERATIVE, (row,))


def _choices(settings: Settings, tokenizer: Tokenizer) -> Iterator[Sample | Unbuildable]:
    length, is_opened = settings.data.seq_length, settings.streams.unidirectional
    begin, end = tokenizer.command("ENC"), tokenizer.command("eos")
    for example in examples(settings):
        ids = tokenizer.encode(example.text_a, special_tokens=True)
        mask = _mask(settings, tokenizer) if is_opened else tokenizer.command("[MASK]")
        choices = [tokenizer.encode(choice, special_tokens=True) for choice in example.meta["choices"]]
        if not is_opened and mask not in ids:
            ids.append(mask)
        room = length - max(map(len, choices)) - 2
        ids = ids[max(0, len(ids) - room):] if room > 0 else []
        if is_opened:
            rows = tuple(_row((begin, mask), 1, [*ids, *choice], tokenizer, len(ids)) for choice in choices)
        elif mask in ids:
            context = (begin, *ids, end)
            rows = tuple(_row(context, context.index(mask), choice, tokenizer) for choice in choices)
        else:
            yield Unbuildable(example.guid, f"the last {max(0, room)} tokens of the text, which fit into --seq-length "
                                            f"{length}, hold no mask")
            continue
        yield Sample(example.guid, Kind.CHOICES, rows, label=example.meta["label"], has_choices=True,
                     text=tokenizer.detokenize(rows[0].input_ids), meta={"example": example})


def _row(context: Sequence[int], mask: int, answer: Sequence[int], tokenizer: Tokenizer, uncounted: int = 0) -> Row:
    """mask: its place. uncounted: how many of the answer's tokens are read without being scored."""
    sep, size = len(context), len(answer)
    read = (tokenizer.command("sop"), *answer[:-1]) if answer else ()
    return Row((*context, *read), (*range(sep), *[mask] * size), (*[0] * sep, *range(1, size + 1)), sep,
               (*[0] * sep, *answer), (*[0] * sep, *(int(place >= uncounted) for place in range(size))))


def _mask(settings: Settings, tokenizer: Tokenizer) -> int:
    return tokenizer.command("[gMASK]" if settings.tokenizer.task_mask else "[MASK]")


def _encoded(settings: Settings, tokenizer: Tokenizer, text: str) -> list[int]:
    if settings.data.task == "wikitext":
        from tasks.glm.scored import as_written

        text = as_written(text)
    return tokenizer.encode(text, special_tokens=True)


def _file(settings: Settings) -> Path:
    flag, path = (("--test-data", settings.streams.test_data) if settings.data.task == "multichoice" else
                  ("--valid-data", settings.streams.valid_data))
    if path is None:
        raise UserError(f"--task {settings.data.task} needs {flag} FILE")
    return path


def _rows(path: Path, fault) -> Iterator[dict[str, Any]]:
    """The JSON lines of a file. fault: what is wrong with a row, or None."""
    number = 0
    for number, row in json_lines(read_text(path), path):
        if wrong := fault(row) if isinstance(row, dict) else f"{shown(row)} is no object":
            raise UserError(f"{path}:{number}: {wrong}")
        yield row
    if not number:
        raise UserError(f"{path}: has no rows; a row is a JSON object on a line of its own")


def _text_fault(row: Mapping[str, Any]) -> str | None:
    text = row.get("text")
    return None if isinstance(text, str) and text.strip() else f"text is {shown(text)}; it must be a passage"


def _choice_fault(row: Mapping[str, Any]) -> str | None:
    text, choices, label = (row.get(name) for name in ("inputs_pretokenized", "choices_pretokenized", "label"))
    if not isinstance(text, str):
        return f"inputs_pretokenized is {shown(text)}; it must be a text"
    if not (isinstance(choices, list) and choices and all(isinstance(each, str) and each.strip() for each in choices)):
        return f"choices_pretokenized is {shown(choices)}; it must be a list of texts"
    if type(label) is not int or not 0 <= label < len(choices):
        return f"label is {shown(label)}; it must be the number of a choice, from 0"
    return None
