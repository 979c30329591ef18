"""What the commands of tuning share: flags of settings, and results that are written whole or not."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.arguments import chosen, flags
from runtime.errors import UserError
from runtime.files import replacing
from tuning.options import GROUPS, SPLITS, CheckpointOptions, PartsOptions, Settings

if TYPE_CHECKING:
    from tuning.model import Tuned


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The flags of Settings, and those that every command takes."""
    for name, options in GROUPS.items():
        flags(parser.add_argument_group(name), options)
    parser.add_argument("--output", type=Path, metavar="FILE", help="for the result (default: standard output)")


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flags of the model and of what lies beside it."""
    flags(parser.add_argument_group("model"), CheckpointOptions)
    flags(parser.add_argument_group("beside the model"), PartsOptions)


def load_tuned(arguments: argparse.Namespace) -> Tuned:
    """The model that the flags of add_model say. Imports torch. UserError for what does not fit."""
    if arguments.load is None:
        raise UserError("no checkpoint was named: --load DIR")
    from tuning.model import load

    return load(chosen(CheckpointOptions, arguments), chosen(PartsOptions, arguments))


def settings_of(arguments: argparse.Namespace) -> Settings:
    """A tokenizer of the GLM repository's says that the model is one of its own, else --load does."""
    settings = Settings(**{name: chosen(options, arguments) for name, options in GROUPS.items()})
    split = settings.data.split
    if split not in SPLITS and settings.data.task not in (None, "pretrain"):
        raise UserError(f"--split {split}: shares are of pretraining's documents; --task {settings.data.task} has the "
                        f"splits {', '.join(SPLITS)}")
    load = getattr(arguments, "load", None)
    if load is None or settings.tokenizer.tokenizer_type is not None:
        return settings
    from glm.checkpoint import read_config
    from tuning.data.form import form_of

    return replace(settings, form=form_of(read_config(load)))


def write_lines(lines: Iterable[Mapping[str, Any]], output: Path | None) -> None:
    _write("".join(_json(line) + "\n" for line in lines), output)


def write_object(value: Mapping[str, Any], output: Path | None) -> None:
    _write(_json(value) + "\n", output)


def _json(value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise UserError("a result holds NaN or infinity, which JSON cannot say: the model's weights or the loss are "
                        "not finite") from None


def _write(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    with replacing(output) as temporary:
        temporary.write_text(text, encoding="utf-8")
