"""Rows whose file is more than a table: SuperGLUE's MultiRC, ReCoRD and WSC, CLUEWSC, RACE, SQuAD.

Each reader gives examples in the file's order; meta holds the fields that the task's patterns use.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runtime.errors import UserError, shown
from runtime.reading import LARGE, read_json
from tuning.data.nlu_tasks import NluTask
from tuning.data.rows import FileRow, read_rows
from tuning.data.sample import Example
from tuning.data.texts import standardised
from tuning.options import Settings

CANDIDATES = 9  # that stand beside the right one in training
PLACEHOLDER = "@placeholder"
_RECORD_SEED = 42  # of the candidates of all rows of a file


@dataclass(frozen=True)
class Asked:
    """What is to be read."""

    task: NluTask
    settings: Settings
    path: Path
    split: str

    @property
    def is_training(self) -> bool:
        return self.split == "train" or self.settings.data.for_train

    def rows(self) -> Iterator[FileRow]:
        return read_rows(self.path, self.task.fields[self.split].has_header)


def read_plain(asked: Asked) -> Iterator[Example]:
    """A table: the task says in which fields the texts are."""
    task, fields, names = asked.task, asked.task.fields[asked.split], asked.task.names
    for row in asked.rows():
        idx = row.fields.get("idx", row.number)
        about = {"split": asked.split, "stem": asked.path.stem, "number": idx} | row.fields
        try:
            guid, text_a = fields.guid.value(about), fields.text_a.fill(row.fields)
            text_b = fields.text_b.fill(row.fields) if fields.text_b else None
        except KeyError as error:
            raise row.lacks(error.args[0]) from None
        except TypeError as error:
            raise UserError(f"{row.where}: {error}") from None
        meta = {name: row.fields[name] for name in names if name in row.fields}
        yield Example(guid, text_a, text_b, label_of(task, row, fields.label), idx, meta=meta)


def label_of(task: NluTask, row: FileRow, field: str) -> Any:
    """As the file writes it, but true and false as text. UserError for one that is none of the task's labels."""
    label = row.fields.get(field)
    if label is None:
        return task.unlabelled
    if isinstance(label, bool):
        label = str(label).lower() if "true" in task.labels else str(label)
    if task.labels and str(label) not in task.labels:
        raise UserError(f"{row.where}: {field!r} is {shown(label)}; labels are {', '.join(task.labels)}")
    if not task.labels and not str(label).isdecimal():
        raise UserError(f"{row.where}: {field!r} is {shown(label)}; where a task names no labels it is the number of a "
                        "choice, from 0")
    return label


def read_copa(asked: Asked) -> Iterator[Example]:
    """Training rows come again with their choices swapped."""
    examples = list(read_plain(asked))
    yield from examples
    for example in examples if asked.split == "train" else ():
        if example.label is None:
            raise UserError(f"{asked.path}: {example.guid} has no label, and is a row of training")
        swapped = {"choice1": example.meta.get("choice2"), "choice2": example.meta.get("choice1")}
        other = type(example.label)(1 - int(example.label))
        yield replace(example, guid=f"{example.guid}m", label=other, meta=example.meta | swapped)


def read_multirc(asked: Asked) -> Iterator[Example]:
    """An example for each answer of each question."""
    for row in asked.rows():
        passage = row.inner("passage", row["passage"])
        text = standardised(passage.text("text"))
        for question in passage.list_of_rows("questions"):
            asks = standardised(question.text("question"))
            for answer in question.list_of_rows("answers"):
                idx = [row["idx"], question["idx"], answer["idx"]]
                yield Example("{}-p{}-q{}-a{}".format(asked.split, *idx), text, asks,
                              label_of(asked.task, answer, "label"), idx,
                              meta={"answer": standardised(answer.text("text"))})


def read_record(asked: Asked) -> Iterator[Example]:
    """For training an example for each right answer, with at most nine entities that are none; else one for each query,
    with all entities."""
    shuffler = random.Random(_RECORD_SEED)
    for row in asked.rows():
        passage = row.inner("passage", row["passage"])
        text = standardised(passage.text("text"))
        entities = sorted({text[each.typed("start", int, "a number"):each.typed("end", int, "a number") + 1]
                           for each in passage.list_of_rows("entities")})
        text = text.replace("@highlight\n", "- ")
        for query in row.list_of_rows("qas"):
            asks, idx = standardised(query.text("query")), query["idx"]
            before, mark, behind = asks.partition(PLACEHOLDER)
            if not mark or PLACEHOLDER in behind:
                raise UserError(f"{query.where}: the query needs {PLACEHOLDER} once, and has it "
                                f"{asks.count(PLACEHOLDER)} times")
            answers = query.list_of_rows("answers") if query.fields.get("answers") is not None else []
            answers = list(dict.fromkeys(standardised(each.text("text")) for each in answers))
            guid, meta = f"{asked.split}-p{row['idx']}-q{idx}", {"before": before, "behind": behind}
            if not asked.is_training:
                yield Example(guid, text, asks, "1", idx, len(entities),
                              meta | {"candidates": entities, "answers": answers})
                continue
            for place, answer in enumerate(answers):
                wrong = [entity for entity in entities if entity not in answers]
                if len(wrong) > CANDIDATES:
                    shuffler.shuffle(wrong)
                    wrong = wrong[:CANDIDATES]
                yield Example(f"{guid}-a{place}", text, asks, "0", [row["idx"], idx, place], 1 + len(wrong),
                              meta | {"candidates": [answer, *wrong], "answers": [answer]})


def read_wsc(asked: Asked) -> Iterator[Example]:
    """With a cloze question, training has those rows alone whose answer is right."""
    cloze, is_training = asked.settings.cloze, asked.split == "train"
    for row in asked.rows():
        target = row.inner("target", row["target"])
        label = label_of(asked.task, row, "label")
        if cloze.cloze_eval and is_training and label != "True":
            continue
        noun, pronoun = standardised(target.text("span1_text")), standardised(target.text("span2_text"))
        words, place = _with_pronoun(standardised(row.text("text")).split(), target, pronoun)
        marked = [*words[:place], f"*{words[place]}*", *words[place + 1:]]
        idx = row.fields.get("idx", row.number)
        for others in _others(row, is_training) if cloze.wsc_negative else [[]]:
            yield Example(f"{asked.split}-{idx}", " ".join(words), None, label, idx, meta={
                "marked": " ".join(marked), "noun": noun, "pronoun": pronoun, "candidates": [noun, *others]})


def _with_pronoun(words: list[str], target: FileRow, pronoun: str) -> tuple[list[str], int]:
    """The words and the place of the pronoun among them: where the row says, or beside it; what sticks to it is
    parted from it."""
    place = target.typed("span2_index", int, "a number")
    if not 0 <= place < len(words) or words[place] != pronoun:
        near = [place + step for step in (-1, 1) if 0 <= place + step < len(words) and words[place + step] == pronoun]
        if near:
            place = near[0]
        elif 0 <= place < len(words) and words[place].startswith(pronoun):
            words = [*words[:place], pronoun, words[place][len(pronoun):], *words[place + 1:]]
        else:
            raise UserError(f"{target.where}: the word at span2_index {place} is not {shown(pronoun)}, nor are those "
                            "beside it")
    return words, place


def _others(row: FileRow, is_training: bool) -> list[list[str]]:
    """Candidates beside the right one; in training in groups of nine, the last of which is filled up with the first
    ones."""
    candidates = [standardised(each.text("text")) for each in row.list_of_rows("candidates")]
    candidates = list(dict.fromkeys(candidates))
    if not is_training or len(candidates) <= CANDIDATES:
        return [candidates]
    filled = candidates + candidates[:-len(candidates) % CANDIDATES]
    return [filled[place:place + CANDIDATES] for place in range(0, len(filled), CANDIDATES)]


def read_cluewsc(asked: Asked) -> Iterator[Example]:
    """Both spans are marked in the text, by their characters' places."""
    for row in asked.rows():
        target, text = row.inner("target", row["target"]), row.text("text")
        spans = []
        for number, mark in ((1, "#"), (2, "*")):
            begin, span = target.typed(f"span{number}_index", int, "a number"), target.text(f"span{number}_text")
            spans.append((begin, begin + len(span), mark))
        marked = text
        for begin, end, mark in sorted(spans, reverse=True):
            marked = f"{marked[:begin]}{mark}{marked[begin:end]}{mark}{marked[end:]}"
        idx = row.fields.get("idx", row.number)
        yield Example(f"{asked.split}-{idx}", text, spans[0][0], label_of(asked.task, row, "label"), idx, meta={
            "marked": marked, "noun": target["span1_text"], "pronoun": target["span2_text"]})


def read_race(asked: Asked) -> Iterator[Example]:
    """All files of the folders middle and high of a split; an example for each question."""
    paths = [path for level in ("middle", "high") for path in sorted((asked.path / level).glob("*.txt"))]
    if not paths:
        raise UserError(f"{asked.path}: has no middle/*.txt and no high/*.txt")
    for row in (row for path in paths for row in read_rows(path)):
        article = re.sub(r"\s+", " ", row.text("article"))
        for _ in range(3):
            article = article.replace(" . ", ". ")
        questions = row.typed("questions", list, "a list")
        options, answers = row.typed("options", list, "a list"), row.fields.get("answers") or [None] * len(questions)
        for place, question in enumerate(questions):
            try:
                inner = row.inner(f"question {place}", {"text": question, "options": options[place],
                                                        "label": answers[place]})
            except (LookupError, TypeError):
                raise UserError(f"{row.where}: there are {len(questions)} questions, and not as many options or "
                                "answers") from None
            left, blank, right = inner.text("text").partition("_")
            yield Example(f"{asked.split}-p{row['id']}-q{place}", article, question,
                          label_of(asked.task, inner, "label"), [asked.split, row["id"], place],
                          meta={"options": inner["options"]} | ({"left": left, "right": right} if blank else {}))


def read_squad(asked: Asked) -> Iterator[Example]:
    """A question, and the first of its answers."""
    data = FileRow(str(asked.path), 0, read_json(asked.path, LARGE)).list_of_rows("data")
    for paragraph in (each for article in data for each in article.list_of_rows("paragraphs")):
        for question in paragraph.list_of_rows("qas"):
            answers = question.list_of_rows("answers") if question.fields.get("answers") else []
            yield Example(f"{asked.split}-{question['id']}", paragraph.text("context"), question.text("question"), None,
                          question["id"], meta={"answers": [answers[0].text("text") if answers else "N/A"]})


def read_examples(asked: Asked) -> list[Example]:
    """In the data set's order: those with fewer choices first."""
    readers: dict[str, Callable[[Asked], Iterator[Example]]] = {
        "rows": read_plain, "copa": read_copa, "multirc": read_multirc, "record": read_record, "wsc": read_wsc,
        "cluewsc": read_cluewsc, "race": read_race, "squad": read_squad}
    return sorted(readers[asked.task.reader](asked), key=lambda example: example.num_choices)
