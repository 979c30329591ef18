"""LAMBADA and texts as the GLM repository evaluates them, without tuning (Du et al. 2022): for the family glm.

LAMBADA       [CLS] text [MASK] eos | sop word: right where every token of the word is the likeliest one
texts         [CLS] beginning [MASK] | sop rest: windows that move on by generation_length and score so many tokens each
unidirectional: in both the beginning is the first token, all others stand behind sop.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from evaluation.contexts import Context
from evaluation.data import Example, is_text, read_text
from evaluation.metrics import Metric, perplexity
from evaluation.requests import ScoreRequest
from evaluation.tasks import LanguageModelTask, Task, fit_context, moving_windows, score_request
from runtime.errors import UserError

# WikiText's spelling, undone in this order: plain replacements, then what stands in pairs, then the rest.
_PLAIN = (("s '", "s'"), *((f" @{sign}@ ", sign) for sign in "-,."), *((f" {sign} ", f"{sign} ") for sign in ":;.!?,"))
_PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"), ("{", "}"), ('"', '"'), ("'", "'"))
_REST = (("= = = =", "===="), ("= = =", "==="), ("= =", "=="), (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
         (" \n", "\n"), ("\n ", "\n"), (" N ", " 1 "), (" 's", "'s"))


def as_written(text: str) -> str:
    """A text of WikiText without the blanks and signs that its tokenisation has put in."""
    for old, new in _PLAIN:
        text = text.replace(old, new)
    for left, right in _PAIRS:
        text = re.sub(rf"({left})\s*([^{right}]*?)\s*({right})", r"\1\2\3", text)
    for old, new in _REST:
        text = text.replace(old, new)
    return text


def windows(ids: Sequence[int], width: int, step: int) -> list[tuple[Sequence[int], Sequence[int]]]:
    """(what is read, what is scored) of windows of a text that move on by a step; of the first all but a token is
    scored."""
    return moving_windows(ids, width, step, 1, width - step)


def opened(task: Task, text: Sequence[int], end: bool) -> Context:
    """A text of which all but the first token stand in the blank. end: whether the family's end is behind the mask."""
    whole = task.contexts.with_mask(text[:1], is_closed=True) if end else task.contexts.of_beginning(text[:1])
    return Context((*whole.ids, *text[1:]), whole.first, whole.advance, opened=len(text) - 1)


def check_family(task: Task) -> None:
    if task.config.form.begin != ("ENC",):
        raise UserError(f"{task.config.source}: this is GLM's own evaluation, for models of the family glm; the same "
                        "data is scored for others in tasks/lambada and tasks/language_modeling")


class LAMBADA(Task):
    default_metrics = ("Accuracy",)

    @classmethod
    def fault(cls, row: dict) -> str | None:
        targets = row.get("targets_pretokenized")
        if not is_text(row.get("inputs_pretokenized")) or not row["inputs_pretokenized"].strip():
            return "field inputs_pretokenized: must be the passage without its last word"
        if not (isinstance(targets, list) and targets and is_text(targets[0]) and targets[0].strip()):
            return "field targets_pretokenized: must be a list with the last word"
        return None

    def request(self, example: Example) -> ScoreRequest:
        check_family(self)
        word = tuple(self.tokenizer.encode(" " + example.row["targets_pretokenized"][0].strip()))
        ids = self.tokenizer.encode(example.row["inputs_pretokenized"].strip())
        limit = self.config.max_seq_length
        text, truncated = fit_context(ids, limit - len(word) - 3, limit)
        context = opened(self, text, end=True) if self.config.unidirectional else self.contexts.with_mask(text, True)
        return score_request(context, (word,), truncated=truncated, input_length=len(text))

    def item(self, example: Example, request: ScoreRequest, answer: dict) -> dict:
        """prediction: 1 where the model would have written the word, which `label` asks for."""
        return self._facts(example, request) | {"prediction": int(answer["is_greedy"][0]), "label": 1,
                                                "log_probs": answer["log_probs"]}


def loss_and_places(item) -> tuple[float, float]:
    return item["loss"], item["places"]


class Text(LanguageModelTask):
    """Perplexity of a file that is one document, or, with `lines: true`, one a line; `wikitext: true` spells it as it
    was written. Per word (PPL) and per token (PPL_token), of words and tokens but the first."""

    default_metrics = ("PPL", "PPL_token")
    extra_metrics: ClassVar = {"PPL_token": Metric("PPL_token", loss_and_places, perplexity, higher_is_better=False,
                                                   types=("lm",), scale=None)}

    def examples(self, path: Path, limit: int | None = None) -> list[Example]:
        options, raw = self.config.options, read_text(path)
        documents = [line.strip() for line in raw.split("\n") if line.strip()] if options.get("lines") else [raw]
        words, size = sum(len(document.strip().split(" ")) for document in documents) - 1, len(raw.encode())
        if options.get("wikitext"):
            documents = [as_written(document) for document in documents]
        ids = [self.tokenizer.encode(document) for document in documents]
        windows = [window for each in ids for window in self.windows(each) if window[1]]
        scored, places = sum(len(part) for _, part in windows), sum(map(len, ids)) - 1
        totals = {"words": words, "bytes": size, "places": places}
        return [Example(index, prompt, [], [part], None,
                        {name: total * len(part) / scored for name, total in totals.items()})
                for index, (prompt, part) in enumerate(windows[:limit])]

    def windows(self, ids: Sequence[int]) -> list[tuple[list[int], list[int]]]:
        """(what is read, what is scored) of windows that move on by generation_length."""
        is_model_s = self.config.packed_length is not None  # max_seq_length is all that the model takes
        return windows(list(ids), self.config.max_seq_length - 1 - is_model_s, self.config.generation_length)

    def request(self, example: Example) -> ScoreRequest:
        check_family(self)
        (scored,) = example.targets
        is_opened = self.config.unidirectional
        context = opened(self, example.inputs, False) if is_opened else self.contexts.of_beginning(example.inputs)
        return score_request(context, (tuple(scored),), input_length=len(example.inputs) + len(scored))
