"""MMLU: 57 subjects in four groups, five worked examples before every question."""

from __future__ import annotations

from pathlib import Path

from tools.preparing.raw import MissingRawFile, index_of, read_csv

LETTERS = ["A", "B", "C", "D"]

GROUPS = {
    "stem": """abstract_algebra astronomy college_biology college_chemistry college_computer_science
        college_mathematics college_physics computer_security conceptual_physics electrical_engineering
        elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science
        high_school_mathematics high_school_physics high_school_statistics machine_learning""",
    "social_sciences": """econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
        professional_psychology public_relations security_studies sociology us_foreign_policy""",
    "humanities": """formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory
        professional_law world_religions""",
    "other": """anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management
        marketing medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology""",
}


def mmlu(raw: Path) -> dict[str, list[dict]]:
    """A split "group/subject" for each subject. Fields: subject, question, A, B, C, D, answer, label, examples."""
    folder = raw / "mmlu"
    if not folder.is_dir():
        raise MissingRawFile(f"{folder}: no such folder")
    return {f"{group}/{subject}": subject_rows(folder, subject)
            for group, subjects in GROUPS.items() for subject in subjects.split()}


def subject_rows(folder: Path, subject: str) -> list[dict]:
    """The questions of the test set, each with the subject's five of the dev set as `examples`."""
    examples = _questions(folder / "dev" / f"{subject}_dev.csv")
    name = " ".join("US" if word == "us" else word for word in subject.split("_"))
    return [row | {"subject": name, "examples": examples}
            for row in _questions(folder / "test" / f"{subject}_test.csv")]


def _questions(path: Path) -> list[dict]:
    rows = read_csv(path, ["question", *LETTERS, "answer"])
    return [{name: value.strip() for name, value in row.items()}
            | {"label": index_of(row["answer"].strip(), LETTERS, path, place, "answer")}
            for place, row in enumerate(rows, start=1)]
