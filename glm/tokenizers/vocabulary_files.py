"""The files of a vocabulary and the settings beside them, read so that a fault is one line that says how to mend it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from runtime.errors import UserError, shown
from runtime.reading import LARGE, NoSuchFile, decode_text, parse_json, read_bytes, recognised

GET_IT = ("copy it from where the checkpoint comes from, or name its folder with --tokenizer-path (in Python: "
          "tokenizer_path)")


def read_vocabulary(path: str | os.PathLike, what: str) -> bytes:
    """The bytes of a vocabulary file. what: it should be, for messages: "GLM's vocabulary vocab.txt".

    UserError where it is missing or something else: git-lfs's pointer to it, a web page, an archive.
    """
    try:
        data = read_bytes(path, LARGE)
    except NoSuchFile:
        raise missing(path, what) from None
    is_json = Path(path).suffix != ".json" and data.lstrip()[:1] == b"{"
    kind = recognised(data) or ("JSON, as Hugging Face's tokenizers are" if is_json else None)
    if kind:
        raise UserError(f"{path} is not {what}; it is {kind}")
    return data


def missing(path: str | os.PathLike, what: str) -> UserError:
    return UserError(f"no vocabulary file at {path}: {what} belongs there; {GET_IT}")


def damaged(path: str | os.PathLike, what: str, why: str) -> UserError:
    return UserError(f"{path} is not {what}: {why}; it is another file, or damaged: copy it again from where the "
                     "checkpoint comes from")


def read_lines(path: str | os.PathLike, what: str) -> list[str]:
    """Lines of a vocabulary of text, without their line ends; an empty one at the end is none."""
    lines = decode_text(read_vocabulary(path, what), str(path)).split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def read_ids(path: str | os.PathLike, what: str) -> dict[str, int]:
    """A JSON object of strings and their ids, in the file's order."""
    found = parse_json(decode_text(read_vocabulary(path, what), str(path)), str(path))
    if not isinstance(found, dict):
        raise damaged(path, what, f"it holds {shown(found)} instead of pieces with their ids")
    for piece, token in found.items():
        if type(token) is not int or token < 0:
            raise damaged(path, what, f"the id of {shown(piece)} is {shown(token)}")
    return found


def read_settings(folder: str | os.PathLike, name: str) -> dict[str, Any]:
    """The object of a JSON file of settings beside the vocabulary; empty where there is no such file."""
    path = Path(folder) / name
    try:
        found = parse_json(decode_text(read_bytes(path, LARGE), str(path)), str(path))
    except NoSuchFile:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {shown(found)} instead of an object of settings")
    return found
