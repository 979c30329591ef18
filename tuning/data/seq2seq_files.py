"""Files of the seq2seq tasks -> examples: two texts and the reference that metrics compare a prediction with.

    gigaword, cnn_dm, cnn_dm_original, customization    {train,val,test}.source and .target, a text a line
    extraction                                          {train,valid,test}.source, with [MASK], and .target, a|b
    blank (Yahoo)                                       {train,valid,test}.txt, blank/test.maskratio0.3.blank
    xsum                                                a list of ids, and a file of sections for each
    squad, squad_v1, squad_generation, cmrc             {train,dev,test}.json as SQuAD's
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runtime.errors import UserError
from runtime.reading import LARGE, read_json, read_text
from tuning.data.sample import Example
from tuning.data.texts import clean_text, standardised
from tuning.options import Settings

CLEANED = {"gigaword": ("gigaword", "gigaword"), "cnn_dm": ("cnn_dm_source", "cnn_dm_target"),
           "cnn_dm_original": None}  # rules of source and target, behind the standard ones
QUESTIONS = ("squad", "squad_v1", "squad_generation", "cmrc")
XSUM_SPLITS = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
NO_ANSWER = "FAKE_ANSWER"  # of test rows, whose answers a task may not read

Spell = Callable[[str], str]


def read_examples(settings: Settings, spell: Spell) -> list[Example]:
    """The rows of the split that is asked for, in the files' order; meta has `ref`, and question and answers.

    spell: a text as the tokenizer gives it back, which references of most tasks are. UserError for files that are
    missing, of unequal length, or not as their task has them.
    """
    task, folder, split = settings.data.task, settings.data.data_dir, settings.data.split
    if folder is None:
        raise UserError(f"--task {task}: name the folder with its files, --data-dir")
    if not Path(folder).is_dir():
        raise UserError(f"--data-dir {folder}: there is no such folder")
    if task in QUESTIONS:
        return list(_questions(task, folder, split, spell))
    if task == "blank":
        return _pairs(split, *_blank_lines(folder, split, settings.seq2seq.blank_maskratio), str)
    if task == "xsum":
        return _pairs(split, *_sections(folder, split), spell)
    name = {"dev": "valid" if task == "extraction" else "val"}.get(split, split)
    sources, targets = (_lines(Path(folder, f"{name}.{side}")) for side in ("source", "target"))
    if len(sources) != len(targets):
        raise UserError(f"{folder}: {name}.source has {len(sources)} lines, {name}.target {len(targets)}; each line "
                        "of one belongs to that of the other")
    if task not in CLEANED:
        return _pairs(split, sources, targets, str)
    cleaned = [list(map(standardised, lines)) for lines in (sources, targets)]
    if rules := CLEANED[task]:
        cleaned = [[clean_text(line, rule) for line in lines] for lines, rule in zip(cleaned, rules, strict=True)]
    return _pairs(split, *cleaned, spell)


def _pairs(split: str, sources: list[str], targets: list[str], spell: Spell) -> list[Example]:
    return [Example(f"{split}-{index}", source, target, meta={"ref": spell(target)})
            for index, (source, target) in enumerate(zip(sources, targets, strict=True))]


def _lines(path: Path) -> list[str]:
    """Without the white space around each. UserError for a file without lines."""
    text = read_text(path, is_prose=True).replace("\r\n", "\n").replace("\r", "\n")
    if not text:
        raise UserError(f"{path}: is empty")
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def _blank_lines(folder: Path, split: str, ratio: float) -> tuple[list[str], list[str]]:
    whole = Path(folder, f"{'valid' if split == 'dev' else split}.txt")
    targets = [clean_text(line, "blank") for line in _lines(whole)]
    if split != "test":
        return targets, targets
    blanked = Path(folder, "blank", f"test.maskratio{ratio:.1f}.blank")
    sources = [clean_text(line, "blank") for line in _lines(blanked)]
    if len(sources) != len(targets):
        raise UserError(f"{blanked} has {len(sources)} lines, {whole} {len(targets)}; each line of one belongs to that "
                        "of the other")
    return sources, targets


def _sections(folder: Path, split: str) -> tuple[list[str], list[str]]:
    """Of XSum: body and first sentence of every article of the split."""
    listed, key = Path(folder, XSUM_SPLITS), {"dev": "validation"}.get(split, split)
    ids = read_json(listed, LARGE)
    ids = ids.get(key) if isinstance(ids, dict) else None
    if not isinstance(ids, list) or not all(isinstance(each, (str, int)) for each in ids):
        raise UserError(f"{listed}: must be an object whose {key!r} is a list of the articles' ids")
    bodies, sentences = [], []
    for each in ids:
        path = Path(folder, f"{each}.summary")
        found: dict[str, list[str]] = {}
        name = None
        for line in _lines(path):
            if line.startswith("[SN]"):
                name = line[4:-4]
                found[name] = []
            elif line and name is not None:
                found[name].append(line)
        for section, texts in (("RESTBODY", bodies), ("FIRST-SENTENCE", sentences)):
            if section not in found:
                raise UserError(f"{path}: has no section [SN]{section}[SN]")
            texts.append(" ".join(found[section]))
    return bodies, sentences


def _questions(task: str, folder: Path, split: str, spell: Spell) -> Iterator[Example]:
    """One for each answer of a question; one for each question in the test split and for windows of an article."""
    path = Path(folder, f"{split}.json")
    index = 0
    for number, (context, asked) in enumerate(_asked(path)):
        answers = list(dict.fromkeys(answer["text"] for answer in asked.get("answers", ())))
        if task.startswith("squad_v") or task == "squad":
            wanted = answers[:1] or ["N/A"]
        elif split == "test":
            wanted = [NO_ANSWER]
        elif not (wanted := answers):
            raise UserError(f"{path}: the question {asked['question'][:60]!r} has no answer; only squad takes those")
        for answer in wanted:
            yield Example(f"{split}-{index}", context, meta={
                "ref": spell(answer), "answer": answer, "question": asked["question"], "answers": answers,
                "number": number})
            index += 1


def _asked(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each question with its article; UserError, with its place, for what SQuAD's files do not hold."""
    content = read_json(path, LARGE)
    articles = content.get("data") if isinstance(content, dict) else content
    try:
        for place, article in enumerate(articles):
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    texts = [paragraph["context"], asked["question"],
                             *(answer["text"] for answer in asked.get("answers", ()))]
                    if not all(isinstance(text, str) for text in texts):
                        raise UserError(f"{path}: article {place}: context, question and answers must be texts")
                    yield paragraph["context"], asked
    except (TypeError, KeyError, AttributeError):
        raise UserError(f"{path}: must be as SQuAD's files: data, a list of articles with paragraphs, of context and "
                        "qas, of question and answers") from None
