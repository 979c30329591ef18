"""Bias and hate in English: CrowS-Pairs, StereoSet, ETHOS."""

from __future__ import annotations

from pathlib import Path

from runtime.errors import UserError
from tools.preparing.raw import one_line, read_csv, read_json

STEREOSET_LABELS = ("stereotype", "anti-stereotype", "unrelated")


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
