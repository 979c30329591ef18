"""Items that a reader should see: a few of each task, chosen by what they show, with the text they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation.analysis import softmax
from evaluation.config import TaskConfig, TaskType
from evaluation.data import read_rows
from evaluation.store import hash_file
from runtime.errors import UserError

_CONTEXT, _ANSWER, _CHOICES = 420, 300, 8  # characters of a text's end, of an answer; choices shown


def chosen(items: Sequence[Mapping], score: Sequence[float] | None) -> list[tuple[str, int]]:
    """(why, place in items) of a few items, each once. score: how right each item is, in [0, 1], where known."""
    found: dict[int, str] = {0: "the first item"}

    def add(why: str, candidates: Sequence[int], key) -> None:
        left = [place for place in candidates if place not in found]
        if left:
            found[max(left, key=lambda place: (key(place), -place))] = why

    everything = range(len(items))
    if "loss" in items[0]:
        per_token = [item["loss"] / max(1, item["tokens"]) for item in items]
        add("the window hardest to foresee", everything, per_token.__getitem__)
        add("the window easiest to foresee", everything, lambda place: -per_token[place])
    elif score is not None:
        right = [place for place in everything if score[place] >= 1]
        wrong = [place for place in everything if score[place] <= 0]
        if _has_choices(items):
            sure = [_confidence(item) for item in items]
            add("the surest mistake", wrong, sure.__getitem__)
            add("the surest right answer", right, sure.__getitem__)
            add("the narrowest mistake", wrong, lambda place: -sure[place])
        else:
            add("a right answer", right, lambda place: -place)
            add("a wrong answer", wrong, lambda place: -place)
            add("an answer that is right in part", [p for p in everything if 0 < score[p] < 1], lambda p: score[p])
            add("the longest answer", everything, lambda place: len(str(items[place]["prediction"])))
    else:
        add("the last item", everything, lambda place: place)
    return [(why, place) for place, why in found.items()]


def _has_choices(items: Sequence[Mapping]) -> bool:
    return all(len(item.get("log_probs") or ()) > 1 and isinstance(item.get("prediction"), int) for item in items)


def _confidence(item: Mapping) -> float:
    return float(softmax(item["log_probs"])[item["prediction"]])


def source_rows(config: TaskConfig, file: str, sha256: str) -> list[dict] | None:
    """The rows of a data file, if it still is the file that was evaluated; None if not, and for raw text."""
    if config.type is TaskType.LANGUAGE_MODEL:
        return None
    try:
        path = Path(config.path, file)
        return read_rows(path, config) if hash_file(path) == sha256 else None
    except (OSError, UserError):
        return None


def shown(item: Mapping, why: str, file: str, row: Mapping, score: float | None) -> dict:
    """One item: where it comes from, the end of its text, what was answered and what is right."""
    length = f" · {item['input_length']} tokens" if "input_length" in item else ""
    text = row.get("inputs_pretokenized")
    text = text if isinstance(text, str) and text.strip() else ""
    found = {"why": why[:1].upper() + why[1:], "place": f"{file}, item {item['index']}{length}",
             "marks": [word for fact, word in (("truncated", "truncated"), ("overlong", "long")) if item.get(fact)],
             "text": ("… " if len(text) > _CONTEXT else "") + text[-_CONTEXT:],
             "verdict": "", "choices": (), "answers": (), "loss": ""}
    if score is not None:
        found["verdict"], found["color"] = (("right", "good") if score >= 1 else ("wrong", "bad") if score <= 0
                                            else (f"{100 * score:.0f}% right", "cut"))
    if item.get("log_probs") and isinstance(item.get("prediction"), int):
        choices = _choices(item, row)
        return found | {"choices": choices, "more": len(item["log_probs"]) - len(choices)}
    if isinstance(item.get("prediction"), str):
        answers = [("answer", item["prediction"]), *(("right", target) for target in item.get("targets", ())[:4])]
        return found | {"answers": [(name, _clipped(text) if text.strip() else "") for name, text in answers]}
    if "loss" in item:
        return found | {"loss": f"{item['loss'] / max(1, item['tokens']):.3f} nats per token over {item['tokens']} "
                                "tokens"}
    known = ("index", "truncated", "overlong", "input_length", "beams")
    return found | {"fields": _clipped(str({key: value for key, value in item.items() if key not in known}))}


def _choices(item: Mapping, row: Mapping) -> list[dict]:
    """The likeliest choices and the right one, in their order."""
    texts, right = row.get("choices_pretokenized") or [], item.get("label")
    percents = 100 * softmax(item["log_probs"])
    order = np.argsort(-percents, kind="stable")[:_CHOICES].tolist()
    if isinstance(right, int) and right not in order:
        order[-1] = right
    taken = ("→", "faint") if right is None else ("✗", "bad")
    found = []
    for place in sorted(order):
        sign, color = ("✓", "good") if place == right else taken if place == item["prediction"] else ("", "")
        text = texts[place] if place < len(texts) else f"choice {place}"
        found.append({"sign": sign, "color": color, "text": _clipped(text), "percent": percents[place],
                      "is_right": place == right})
    return found


def _clipped(text: str) -> str:
    return text if len(text) <= _ANSWER else text[:_ANSWER - 1] + "…"
