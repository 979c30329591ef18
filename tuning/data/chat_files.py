"""ChatGLM's rows from the files that its ptuning folder reads: JSON, JSON lines or CSV, with columns of any name."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError, shown
from runtime.reading import parse_json, read_text
from tuning.data.chat import chat_prompts, chat_rows, read_special, sample_of
from tuning.data.rows import csv_records, json_lines
from tuning.data.sample import Sample, Unbuildable, built, facts_of_cuts
from tuning.options import Settings

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer


def file_of(settings: Settings) -> Path | None:
    """The file of the split that is asked for."""
    chat = settings.chat
    return {"train": chat.train_file, "dev": chat.validation_file, "test": chat.test_file}[settings.data.split]


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Rows of prompt, response and history, those without prompt or response left out. UserError naming row and
    column."""
    path, chat = file_of(settings), settings.chat
    if path is None:
        flag = {"train": "--train-file", "dev": "--validation-file", "test": "--test-file"}[settings.data.split]
        raise UserError(f"--task chat needs {flag} FILE, or --tokenized FILE")
    columns = {"prompt": chat.prompt_column, "response": chat.response_column}
    if chat.history_column:
        columns["history"] = chat.history_column
    found = []
    for number, row in enumerate(_records(path), 1):
        if not isinstance(row, Mapping):
            raise UserError(f"{path}: row {number} is {shown(row)}; it should be an object of columns")
        if missing := [column for column in columns.values() if column not in row]:
            raise UserError(f"{path}: row {number} has no {missing[0]}; it has {', '.join(map(str, row))} "
                            "(--prompt-column, --response-column, --history-column)")
        one = {name: row[column] for name, column in columns.items()}
        for name in ("prompt", "response"):
            if not isinstance(one[name], str | None):
                raise UserError(f"{path}: row {number}: {columns[name]} is {shown(one[name])}; it should be a text")
        if not _are_rounds(one.get("history")):
            raise UserError(f"{path}: row {number}: {columns['history']} is {shown(one['history'])}; it should be a "
                            "list of [question, answer]")
        if one["prompt"] and one["response"]:
            found.append(one)
    if not found:
        raise UserError(f"{path}: no row has both {columns['prompt']} and {columns['response']}")
    return found


def samples(settings: Settings, tokenizer: Tokenizer, load: str | Path | None) -> list[Sample | Unbuildable]:
    """As ptuning trains on them, padded to one length; `cut` of their meta: the tokens that question and answer
    lost."""
    if load is None:
        raise UserError("--task chat needs --load DIR")
    special, chat = read_special(load), settings.chat
    ids = {"gmask": special.gmask, "bos": special.bos, "eos": tokenizer.command("eop"),
           "pad": tokenizer.commands.get("pad", tokenizer.command("eop"))}
    sizes: list[int] = []  # of questions and answers, in turns

    def encode(text: str) -> Sequence[int]:
        found = tokenizer.encode(text)
        sizes.append(len(found))
        return found

    made = chat_rows(rows(settings), encode, ids, chat.max_source_length, chat.max_target_length,
                     chat.history_column is not None, chat.source_prefix)
    lost = [(max(0, source - chat.max_source_length + 1), max(0, target - chat.max_target_length + 2))
            for source, target in zip(sizes[::2], sizes[1::2], strict=True)]
    found = [sample_of(row, number, special) for number, row in enumerate(made)]
    return [replace(sample, meta={**sample.meta, "cut": cut}) for sample, cut in zip(found, lost, strict=True)]


def facts(samples: Sequence[Sample | Unbuildable]) -> dict[str, Any]:
    """Those of facts_of_cuts, for sources and targets; none of rows of ids, whose texts nobody knows."""
    if not all("cut" in sample.meta for sample in built(samples)):
        return {}
    return facts_of_cuts(samples, "sources", "targets") | {"sources_lose": "their end"}


def prompts(settings: Settings) -> tuple[list[str], list[str]]:
    """Prompts of an evaluation, and what was to be answered."""
    found = rows(settings)
    history = settings.chat.history_column is not None
    return chat_prompts(found, history, settings.chat.source_prefix), [row["response"] for row in found]


def _records(path: Path) -> Sequence[Any]:
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        return [row for _, row in csv_records(text, path, csv.DictReader)]
    if text.lstrip().startswith("["):
        return parse_json(text, str(path))
    return [row for _, row in json_lines(text, path)]


def _are_rounds(history: object) -> bool:
    return history is None or (isinstance(history, list) and all(
        isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in history))
