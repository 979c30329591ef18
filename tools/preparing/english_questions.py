"""Questions in English: MathQA, MC-TACO, OpenBookQA, PubMedQA."""

from __future__ import annotations

import re
from pathlib import Path

from glm.errors import UserError
from tools.preparing.raw import index_of, one_line, read_json, read_tsv

LETTERS = "abcde"


def math_qa(raw: Path) -> dict[str, list[dict]]:
    """Fields: question, choices (five texts), a to e (the same, one by one), label.

    Question and options are one string in the file: "... The options: A ) 38 , B ) 27.675 , ...". There every letter a
    to e of the options became a capital ("nonE oF thEsE"), though the data set is in small letters throughout, and some
    options begin with their own letter once more ("A ) A ) 2"); both are mended.
    """
    path = raw / "math_qa" / "test.json"
    between = r"(?: , |', ')"
    options = re.compile(r"^\W*" + between.join(rf"{letter} \) (.*?)" for letter in LETTERS) + r"(?:'\])?$", re.DOTALL)
    rows = []
    for place, row in enumerate(read_json(path), start=1):
        question, _, listed = row["instruction"].partition("The options: ")
        found = options.match(listed.strip().lower())
        if not found:
            raise UserError(f"{path}: row {place}: instruction: expected five options A ) to E ), found {listed!r}")
        pairs = zip(LETTERS, found.groups(), strict=True)
        texts = [one_line(text.removeprefix(f"{letter} ) ")) for letter, text in pairs]
        label = index_of(row["answer"], list(LETTERS.upper()), path, place, "answer")
        rows.append({"question": one_line(question), "choices": texts, "label": label,
                     **dict(zip(LETTERS, texts, strict=True))})
    return {"test": rows}


def openbook_qa(raw: Path) -> dict[str, list[dict]]:
    """Fields: question (often the beginning of a sentence), choices (four texts), a to d (the same), label."""
    path = raw / "openbook_qa" / "test.json"
    answers = " ".join(rf"Answer{number}: (.*?)" for number in range(1, 5))
    whole = re.compile(r"^Please choose the correct answer to the question: (.*?)\s+" + answers
                       + r"\s+Answer format: answer1/answer2/answer3/answer4$", re.DOTALL)
    rows = []
    for place, row in enumerate(read_json(path), start=1):
        found = whole.match(row["instruction"])
        if not found:
            raise UserError(f"{path}: row {place}: instruction: expected a question and Answer1: to Answer4:")
        question, *texts = (one_line(text) for text in found.groups())
        label = index_of(row["answer"], [f"answer{number}" for number in range(1, 5)], path, place, "answer")
        rows.append({"question": question, "choices": texts, "label": label,
                     **dict(zip(LETTERS, texts, strict=False))})
    return {"test": rows}


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
