"""Questions in English: MathQA, MC-TACO, OpenBookQA, PubMedQA."""

from __future__ import annotations

import re
from pathlib import Path

from runtime.errors import UserError
from tools.preparing.raw import index_of, one_line, read_json, read_jsonl, read_tsv

LETTERS = "abcde"


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
