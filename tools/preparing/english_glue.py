"""GLUE and SuperGLUE: CoLA, MNLI, QNLI, WNLI, AX-b, AX-g."""

from __future__ import annotations

from pathlib import Path

from tools.preparing.raw import index_of, read_tsv


def cola(raw: Path) -> dict[str, list[dict]]:
    """Fields: sentence, label (0 not acceptable, 1 acceptable). GLUE's validation split is both files together."""
    rows = []
    for name in ("in_domain_dev.tsv", "out_of_domain_dev.tsv"):
        path = raw / "cola" / name
        for place, row in enumerate(read_tsv(path, ["source", "label", "mark", "sentence"]), start=1):
            label = index_of(row["label"], ["0", "1"], path, place, "label")
            rows.append({"sentence": row["sentence"].strip(), "label": label})
    return {"validation": rows}
