"""The functions for which no command line is natural: plain lists and numbers in and out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path

from runtime.errors import UserError
from tuning.data.chat import NO_LABEL, chat_prompts, chat_rows, read_special, sample_of
from tuning.data.sample import Unbuildable
from tuning.data.texts import clean_text, fix_text
from tuning.metrics import (
    answer_em,
    answer_f1,
    classification_metrics,
    multirc_metrics,
    normalise_answer,
    record_metrics,
)
from tuning.options import TOKENIZERS, TokenizerOptions
from tuning.schedules import learning_rates, row_order

__all__ = ["answer_em", "answer_f1", "chat_logits", "chat_prefix", "chat_prompts", "chat_rows",
           "classification_metrics", "clean_text", "decode", "encode", "fix_text", "learning_rates", "logits",
           "multirc_metrics", "normalise_answer", "record_metrics", "row_order"]


def encode(text: str, tokenizer_type: str, tokenizer_path: str | PathLike, task_mask: bool = True,
           fix_command_token: bool = False) -> list[int]:
    """Ids of a text as the original's tokenizer gives them: command strings in it become commands."""
    return _tokenizer(tokenizer_type, tokenizer_path, task_mask, fix_command_token).encode(text, special_tokens=True)


def decode(ids: Iterable[int], tokenizer_type: str, tokenizer_path: str | PathLike, task_mask: bool = True,
           fix_command_token: bool = False) -> str:
    """The text of ids as the original's tokenizer spells it."""
    return _tokenizer(tokenizer_type, tokenizer_path, task_mask, fix_command_token).detokenize(list(ids))


def _tokenizer(tokenizer_type: str, tokenizer_path: str | PathLike, task_mask: bool, fix_command_token: bool):
    from tuning.tokenizers import open_tokenizer

    if tokenizer_type not in TOKENIZERS:
        raise UserError(f"there is no tokenizer {tokenizer_type!r}; there are {', '.join(TOKENIZERS)}")
    return open_tokenizer(TokenizerOptions(tokenizer_type, Path(tokenizer_path), fix_command_token, task_mask))


def logits(load, tokens, position_ids, attention_mask, adapter=None, alpha: float | None = None,
           layout: str = "heads", options: Mapping | None = None):
    """float32 array (rows, places, vocabulary) of a GLM: tokens (b, s), position_ids (b, s) or (b, 2, s),
    attention_mask bool (b, s, s) or (s, s), True = hidden, all arrays or lists.

    adapter: a file or folder of LoRA or of a prefix, which stays unmerged; alpha, layout: of SAT's LoRA, which does not
    say them. options: what glm.load takes, and `vocab_size` ... of the shape.
    """
    import torch

    model = _model(load, options)
    if adapter is not None:
        from glm.adapters.files import put_on, read_adapter

        put_on(model, read_adapter(adapter, model.config.family, alpha, layout))
    tokens, position_ids, blocked = (torch.as_tensor(each) for each in (tokens, position_ids, attention_mask))
    blocked = blocked.bool()
    blocked = (blocked[:, 0] if blocked.dim() == 4 else blocked).expand(len(tokens), *tokens.shape[1:] * 2)
    with torch.inference_mode():
        return model.logits(tokens.long(), position_ids.long(), blocked).numpy()


def chat_logits(load, input_ids, prefix_encoder=None, pre_seq_len: int = 0, prefix_projection: bool = False):
    """float32 array (rows, places, vocabulary) of a ChatGLM-6B for rows of ids, with the positions and the mask that it
    makes of them."""
    import torch

    from tuning.batch import batch_of

    model, special = _chat_model(load, prefix_encoder, pre_seq_len, prefix_projection), read_special(load)
    samples = [sample_of({"input_ids": ids, "labels": [NO_LABEL] * len(ids)}, number, special)
               for number, ids in enumerate(_lists(input_ids))]
    for sample in samples:
        if isinstance(sample, Unbuildable):
            raise UserError(f"row {sample.guid}: {sample.error}")
    batch = batch_of(samples, model.config)
    with torch.inference_mode():
        return model.logits(batch.tokens, batch.position_ids, batch.blocked).numpy()


def chat_prefix(load, prefix_encoder=None, pre_seq_len: int = 0, prefix_projection: bool = False):
    """float32 array (layers, 2, length, heads, head size): keys and values that stand in front."""
    import torch

    model = _chat_model(load, prefix_encoder, pre_seq_len, prefix_projection)
    if model.prefix is None:
        raise UserError("there is no prefix without its file: prefix_encoder")
    with torch.inference_mode():
        return model.prefix().numpy()


def _model(load, options: Mapping | None):
    from glm.loading import load_without_tokenizer
    from glm.options import ModelOptions

    return load_without_tokenizer(ModelOptions.of(
        **{"path": Path(load), "device": "cpu", "dtype": "float32", "int8_vocabulary": "off"} | dict(options or {})))


def _chat_model(load, prefix_encoder, pre_seq_len: int, prefix_projection: bool):
    from glm.adapters.files import put_on, read_adapter

    model = _model(load, None)
    if prefix_encoder is not None:
        put_on(model, read_adapter(prefix_encoder, model.config.family), None, pre_seq_len or None, prefix_projection)
    return model


def _lists(rows) -> list[list[int]]:
    return [[int(each) for each in row] for row in rows]
