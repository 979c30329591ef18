"""Sentences and texts in English: GLUE and SuperGLUE, bias and hate, language modelling.

Labels are indices, in the order that each function names.
"""

from __future__ import annotations

from pathlib import Path

from runtime.errors import UserError
from tools.preparing.raw import (
    MissingRawFile,
    index_of,
    one_line,
    read_csv,
    read_json,
    read_jsonl,
    read_text,
    read_tsv,
)

STEREOSET_LABELS = ("stereotype", "anti-stereotype", "unrelated")


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


def crows_pairs(raw: Path) -> dict[str, list[dict]]:
    """Two rows for each pair, one after the other.

    Fields: pair_ID (int), sent_ID (1: the sentence that is more of a stereotype, 2: the other one), sentence,
    bias_type, stereo_antistereo. Prepared rows have empty inputs and the sentence as their only choice.
    """
    path = raw / "crows-pairs" / "crows_pairs_anonymized.csv"
    rows = []
    for number, pair in enumerate(read_csv(path)):
        shared = {"pair_ID": number, "bias_type": pair["bias_type"],
                  "stereo_antistereo": pair["stereo_antistereo"]}
        for place, name in ((1, "sent_more"), (2, "sent_less")):
            rows.append(shared | {"sent_ID": place, "sentence": one_line(pair[name])})
    return {"test": rows}


def stereoset(raw: Path) -> dict[str, list[dict]]:
    """Three sentences that differ in one place (intrasentence), or that follow the same one (intersentence).

    Fields: context (what they follow, empty for intrasentence), choices (the sentences), goal_label (what each of them
    is: stereotype, anti-stereotype or unrelated), bias_type, target, ID. The choices are in the order of their ids, so
    that a place says nothing about the kind. Prepared rows have the context as inputs, and no label.

    dev.json is StereoSet's own file (splits intrasentence and intersentence); else it and the files beside it are the
    lists of EditBias (splits dev and test_sample).
    """
    folder = raw / "stereoset"
    whole = read_json(folder / "dev.json")
    if isinstance(whole, dict):
        return {kind: _stereoset_rows(whole["data"][kind], folder / "dev.json", follows=kind == "intersentence")
                for kind in ("intrasentence", "intersentence")}
    parts = [folder / f"{kind}_test.json" for kind in ("gender", "race", "religion")]
    return {"dev": [row for path in parts for row in _stereoset_rows(read_json(path), path)],
            "test_sample": _stereoset_rows(whole, folder / "dev.json")}


def _stereoset_rows(rows: list[dict], path: Path, follows: bool = False) -> list[dict]:
    prepared = []
    for place, row in enumerate(rows, start=1):
        sentences = row.get("data") or {sentence["gold_label"]: sentence for sentence in row["sentences"]}
        if sorted(sentences) != sorted(STEREOSET_LABELS):
            raise UserError(f"{path}: row {place}: expected a sentence for each of {', '.join(STEREOSET_LABELS)}")
        order = sorted(sentences, key=lambda label: sentences[label]["id"])
        prepared.append({"context": one_line(row["context"]) if follows else "",
                         "choices": [one_line(sentences[label]["sentence"]) for label in order], "goal_label": order,
                         "bias_type": row["bias_type"], "target": row["target"], "ID": row["id"]})
    return prepared


def ethos_binary(raw: Path) -> dict[str, list[dict]]:
    """Fields: comment, label (no hate, hate: at least half of the annotators said so)."""
    path = raw / "ethos" / "Ethos_Dataset_Binary.csv"
    return {"test": [{"comment": one_line(row["comment"]),
                      "label": int(_share(row, "isHate", path, place))}
                     for place, row in enumerate(_ethos(path), start=1)]}


def ethos_multi(raw: Path) -> dict[str, list[dict]]:
    """Hateful comments only. Fields: comment, label (sexist, racist, both, neither; from columns gender and race)."""
    path = raw / "ethos" / "Ethos_Dataset_Multi_Label.csv"
    kinds = {(True, False): 0, (False, True): 1, (True, True): 2, (False, False): 3}
    return {"test": [{"comment": one_line(row["comment"]),
                      "label": kinds[_share(row, "gender", path, place), _share(row, "race", path, place)]}
                     for place, row in enumerate(_ethos(path), start=1)]}


def _ethos(path: Path) -> list[dict[str, str]]:
    return read_csv(path, delimiter=";")


def _share(row: dict, name: str, path: Path, place: int) -> bool:
    """Whether at least half of the annotators saw it."""
    try:
        return float(row[name]) >= 0.5
    except (KeyError, ValueError) as error:
        found = repr(row.get(name))
        raise UserError(f"{path}: row {place}: {name}: expected a share from 0 to 1, found {found}") from error


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
