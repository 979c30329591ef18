"""Seq2seq tasks: a text is read, another one is written. Their samples, and the scores of what was written."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError
from tuning.data.sample import Example, Kind, Sample, Unbuildable, built, facts_of_cuts
from tuning.data.seq2seq_files import CLEANED, QUESTIONS, read_examples
from tuning.data.seq2seq_samples import BLANKS, NOTHING, WINDOWS, ids_of, made_of
from tuning.metrics import answer_em, answer_f1
from tuning.options import Settings
from tuning.text_metrics import is_chinese, score_pairs
from tuning.tokenizers import open_tokenizer

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

TASKS = (*CLEANED, "xsum", "customization", *QUESTIONS, *BLANKS)


def examples(settings: Settings) -> list[Example]:
    """What was read from the files; references are spelt as the tokenizer of the settings spells them."""
    return _examples(settings, open_tokenizer(settings.tokenizer))


def _examples(settings: Settings, tokenizer: Tokenizer) -> list[Example]:
    return read_examples(settings, lambda text: tokenizer.detokenize(ids_of(tokenizer, text)))


def samples(settings: Settings, tokenizer: Tokenizer) -> list[Sample | Unbuildable]:
    """In the files' order. In the test split a row ends with sop; a question of squad has a sample for each window."""
    if settings.data.task == "blank" and settings.tokenizer.task_mask:
        raise UserError("--task blank: its blanks are [MASK], and with --task-mask a model has others; leave that away")
    if settings.data.task in BLANKS and not settings.form.pads_sources:
        raise UserError(f"--task {settings.data.task}: rows of several blanks are there for the GLM repository's "
                        "models")
    found: list[Sample | Unbuildable] = []
    chance = random.Random(settings.data.seed)
    for example in _examples(settings, tokenizer):
        try:
            several = made_of(example, settings, tokenizer, chance)
        except ValueError as error:
            found.append(Unbuildable(example.guid, str(error)))
            continue
        for made in several:
            reference = example.meta["ref"] if made.target is None else made.target
            found.append(Sample(example.guid, Kind.SEQ2SEQ, (made.row,), reference=reference, meta={
                **example.meta, "cut": made.cut, "is_empty": (example.text_a == "", reference == "")}))
    if settings.data.task in WINDOWS:  # several samples of one example
        found = [replace(sample, guid=f"{settings.data.split}-{place}") for place, sample in enumerate(found)]
    return found


def facts(settings: Settings, samples: Sequence[Sample | Unbuildable]) -> dict[str, Any]:
    """What reports say of samples, so that nothing happens unseen.

    Those of facts_of_cuts, for sources and targets, sources_lose: at which end, if any did; empty_sources,
    empty_targets; chinese_references, which an English ROUGE has no words for.
    """
    whole = built(samples)
    empty = [sample.meta["is_empty"] for sample in whole]
    found = facts_of_cuts(samples, "sources", "targets") | {
        "empty_sources": sum(source for source, _ in empty), "empty_targets": sum(target for _, target in empty),
        "chinese_references": 0 if settings.data.task in ("cmrc", *WINDOWS, *BLANKS) else sum(
            is_chinese(sample.reference or "") for sample in whole)}
    ends = {"customization": "their beginning", "squad_generation": "what is far from the answer"}
    return found | ({"sources_lose": ends.get(settings.data.task, "their end")} if found["shortened_sources"] else {})


def metrics(settings: Settings, samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
    """Means of ROUGE-1, -2 and -L, from 0 to 1; of squad and cmrc EM and F1, from 0 to 100; none of blanks."""
    return figures(settings, samples, predictions)[1]


def figures(settings: Settings, samples: Sequence[Sample],
            predictions: Sequence[str]) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Those of each row, where rows have some by themselves, and the metrics."""
    none: list[dict[str, float]] = [{}] * len(samples)
    task = settings.data.task
    if task in BLANKS or (task == "cmrc" and settings.data.split == "test"):  # cmrc's test rows hide their answers
        return none, {}
    if task in WINDOWS:
        return none, _of_questions(samples, predictions)
    if task == "cmrc":  # a row a question
        return ([_of_questions([sample], [text]) for sample, text in zip(samples, predictions, strict=True)],
                _of_questions(samples, predictions))
    rules = "cnn_dm" if _is_wordpiece(settings) else "gigaword" if task == "gigaword" else "none"
    rows, means = score_pairs(predictions, [sample.reference or "" for sample in samples], rules)
    return [{} if isinstance(row, str) else row for row in rows], means


def _of_questions(samples: Sequence[Sample], predictions: Sequence[str]) -> dict[str, float]:
    """A question's answer is the first one that is not N/A, of all its windows."""
    answers: dict[int, str] = {}
    truths: dict[int, Sequence[str]] = {}
    for sample, prediction in zip(samples, predictions, strict=True):
        number = sample.meta["number"]
        truths[number] = sample.meta["answers"] or [NOTHING]
        if answers.get(number, NOTHING) == NOTHING:
            answers[number] = NOTHING if prediction.replace(" ", "").lower() == "n/a" else prediction
    return {name: 100 * sum(max(score(answers[number], truth) for truth in each) for number, each in truths.items())
            / max(len(truths), 1) for name, score in (("EM", answer_em), ("F1", answer_f1))}


def rules_of_answers(settings: Settings) -> str | None:
    """Of tuning.data.texts, for what was written; None: it stays as it is."""
    if settings.data.task in WINDOWS and _is_wordpiece(settings):
        return "squad"
    return "blank" if settings.data.task in BLANKS else None


def _is_wordpiece(settings: Settings) -> bool:
    return settings.tokenizer.tokenizer_type == "BertWordPieceTokenizer"
