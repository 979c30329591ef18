"""The functions for which no command line is natural: plain lists and numbers in and out."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike

from tuning.data.chat import chat_prompts, chat_rows
from tuning.data.texts import clean_text, fix_text
from tuning.metrics import (
    answer_em,
    answer_f1,
    classification_metrics,
    multirc_metrics,
    normalise_answer,
    record_metrics,
)
from tuning.schedules import learning_rates, row_order

__all__ = ["answer_em", "answer_f1", "chat_prompts", "chat_rows", "classification_metrics", "clean_text", "decode",
           "encode", "fix_text", "learning_rates", "multirc_metrics", "normalise_answer", "record_metrics", "row_order"]


def encode(text: str, tokenizer_type: str, tokenizer_path: str | PathLike, task_mask: bool = True,
           fix_command_token: bool = False) -> list[int]:
    """Ids of a text as the original's tokenizer gives them: command strings in it become commands."""
    return _tokenizer(tokenizer_type, tokenizer_path, task_mask, fix_command_token).encode(text, special_tokens=True)


def decode(ids: Iterable[int], tokenizer_type: str, tokenizer_path: str | PathLike, task_mask: bool = True,
           fix_command_token: bool = False) -> str:
    """The text of ids as the original's tokenizer spells it."""
    return _tokenizer(tokenizer_type, tokenizer_path, task_mask, fix_command_token).detokenize(list(ids))


def _tokenizer(tokenizer_type: str, tokenizer_path: str | PathLike, task_mask: bool, fix_command_token: bool):
    from pathlib import Path

    from tuning.options import TOKENIZERS, TokenizerOptions
    from tuning.tokenizers import open_tokenizer

    if tokenizer_type not in TOKENIZERS:
        from runtime.errors import UserError

        raise UserError(f"there is no tokenizer {tokenizer_type!r}; there are {', '.join(TOKENIZERS)}")
    return open_tokenizer(TokenizerOptions(tokenizer_type, Path(tokenizer_path), fix_command_token, task_mask))
