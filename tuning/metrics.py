"""Metrics of classification and of answers that are picked, by their published definitions.

Accuracies are in percent, F1 of classes from 0 to 1, as the GLM repository prints them.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence

from runtime.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def classification_metrics(predictions: Sequence[int], labels: Sequence[int]) -> dict[str, float]:
    """accuracy in percent, f1-macro over the classes that occur, and with the classes 0 and 1 alone f1 of class 1.
    UserError for lists of different lengths, and for none."""
    _check(predictions, labels)
    classes = sorted({*predictions, *labels})
    found = {"accuracy": accuracy(predictions, labels),
             "f1-macro": sum(f1_of(each, predictions, labels) for each in classes) / len(classes)}
    return found | ({"f1": f1_of(1, predictions, labels)} if set(classes) <= {0, 1} else {})


def accuracy(predictions: Sequence[int], labels: Sequence[int]) -> float:
    """In percent."""
    return 100 * sum(map(int.__eq__, map(int, predictions), map(int, labels))) / len(labels)


def f1_of(which: int, predictions: Sequence[int], labels: Sequence[int]) -> float:
    """Of one class, from 0 to 1; 0 where it is neither predicted nor right."""
    both = sum(predicted == label == which for predicted, label in zip(predictions, labels, strict=True))
    either = sum(each == which for each in (*predictions, *labels))
    return 2 * both / either if either else 0.0


def multirc_metrics(predictions: Sequence[int], labels: Sequence[int], questions: Sequence[object]) -> dict[str, float]:
    """f1a: F1 of the right answers; em: share of questions all of whose answers are right; acc in percent.

    questions: the question of each answer, by its number or any value that tells them apart.
    """
    _check(predictions, labels, questions)
    is_right: dict[object, bool] = defaultdict(lambda: True)
    for predicted, label, question in zip(predictions, labels, questions, strict=True):
        is_right[question] &= predicted == label
    return {"f1a": f1_of(1, predictions, labels), "em": sum(is_right.values()) / len(is_right),
            "acc": accuracy(predictions, labels)}


def record_metrics(predictions: Sequence[int], candidates: Sequence[Sequence[str]],
                   answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """EM and F1 of the predicted candidates, each with the answer that it is nearest to, in percent.

    predictions: indices of candidates. A row without answers counts 0.
    """
    _check(predictions, candidates, answers)
    texts = [each[predicted] for predicted, each in zip(predictions, candidates, strict=True)]

    def mean(score) -> float:
        best = (max((score(text, answer) for answer in each), default=0) for text, each in zip(texts, answers,
                                                                                             strict=True))
        return 100 * sum(best) / len(texts)

    return {"EM": mean(answer_em), "F1": mean(answer_f1)}


def normalise_answer(text: str) -> str:
    """Lower case in ASCII, without punctuation and articles, words parted by single blanks."""
    from unidecode import unidecode

    return " ".join(_ARTICLES.sub(" ", unidecode(text.lower()).translate(_PUNCTUATION)).split())


def answer_em(prediction: str, truth: str) -> bool:
    return normalise_answer(prediction) == normalise_answer(truth)


def answer_f1(prediction: str, truth: str) -> float:
    """Over words, from 0 to 1; 0 where nothing is common, two empty texts included."""
    predicted, wanted = normalise_answer(prediction).split(), normalise_answer(truth).split()
    common = (Counter(predicted) & Counter(wanted)).total()
    return 2 * common / (len(predicted) + len(wanted)) if common else 0.0


def _check(*lists: Sequence) -> None:
    lengths = [len(each) for each in lists]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise UserError(f"metrics need lists of one length, above 0; these have {', '.join(map(str, lengths))}")
