"""Questions in English, with choices: MathQA, OpenBookQA, MC-TACO, PubMedQA, MMLU, and BIG-bench-lite as far as
BIG-Bench Hard republishes it."""

from __future__ import annotations

import re
from pathlib import Path

from runtime.errors import UserError
from tools.preparing.raw import MissingRawFile, index_of, one_line, read_csv, read_json, read_jsonl, read_tsv

LETTERS = "abcde"  # of the fields that hold a question's choices one by one
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


def math_qa(raw: Path) -> dict[str, list[dict]]:
    """Fields: question, choices (five texts), a to e (the same, one by one), label.

    test.json is the data set's own, or that of LLM-Adapters, in which question and options are one string:
    "... The options: A ) 38 , B ) 27.675 , ...". There every letter a to e of the options became a capital ("nonE oF
    thEsE"), though the data set is in small letters throughout, and some options begin with their own letter once more
    ("A ) A ) 2"); both are mended.
    """
    path = raw / "math_qa" / "test.json"
    rows = []
    for place, row in enumerate(read_json(path), start=1):
        if "Problem" in row:  # the data set's own form
            question, listed, answer = row["Problem"], row["options"], row["correct"].upper()
        else:
            question, _, listed = row["instruction"].partition("The options: ")
            answer = row["answer"]
        texts = _options(listed, path, place)
        label = index_of(answer, list(LETTERS.upper()), path, place, "answer")
        rows.append({"question": one_line(question), "choices": texts, "label": label,
                     **dict(zip(LETTERS, texts, strict=True))})
    return {"test": rows}


def _options(listed: str, path: Path, place: int) -> list[str]:
    between = r"(?: , |', ')"
    options = re.compile(r"^\W*" + between.join(rf"{letter} \) (.*?)" for letter in LETTERS) + r"(?:'\])?$", re.DOTALL)
    found = options.match(listed.strip().lower())
    if not found:
        raise UserError(f"{path}: row {place}: expected five options A ) to E ), found {listed!r}")
    return [one_line(text.removeprefix(f"{letter} ) "))
            for letter, text in zip(LETTERS, found.groups(), strict=True)]


def openbook_qa(raw: Path) -> dict[str, list[dict]]:
    """Fields: question (often the beginning of a sentence), choices (four texts), a to d (the same), label.

    test.jsonl is the data set's own file, test.json that of LLM-Adapters.
    """
    own = raw / "openbook_qa" / "test.jsonl"
    if own.is_file():
        rows = []
        for place, row in enumerate(read_jsonl(own), start=1):
            label = index_of(row["answerKey"], list("ABCD"), own, place, "answerKey")
            texts = [choice["text"] for choice in row["question"]["choices"]]
            rows.append(_openbook_row(row["question"]["stem"], texts, label))
        return {"test": rows}
    path = raw / "openbook_qa" / "test.json"
    answers = " ".join(rf"Answer{number}: (.*?)" for number in range(1, 5))
    whole = re.compile(r"^Please choose the correct answer to the question: (.*?)\s+" + answers
                       + r"\s+Answer format: answer1/answer2/answer3/answer4$", re.DOTALL)
    rows = []
    for place, row in enumerate(read_json(path), start=1):
        found = whole.match(row["instruction"])
        if not found:
            raise UserError(f"{path}: row {place}: instruction: expected a question and Answer1: to Answer4:")
        question, *texts = found.groups()
        label = index_of(row["answer"], [f"answer{number}" for number in range(1, 5)], path, place, "answer")
        rows.append(_openbook_row(question, texts, label))
    return {"test": rows}


def _openbook_row(question: str, texts: list[str], label: int) -> dict:
    choices = [one_line(text) for text in texts]
    return {"question": one_line(question), "choices": choices, "label": label,
            **dict(zip(LETTERS, choices, strict=False))}


def mc_taco(raw: Path) -> dict[str, list[dict]]:
    """Is the answer a likely one? Fields: sentence, question, answer, category, label (no, yes)."""
    splits = {}
    for split, name in (("validation", "dev_3783.tsv"), ("test", "test_9442.tsv")):
        path = raw / "mc_taco" / name
        rows = read_tsv(path, ["sentence", "question", "answer", "label", "category"])
        splits[split] = [{key: one_line(value) for key, value in row.items()}
                         | {"label": index_of(row["label"], ["no", "yes"], path, place, "label")}
                         for place, row in enumerate(rows, start=1)]
    return splits


def pubmed_qa(raw: Path) -> dict[str, list[dict]]:
    """Fields: question, context (the abstract without its conclusion), label (yes, no, maybe).

    Two splits: the 500 questions of the official test set and the 500 others.
    """
    path, test_path = raw / "pubmed_qa" / "ori_pqal.json", raw / "pubmed_qa" / "test_ground_truth.json"
    questions, test = read_json(path), read_json(test_path)
    if unknown := [number for number in test if number not in questions]:
        raise UserError(f"{test_path}: {unknown[0]} is not among the questions of {path}")
    splits: dict[str, list[dict]] = {"test": [], "others": []}
    for place, (number, row) in enumerate(questions.items(), start=1):
        splits["test" if number in test else "others"].append({
            "question": one_line(row["QUESTION"]), "context": one_line(" ".join(row["CONTEXTS"])),
            "label": index_of(row["final_decision"], ["yes", "no", "maybe"], path, place, "final_decision")})
    return splits


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
    rows = read_csv(path, ["question", *"ABCD", "answer"])
    return [{name: value.strip() for name, value in row.items()}
            | {"label": index_of(row["answer"].strip(), list("ABCD"), path, place, "answer")}
            for place, row in enumerate(rows, start=1)]


def formal_fallacies(raw: Path) -> dict[str, list[dict]]:
    """Fields: argument (text and question), label (valid, invalid)."""
    path = raw / "big-bench-lite-partial" / "formal_fallacies.json"
    rows = []
    for place, example in enumerate(_examples(path), start=1):
        argument, _, _ = example["input"].partition("\nOptions:")
        rows.append({"argument": argument.strip(),
                     "label": index_of(example["target"], ["valid", "invalid"], path, place, "target")})
    return {"test": rows}


def logical_deduction(raw: Path) -> dict[str, list[dict]]:
    """A split for each number of objects. Fields: paragraph, choices (a statement each), label."""
    folder = raw / "big-bench-lite-partial"
    return {f"{number}_objects": _deduction(folder / f"logical_deduction_{number}_objects.json")
            for number in ("three", "five", "seven")}


def _deduction(path: Path) -> list[dict]:
    rows = []
    for place, example in enumerate(_examples(path), start=1):
        paragraph, _, listed = example["input"].partition("\nOptions:\n")
        options = dict(re.findall(r"^(\([A-Z]\)) (.+?)\s*$", listed, re.MULTILINE))
        if not options:
            raise UserError(f"{path}: row {place}: input: expected options (A), (B), ...")
        rows.append({"paragraph": paragraph.strip(), "choices": list(options.values()),
                     "label": index_of(example["target"], list(options), path, place, "target")})
    return rows


def _examples(path: Path) -> list[dict]:
    content = read_json(path)
    examples = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(examples, list):
        raise UserError(f"{path}: expected an object with the list examples")
    return examples
