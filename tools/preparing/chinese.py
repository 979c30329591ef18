"""CLUE: AFQMC, C3, CLUEWSC2020, CMNLI, CMRC2018, CSL, DRCD, OCNLI.

The public copies of CMNLI and CLUEWSC2020 are the official development set cut in two halves, dev.json and test.json:
joined here again, dev first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from runtime.errors import UserError
from tools.preparing.raw import index_of, read_json, read_jsonl

Splits = dict[str, list[dict]]

# Labels in the raw files, in the order of the choices in the templates
NO_YES = ["0", "1"]
NO_YES_IN_CHINESE = ["否", "是"]
INFERENCE = ["entailment", "neutral", "contradiction"]
INFERENCE_IN_CHINESE = ["蕴含", "中立", "矛盾"]
NO_MAJORITY = "-"


# What a field of a raw row may be
TEXT, TEXTS, LIST, OBJECT, NUMBER = "a text", "a list of texts", "a list", "an object", "a whole number"


def checked(rows: object, schema: dict[str, str], path: Path) -> Iterator[tuple[int, dict]]:
    """(number from 1, row) of a list of objects that have all fields of ``schema``."""
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of objects, found {type(rows).__name__}")
    for place, row in enumerate(rows, start=1):
        yield place, with_fields(row, schema, path, f"row {place}")


def with_fields(row: object, schema: dict[str, str], path: Path, what: str) -> dict:
    """The row itself. Raises UserError if it lacks a field of ``schema``, or if one is something else than it says."""
    if not isinstance(row, dict):
        raise UserError(f"{path}: {what}: expected an object with {', '.join(schema)}, found {type(row).__name__}")
    for name, kind in schema.items():
        if name not in row:
            raise UserError(f"{path}: {what}: no field {name!r}; it has {', '.join(row)}")
        if not is_a(kind, row[name]):
            raise UserError(f"{path}: {what}: {name}: expected {kind}, found {row[name]!r}")
    return row


def is_a(kind: str, value: object) -> bool:
    types = {TEXT: str, TEXTS: list, LIST: list, OBJECT: dict, NUMBER: int}
    return isinstance(value, types[kind]) and (kind != TEXTS or all(isinstance(entry, str) for entry in value))


def afqmc(raw: Path) -> Splits:
    """Do two questions of a finance app's users mean the same? Fields: sentence1, sentence2, label (0 no, 1 yes)."""
    return {"dev": sentence_pairs(raw / "clue-afqmc" / "dev.json")}


def sentence_pairs(path: Path) -> list[dict]:
    schema = {"sentence1": TEXT, "sentence2": TEXT, "label": TEXT}
    return [
        {
            "sentence1": row["sentence1"].strip(),
            "sentence2": row["sentence2"].strip(),
            "label": index_of(row["label"], NO_YES, path, place, "label"),
        }
        for place, row in checked(read_jsonl(path), schema, path)
    ]


def cmnli(raw: Path) -> Splits:
    """Does a premise entail a hypothesis? Fields: premise, hypothesis, label (0 entails, 1 neutral, 2 contradicts)."""
    return {"dev": [
        {
            "premise": row["text_a"].strip(),
            "hypothesis": row["text_b"].strip(),
            "label": index_of(row["label"], INFERENCE_IN_CHINESE, path, place, "label"),
        }
        for path, place, row in both_halves(raw / "clue-cmnli")
    ]}


def both_halves(folder: Path) -> Iterator[tuple[Path, int, dict]]:
    """(file, number, row) of dev.json and then of test.json."""
    schema = {"text_a": TEXT, "text_b": TEXT, "label": TEXT}
    for path in (folder / "dev.json", folder / "test.json"):
        for place, row in checked(read_json(path), schema, path):
            yield path, place, row


def ocnli(raw: Path) -> Splits:
    """As CMNLI, but written by speakers of Chinese; also genre and level. Rows that the annotators did not agree on
    are left out."""
    return {"dev": inference_pairs(raw / "clue-ocnli" / "dev.json")}


def inference_pairs(path: Path) -> list[dict]:
    rows = []
    schema = {"sentence1": TEXT, "sentence2": TEXT, "label": TEXT, "genre": TEXT, "level": TEXT}
    for place, row in checked(read_jsonl(path), schema, path):
        prepared = {"premise": row["sentence1"].strip(), "hypothesis": row["sentence2"].strip(),
                    "genre": row["genre"], "level": row["level"]}
        if row["label"] == NO_MAJORITY:
            rows.append(prepared | {"left_out": "no majority label"})
        else:
            rows.append(prepared | {"label": index_of(row["label"], INFERENCE, path, place, "label")})
    return rows


def cluewsc(raw: Path) -> Splits:
    """Does the pronoun, between # in the raw text, stand for the candidate? ``pronoun_row`` names the fields."""
    rows = []
    for path, place, row in both_halves(raw / "clue-cluewsc"):
        parts = row["text_a"].split("#")
        if len(parts) != 3:
            raise UserError(f"{path}: row {place}: text_a: expected one pronoun as in #他#, found {len(parts) - 1} #")
        before, pronoun, after = parts
        label = index_of(row["label"], NO_YES_IN_CHINESE, path, place, "label")
        rows.append(pronoun_row(f"{before}【{pronoun}】{after}", before + row["text_b"] + after,
                                pronoun, row["text_b"], label))
    return {"dev": rows}


def pronoun_row(text: str, replaced: str, pronoun: str, candidate: str, label: int) -> dict:
    """Fields: text (the pronoun in 【】), replaced (the candidate in its place), pronoun, candidate, label (1 yes)."""
    return {"text": text.strip(), "replaced": replaced.strip(), "pronoun": pronoun, "candidate": candidate,
            "label": label}


def c3(raw: Path) -> Splits:
    """Questions on dialogues (c3-d) and on mixed texts (c3-m), a row for each.

    Fields: context, question, choices (two to four), options (the same in one string), label, source, document.
    """
    folder = raw / "clue-c3"
    return {"dev": reading_questions(folder / "c3-d-dev.json", "dialogue")
            + reading_questions(folder / "c3-m-dev.json", "mixed")}


def reading_questions(path: Path, source: str) -> list[dict]:
    documents, rows = read_json(path), []
    if not isinstance(documents, list):
        raise UserError(f"{path}: expected a list of documents, found {type(documents).__name__}")
    for place, document in enumerate(documents, start=1):
        what = f"document {place}"
        if not (isinstance(document, list) and len(document) == 3 and is_a(TEXTS, document[0])
                and is_a(LIST, document[1])):
            raise UserError(f"{path}: {what}: expected [lines of the text, questions, id]")
        lines, questions, name = document
        for question in questions:
            with_fields(question, {"question": TEXT, "choice": TEXTS, "answer": TEXT}, path, what)
            choices, answer = question["choice"], question["answer"]
            if choices.count(answer) != 1:
                found = f"is {choices.count(answer)} times among the choices {', '.join(choices)}"
                raise UserError(f"{path}: {what}: answer {answer!r} {found}; expected once")
            rows.append({
                "context": "".join(lines),  # every line of a dialogue begins with its speaker: nothing needed between
                "question": question["question"].strip(),
                "choices": choices,
                "options": "；".join(choices),
                "label": choices.index(answer),
                "source": source,
                "document": name,
            })
    return rows


def cmrc2018(raw: Path) -> Splits:
    """Questions answered by a piece of the text. Fields: context, question, answers (all that differ), id."""
    return {"dev": answered_questions(raw / "clue-cmrc2018" / "cmrc2018_dev.json")}


def drcd(raw: Path) -> Splits:
    """As CMRC2018, in traditional characters."""
    return {"dev": answered_questions(raw / "clue-drcd" / "DRCD_dev.json")}


def answered_questions(path: Path) -> list[dict]:
    """All questions of a file in SQuAD's format."""
    rows = []
    articles = with_fields(read_json(path), {"data": LIST}, path, "the whole file")["data"]
    for place, article in checked(articles, {"paragraphs": LIST}, path):
        for paragraph in article["paragraphs"]:
            with_fields(paragraph, {"context": TEXT, "qas": LIST}, path, f"article {place}")
            rows += [question_row(question, paragraph["context"], path, f"article {place}")
                     for question in paragraph["qas"]]
    return rows


def question_row(question: object, context: str, path: Path, what: str) -> dict:
    question = with_fields(question, {"id": TEXT, "question": TEXT, "answers": LIST}, path, what)
    what = f"question {question['id']}"
    texts = [with_fields(answer, {"text": TEXT}, path, what)["text"].strip() for answer in question["answers"]]
    if not texts or "" in texts:
        raise UserError(f"{path}: {what}: no answer, or an answer without text")
    return {"context": context.strip(), "question": question["question"].strip(),
            "answers": list(dict.fromkeys(texts)), "id": question["id"]}


def csl(raw: Path) -> Splits:
    """Are all keywords those of the paper? Fields: abstract, keywords (in one string), label (0 no, 1 yes).

    Without CLUE's own file the rows are FewCLUE's, in a split of that name.
    """
    path, stand_in = raw / "clue-csl" / "dev.json", raw / "fewclue-csl" / "test_public.json"
    if not path.is_file() and stand_in.is_file():
        return {"fewclue_test_public": keyword_rows(stand_in)}
    return {"dev": keyword_rows(path)}


def keyword_rows(path: Path) -> list[dict]:
    schema = {"abst": TEXT, "keyword": TEXTS, "label": TEXT}
    return [
        {
            "abstract": row["abst"].strip(),
            "keywords": "、".join(row["keyword"]),
            "label": index_of(row["label"], NO_YES, path, place, "label"),
        }
        for place, row in checked(read_jsonl(path), schema, path)
    ]
