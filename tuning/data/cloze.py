"""Classification and multiple-choice tasks: as cloze questions, or for a classification head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import UserError
from tuning.data.cloze_samples import Builder
from tuning.data.nlu_readers import Asked, read_examples
from tuning.data.nlu_tasks import SUFFIXES, NluTask, load_task
from tuning.data.rows import file_of
from tuning.data.sample import Example, Kind, Sample, Unbuildable, built, facts_of_cuts
from tuning.metrics import classification_metrics, multirc_metrics, record_metrics
from tuning.options import Settings

if TYPE_CHECKING:
    from glm.tokenizers.interface import Tokenizer

TASKS = ("afqmc", "agnews", "ax-b", "ax-g", "boolq", "cb", "cluewsc", "cola", "copa", "mnli", "mrpc", "multirc", "qnli",
         "qqp", "race", "record", "rte", "squad-cloze", "sst2", "tnews", "wic", "wsc", "xstance", "yahoo", "yelp-full",
         "yelp-polarity")


def examples(settings: Settings) -> list[Example]:
    """UserError for mistakes in the files or in a task of one's own."""
    return _examples(load_task(settings.data.task), settings)


def samples(settings: Settings, tokenizer: Tokenizer) -> list[Sample | Unbuildable]:
    """UserError, too, for a pattern that there is not, and for a verbalizer of several tokens."""
    task = load_task(settings.data.task)
    builder = Builder.of(task, settings, tokenizer)
    return [builder.sample(example) for example in _examples(task, settings)]


def verbalizer_tokens(settings: Settings, tokenizer: Tokenizer) -> list[int]:
    """Of the pattern, label by label; none where a row's choices are what is answered."""
    task, cloze = load_task(settings.data.task), settings.cloze
    verbalizers = task.patterns[cloze.pattern_id].verbalizers if cloze.cloze_eval else None
    return [token for label in task.labels for token in tokenizer.encode(verbalizers[label], special_tokens=True)
            ] if verbalizers else []


def _examples(task: NluTask, settings: Settings) -> list[Example]:
    data = settings.data
    is_own = data.task.endswith(SUFFIXES)
    path = file_of(data.data_dir or (task.folder if is_own else None), task.files, data.split)
    found = read_examples(Asked(task, settings, path, data.split))
    if not found:
        raise UserError(f"{path}: has no rows for --split {data.split}")
    return [_with_words(task, example, path) for example in found] if task.words else found


def _with_words(task: NluTask, example: Example, path: Path) -> Example:
    words = {}
    for name, (field, texts) in task.words.items():
        value = str(example.meta.get(field))
        if value not in texts:
            raise UserError(f"{path}: {example.guid}: {field!r} is {value!r}; it must be one of {', '.join(texts)}")
        words[name] = texts[value]
    return replace(example, meta=example.meta | words)


def seen(sample: Sample, prediction: int) -> int:
    """The index of a choice, or of a label, as metrics see it: of WSC's candidates the first one means 1, others 0; and
    so the original takes the labels of a classification head, too."""
    return int(prediction == 0) if _is_of_wsc(sample) else int(prediction)


def truth(sample: Sample) -> int:
    """The label as metrics see it. UserError for a row without one."""
    label = sample.meta["example"].label == "True" if _is_of_wsc(sample) else sample.label
    if label is None:
        raise UserError(f"{sample.guid}: the row has no label; metrics need one")
    return int(label)


def _is_of_wsc(sample: Sample) -> bool:
    return sample.kind in (Kind.CHOICES, Kind.HEAD) and "pronoun" in sample.meta["example"].meta


def metrics(settings: Settings, samples: Sequence[Sample], predictions: Sequence[int]) -> dict[str, float]:
    """Of the task, its first one first. predictions: as `seen` gives them. Rows without labels give none."""
    task = load_task(settings.data.task)
    examples = [sample.meta["example"] for sample in samples]
    if not samples or (task.labels and any(example.label is None for example in examples)):
        return {}
    found: dict[str, float] = {}
    for name in task.metrics:
        if name == "record":
            found |= record_metrics(predictions, [each.meta["candidates"] for each in examples],
                                    [each.meta["answers"] for each in examples])
            continue
        labels = list(map(truth, samples))
        if name == "multirc":
            found |= multirc_metrics(predictions, labels, [example.idx[1] for example in examples])
        else:
            found[name] = classification_metrics(predictions, labels)[name]
    return found


def prediction_lines(settings: Settings, samples: Sequence[Sample], predictions: Sequence[int]) -> list[dict[str, Any]]:
    """What the task's leaderboard takes, a line each, sorted by idx where that is a number: {"idx", "label"}; MultiRC's
    answers lie within their questions and passages. predictions: as `seen` gives them."""
    task = load_task(settings.data.task)
    if "multirc" in task.metrics:
        return _of_passages(samples, predictions)
    lines = []
    for sample, prediction in zip(samples, predictions, strict=True):
        example = sample.meta["example"]
        if "record" in task.metrics:
            idx = example.idx if isinstance(example.idx, int) else example.idx[1]
            lines.append({"idx": idx, "label": example.meta["candidates"][prediction]})
        else:
            lines.append({"idx": example.idx, "label": task.labels[prediction] if task.labels else int(prediction)})
    are_numbers = all(isinstance(line["idx"], int) for line in lines)
    return sorted(lines, key=lambda line: line["idx"]) if are_numbers else lines


def _of_passages(samples: Sequence[Sample], predictions: Sequence[int]) -> list[dict[str, Any]]:
    passages: dict[Any, dict[Any, list[dict[str, Any]]]] = {}
    for sample, prediction in zip(samples, predictions, strict=True):
        passage, question, answer = sample.meta["example"].idx
        passages.setdefault(passage, {}).setdefault(question, []).append({"idx": answer, "label": int(prediction)})
    return [{"idx": passage, "passage": {"questions": [{"idx": question, "answers": answers}
                                                       for question, answers in questions.items()]}}
            for passage, questions in passages.items()]


def facts(settings: Settings, samples: Sequence[Sample | Unbuildable]) -> dict[str, Any]:
    """What reports say of samples, so that nothing happens unseen.

    Those of facts_of_cuts, for the segments a and b of the pattern, whose texts lose their ends; empty_text_a,
    empty_text_b; unlabelled; verbalizers: label -> text, with a cloze question that has some.
    """
    task, cloze = load_task(settings.data.task), settings.cloze
    read = [sample.meta["example"] for sample in built(samples)]
    found = facts_of_cuts(samples, "a", "b") | {
        "empty_text_a": sum(example.text_a.strip() == "" for example in read),
        "empty_text_b": sum(str(example.text_b).strip() == "" for example in read),
        "unlabelled": sum(example.label is None for example in read)}
    verbalizers = task.patterns[cloze.pattern_id].verbalizers if cloze.cloze_eval else None
    return found | ({"verbalizers": dict(verbalizers)} if verbalizers else {})
