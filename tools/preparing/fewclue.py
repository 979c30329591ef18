"""FewCLUE: BUSTM, CHID, CLUEWSC, CSL, EPRSTMT, OCNLI.

dev_few_all holds every row of the five small development sets dev_0 to dev_4, so these are not read; test_public is
the test set with published labels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runtime.errors import UserError
from tools.preparing.chinese import (
    NUMBER,
    OBJECT,
    TEXT,
    TEXTS,
    Splits,
    checked,
    inference_pairs,
    keyword_rows,
    pronoun_row,
    sentence_pairs,
)
from tools.preparing.raw import index_of, read_jsonl

SPLITS = ["dev_few_all", "test_public"]
BLANK = "#idiom#"


def splits(folder: Path, rows_of: Callable[[Path], list[dict]]) -> Splits:
    return {split: rows_of(folder / f"{split}.json") for split in SPLITS}


def bustm(raw: Path) -> Splits:
    """Do two things said to a voice assistant mean the same? Fields: sentence1, sentence2, label (0 no, 1 yes)."""
    return splits(raw / "fewclue-bustm", sentence_pairs)


def ocnli(raw: Path) -> Splits:
    """As in CLUE."""
    return splits(raw / "fewclue-ocnli", inference_pairs)


def csl(raw: Path) -> Splits:
    """As in CLUE."""
    return splits(raw / "fewclue-csl", keyword_rows)


def eprstmt(raw: Path) -> Splits:
    """Is a customer content with what was bought? Fields: sentence, label (0 no, 1 yes)."""
    return splits(raw / "fewclue-eprstmt", reviews)


def reviews(path: Path) -> list[dict]:
    return [
        {"sentence": row["sentence"].strip(),
         "label": index_of(row["label"], ["Negative", "Positive"], path, place, "label")}
        for place, row in checked(read_jsonl(path), {"sentence": TEXT, "label": TEXT}, path)
    ]


def chid(raw: Path) -> Splits:
    """Which of seven idioms has been cut out of a text?

    Fields: before, after (the text around the blank), idioms, options (the idioms in one string), label,
    filled (each idiom with what comes after the blank).
    """
    return splits(raw / "fewclue-chid", idiom_rows)


def idiom_rows(path: Path) -> list[dict]:
    rows = []
    schema = {"content": TEXT, "candidates": TEXTS, "answer": NUMBER}
    for place, row in checked(read_jsonl(path), schema, path):
        parts = row["content"].strip().split(BLANK)
        if len(parts) != 2:
            raise UserError(f"{path}: row {place}: content: expected one {BLANK}, found {len(parts) - 1}")
        (before, after), idioms = parts, row["candidates"]
        rows.append({
            "before": before,
            "after": after,
            "idioms": idioms,
            "options": "、".join(idioms),
            "filled": [idiom + after for idiom in idioms],
            "label": index_of(row["answer"], list(range(len(idioms))), path, place, "answer"),
        })
    return rows


def cluewsc(raw: Path) -> Splits:
    """As in CLUE; where the candidate stands in the text is known here, so there it is in 「」."""
    return splits(raw / "fewclue-cluewsc", marked_pronouns)


def marked_pronouns(path: Path) -> list[dict]:
    rows = []
    for place, row in checked(read_jsonl(path), {"text": TEXT, "target": OBJECT, "label": TEXT}, path):
        text, target = row["text"], row["target"]
        candidate = span(target, "span1", text, path, place)
        pronoun = span(target, "span2", text, path, place)
        marked = text
        for (start, end), (left, right) in sorted([(candidate, "「」"), (pronoun, "【】")], reverse=True):
            marked = marked[:start] + left + marked[start:end] + right + marked[end:]  # the later one first
        rows.append(pronoun_row(
            marked,
            text[: pronoun[0]] + text[slice(*candidate)] + text[pronoun[1] :],
            text[slice(*pronoun)],
            text[slice(*candidate)],
            index_of(row["label"], ["false", "true"], path, place, "label"),
        ))
    return rows


def span(target: dict, name: str, text: str, path: Path, place: int) -> tuple[int, int]:
    """Start and end of a target's words in the text."""
    words, start = target.get(f"{name}_text"), target.get(f"{name}_index")
    if not isinstance(words, str) or not isinstance(start, int) or text[start : start + len(words)] != words:
        raise UserError(f"{path}: row {place}: target: {name}_text {words!r} does not stand at {name}_index {start!r}")
    return start, start + len(words)
