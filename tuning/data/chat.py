"""ChatGLM's rows: a question with the turns before it, its answer, and where the model has them.

    ids      question [gMASK] bos answer eos pad ...
    labels   -100 ... -100    bos answer eos -100 ...      what each place holds; the loss looks one place ahead

A turn is spelled as in a conversation with the model: generation.conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from generation.conversation import FORMATS
from glm.checkpoint.folder import checkpoint_folder
from glm.families.chatglm import COMMANDS
from runtime.errors import UserError, shown
from runtime.reading import read_json, read_text
from tuning.data.rows import json_lines
from tuning.data.sample import Kind, Row, Sample, Unbuildable

TASKS = ("chat",)
FORMAT = FORMATS["chatglm"]
NO_LABEL = -100
MOST_ID = 2**31


def prompt_of(query: str, history: Sequence[Sequence[str]] | None) -> str:
    """history: (question, answer) of the turns before; None: the question stands by itself."""
    if history:
        return FORMAT.prompt(history, query)
    return query if history is None else FORMAT.open.format(number=FORMAT.first, query=query)


def chat_rows(rows: Iterable[Mapping[str, Any]], encode: Callable[[str], Sequence[int]], special: Mapping[str, int],
              max_source_length: int, max_target_length: int, history: bool = False,
              source_prefix: str = "") -> list[dict[str, list[int]]]:
    """Rows to train on, max_source_length + max_target_length ids each; those without prompt or response are left out.

    encode: a text's ids, without commands. special: ids of gmask, bos, eos and pad. history: whether that column is
    used; a row whose history is empty is the first round, then.
    """
    found = []
    for row in _whole(rows):
        prompt = source_prefix + prompt_of(row["prompt"], (row.get("history") or []) if history else None)
        source = list(encode(prompt))[:max_source_length - 1] + [special["gmask"]]
        target = [special["bos"], *list(encode(row["response"]))[:max_target_length - 2], special["eos"]]
        padding = max_source_length + max_target_length - len(source) - len(target)
        found.append({"input_ids": source + target + [special["pad"]] * padding,
                      "labels": [NO_LABEL] * len(source) + target + [NO_LABEL] * padding})
    return found


def chat_prompts(rows: Iterable[Mapping[str, Any]], history: bool = False, source_prefix: str = "") -> list[str]:
    """Prompts of an evaluation. A row whose history is empty is no round here, unlike in training."""
    return [source_prefix + prompt_of(row["prompt"], (row.get("history") or None) if history else None)
            for row in _whole(rows)]


def _whole(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("prompt") and row.get("response")]


def read_tokenized(path: str | Path) -> list[dict[str, list[int]]]:
    """Rows of `input_ids` and `labels`, as chat_rows makes them, from JSON lines. UserError naming line and fault."""
    rows = []
    for number, row in json_lines(read_text(path), path):
        for name, least in (("input_ids", 0), ("labels", NO_LABEL)):
            values = row.get(name) if isinstance(row, dict) else None
            if not isinstance(values, list) or not values or not all(
                    type(value) is int and least <= value < MOST_ID for value in values):
                raise UserError(f"{path}:{number}: {name} is {shown(values)}; it should be a list of ids"
                                + (f", {NO_LABEL} for none" if least else ""))
        if len(row["input_ids"]) != len(row["labels"]):
            raise UserError(f"{path}:{number}: {len(row['input_ids'])} input_ids, but {len(row['labels'])} "
                            "labels")
        rows.append({name: row[name] for name in ("input_ids", "labels")})
    if not rows:
        raise UserError(f"{path}: holds no rows; a row is a JSON object of input_ids and labels on a line of its own")
    return rows


@dataclass(frozen=True)
class Special:
    """The ids of a ChatGLM-6B that say where an answer begins."""

    bos: int
    gmask: int
    mask: int


def read_special(folder: str | Path) -> Special:
    """What config.json of the checkpoint says. UserError where it says nothing."""
    file = checkpoint_folder(folder) / "config.json"
    if not file.is_file():
        raise UserError(f"--task chat is for the folder of a ChatGLM-6B; --load {folder} has no config.json")
    values = read_json(file)
    ids = {name: values.get(name, COMMANDS[name]) if isinstance(values, dict) else None
           for name in ("bos_token_id", "gmask_token_id", "mask_token_id")}
    for name, token in ids.items():
        if type(token) is not int or token < 0:
            raise UserError(f"{file}: {name} is {shown(token)}; --task chat is for the folder of a ChatGLM-6B, whose "
                            "config.json says it")
    return Special(*ids.values())


def sample_of(row: Mapping[str, Sequence[int]], number: int, special: Special) -> Sample | Unbuildable:
    """Its target at a place is the label of the next one. From bos on all places are that of the mask, and the blocks
    count; all tokens see what is before bos."""
    ids, labels = list(row["input_ids"]), list(row["labels"])
    mask = special.gmask if special.gmask in ids else special.mask
    if special.bos not in ids or mask not in ids:
        return Unbuildable(str(number), f"the row has no {'mask' if special.bos in ids else 'bos'}, id "
                                        f"{special.gmask if special.bos in ids else special.bos}")
    begin, place = ids.index(special.bos), ids.index(mask)
    following = [*labels[1:], NO_LABEL]
    return Sample(str(number), Kind.LANGUAGE, (Row(
        tuple(ids), tuple(place if at >= begin else at for at in range(len(ids))),
        tuple(max(at - begin + 1, 0) for at in range(len(ids))), begin,
        tuple(max(label, 0) for label in following), tuple(int(label != NO_LABEL) for label in following)),),
        meta={"labels": tuple(labels)})


def samples_of(path: Path | None, folder: str | Path | None) -> list[Sample | Unbuildable]:
    """Of the rows of --tokenized, for the checkpoint --load."""
    for flags, given in (("--train-file, --validation-file or --test-file, as --split says, or --tokenized FILE", path),
                         ("--load DIR", folder)):
        if given is None:
            raise UserError(f"--task chat needs {flags}")
    special = read_special(folder)
    return [sample_of(row, number, special) for number, row in enumerate(read_tokenized(path))]


def shown_row(number: int, sample: Sample | Unbuildable) -> dict[str, Any]:
    """A line of `python -m tuning inspect`."""
    if isinstance(sample, Unbuildable):
        return {"index": number, "error": sample.error}
    row = sample.rows[0]
    return {"input_ids": list(row.input_ids), "labels": list(sample.meta["labels"]),
            "position_ids": [list(row.places), list(row.blocks)]}
