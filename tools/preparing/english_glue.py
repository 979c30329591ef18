"""GLUE and SuperGLUE: CoLA, MNLI, QNLI, WNLI, AX-b, AX-g. Labels are indices, in the order that each function names."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import UserError
from tools.preparing.raw import MissingRawFile, index_of, one_line, read_jsonl, read_tsv


def cola(raw: Path) -> dict[str, list[dict]]:
    """Fields: sentence, label (not acceptable, acceptable). GLUE's validation split is both files together."""
    rows = []
    for name in ("in_domain_dev.tsv", "out_of_domain_dev.tsv"):
        path = raw / "cola" / name
        for place, row in enumerate(read_tsv(path, ["source", "label", "mark", "sentence"]), start=1):
            label = index_of(row["label"], ["0", "1"], path, place, "label")
            rows.append({"sentence": one_line(row["sentence"]), "label": label})
    return {"validation": rows}


def qnli(raw: Path) -> dict[str, list[dict]]:
    """Fields: question, sentence, label (the sentence answers the question, it does not)."""
    path = raw / "qnli" / "dev.tsv"
    return {"validation": _pairs(path, read_tsv(path), ("question", "sentence"), ["entailment", "not_entailment"])}


def wnli(raw: Path) -> dict[str, list[dict]]:
    """Fields: sentence1, sentence2, label (does not follow, follows)."""
    path = _first(raw / "wnli", ["dev.tsv", "dev_english_restored.tsv"])
    return {"validation": _pairs(path, read_tsv(path), ("sentence1", "sentence2"), ["0", "1"])}


def mnli(raw: Path) -> dict[str, list[dict]]:
    """Fields: sentence1, sentence2, label (entailment, neutral, contradiction). A row without gold label is left out.

    GLUE's dev_matched.tsv and dev_mismatched.tsv, or the jsonl files of MultiNLI 1.0 itself.
    """
    splits = {}
    for split in ("matched", "mismatched"):
        path = _first(raw / "mnli", [f"dev_{split}.tsv", f"multinli_1.0_dev_{split}.jsonl"])
        rows = (read_jsonl if path.suffix == ".jsonl" else read_tsv)(path)
        labels = ["entailment", "neutral", "contradiction"]
        splits[f"validation_{split}"] = _pairs(path, rows, ("sentence1", "sentence2"), labels, label="gold_label")
    return splits


def axb(raw: Path) -> dict[str, list[dict]]:
    """Fields: sentence1, sentence2, label (entailment, not_entailment)."""
    path = raw / "superglue_axb" / "AX-b.jsonl"
    return {"test": _pairs(path, read_jsonl(path), ("sentence1", "sentence2"), ["entailment", "not_entailment"])}


def axg(raw: Path) -> dict[str, list[dict]]:
    """Fields: premise, hypothesis, label (entailment, not_entailment)."""
    path = raw / "superglue_axg" / "AX-g.jsonl"
    return {"test": _pairs(path, read_jsonl(path), ("premise", "hypothesis"), ["entailment", "not_entailment"])}


def _pairs(path: Path, rows: list[dict], texts: tuple[str, str], labels: list[str], label: str = "label") -> list[dict]:
    """Rows of two texts and a label; "-" in its place means that the annotators did not agree."""
    pairs = []
    for place, row in enumerate(rows, start=1):
        for name in (*texts, label):
            if not isinstance(row.get(name), str):
                raise UserError(f"{path}: row {place}: {name}: missing, or not a text")
        pair = {name: one_line(row[name]) for name in texts}
        if row[label] == "-":
            pairs.append(pair | {"left_out": "no gold label"})
        else:
            pairs.append(pair | {"label": index_of(row[label], labels, path, place, label)})
    return pairs


def _first(folder: Path, names: list[str]) -> Path:
    """The first of several names under which a file is published."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise MissingRawFile(f"{folder}: neither {' nor '.join(names)} is there")
