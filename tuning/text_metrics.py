"""How near a text is to its reference: ROUGE as GLM's fine-tuning counts it, ROUGE and BLEU-4 as ChatGLM's does.

GLM's: rouge-score with its stemmer, after rules for both texts (tuning.data.texts). A prediction's sentences of four
words or fewer do not count, nor do those that mostly repeat earlier ones; a Chinese text is one word and has a ROUGE of
0. ChatGLM's: rouge-chinese over jieba's words, BLEU over characters, times 100.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tuning.data.texts import fix_text

Figures = dict[str, float]
SEPARATOR = "[SEP]"  # between the sentences of a text
LEAST_WORDS = 5  # of a prediction's sentence that counts
MOST_REPEATED = 0.7  # share of a sentence's different words that earlier ones may have
_ROUGE = {"rouge-1": "rouge1", "rouge-2": "rouge2", "rouge-l": "rougeLsum"}
_CHINESE = re.compile("[\u3400-\u9fff\U00020000-\U000323af]")


def score_pairs(predictions: Sequence[str], references: Sequence[str],
                rules: str) -> tuple[list[Figures | str], Figures]:
    """Figures of each pair, or the fault that leaves it without any, and their means over the others.

    rules: of RULES. ROUGE-1, -2, -L are F measures, from 0 to 1; with "chatglm" they and BLEU-4 from 0 to 100.
    """
    score = RULES[rules]()
    rows: list[Figures | str] = []
    for prediction, reference in zip(predictions, references, strict=True):
        try:
            rows.append(score(prediction, reference))
        except ValueError as error:
            rows.append(str(error))
    scored = [row for row in rows if not isinstance(row, str)]
    names = scored[0] if scored else ()
    return rows, {name: sum(row[name] for row in scored) / len(scored) for name in names}


def is_chinese(text: str) -> bool:
    """It has a Chinese character, for which an English ROUGE has no words."""
    return _CHINESE.search(text) is not None


def counted_sentences(prediction: str, fix: Callable[[str], str] = str) -> list[str]:
    """The sentences of a prediction that count. fix: the rules for each."""
    kept, seen = [], set()
    for sentence in map(fix, prediction.strip().split(SEPARATOR)):
        if len(sentence.split()) < LEAST_WORDS:
            continue
        words = set(sentence.lower().split())
        if len(words & seen) / len(words) <= MOST_REPEATED:
            kept.append(sentence)
        seen |= words
    return kept


def _english(fix: Callable[[str], str]) -> Callable[[str, str], Figures]:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(_ROUGE.values()), use_stemmer=True)

    def score(prediction: str, reference: str) -> Figures:
        sentences = map(fix, reference.strip().split(SEPARATOR))
        # in the original's order, the prediction as the target: over several sentences ROUGE-L is not symmetric
        found = scorer.score("\n".join(counted_sentences(prediction, fix)), "\n".join(sentences))
        return {name: found[key].fmeasure for name, key in _ROUGE.items()}

    return score


def _chinese() -> Callable[[str, str], Figures]:
    import logging

    import jieba
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    jieba.setLogLevel(logging.WARNING)
    rouge, smoothing = Rouge(), SmoothingFunction().method3

    def score(prediction: str, reference: str) -> Figures:
        words = [" ".join(jieba.cut(text)) for text in (prediction, reference)]
        for name, text in zip(("prediction", "reference"), words, strict=True):
            if not text.strip(" ."):  # rouge-chinese cuts at full stops
                raise ValueError(f"the {name} has no words")
        found = rouge.get_scores(*words)[0]
        bleu = sentence_bleu([list(reference)], list(prediction), smoothing_function=smoothing)
        return {name: round(100 * value, 4) for name, value in
                ({name: found[name]["f"] for name in _ROUGE} | {"bleu-4": float(bleu)}).items()}

    return score


RULES: Mapping[str, Callable[[], Callable[[str, str], Figures]]] = {
    "none": lambda: _english(str),
    "gigaword": lambda: _english(lambda text: fix_text(text, "gigaword")),
    "cnn_dm": lambda: _english(lambda text: fix_text(text, "cnn_dm")),
    "chatglm": _chinese,
}
