"""Language modelling in English: LAMBADA, Penn Treebank, WikiText, the Pile."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import UserError
from tools.preparing.raw import read_jsonl, read_text


def lambada(raw: Path) -> dict[str, list[dict]]:
    """Fields: text (without its last word), words (the last word alone, as a list)."""
    path = raw / "lambada" / "lambada_test.jsonl"
    rows = []
    for place, row in enumerate(read_jsonl(path), start=1):
        parts = row.get("text", "").rsplit(None, 1)
        if len(parts) != 2:
            raise UserError(f"{path}: row {place}: text: expected several words")
        rows.append({"text": parts[0], "words": [parts[1]]})
    return {"test": rows}


def ptb(raw: Path) -> dict[str, str]:
    """Texts as they are: words separated by blanks, a sentence per line."""
    return {"test": read_text(raw / "ptb" / "ptb.test.txt"), "validation": read_text(raw / "ptb" / "ptb.valid.txt")}


def wikitext_2(raw: Path) -> dict[str, str]:
    """Texts as they are: words separated by blanks, rare ones replaced by <unk>."""
    folder = raw / "wikitext-2"
    return {"test": read_text(folder / "test.txt"), "validation": read_text(folder / "valid.txt")}


def wikitext_103(raw: Path) -> dict[str, str]:
    """The text as it is: words separated by blanks."""
    return {"test": read_text(raw / "wikitext-103" / "wiki.test.tokens")}


def pile(raw: Path) -> dict[str, list[dict]]:
    """Fields: text_pretokenized (the document), meta (with pile_set_name, the subset).

    The evaluator tokenises: what is prepared does not depend on a vocabulary. Rows of one's own may bring ids in
    ``text``.
    """
    path = raw / "pile" / "test.jsonl"
    rows = []
    for place, row in enumerate(read_jsonl(path), start=1):
        meta = row.get("meta")
        if not isinstance(row.get("text"), str) or not isinstance(meta, dict) or "pile_set_name" not in meta:
            raise UserError(f"{path}: row {place}: expected text and meta.pile_set_name")
        rows.append({"text_pretokenized": row["text"], "meta": {"pile_set_name": meta["pile_set_name"]}})
    return {"test": rows}
