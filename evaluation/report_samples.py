"""Items that a reader should see: a few of each task, chosen by what they show, with the text they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from evaluation.analysis import softmax
from evaluation.markup import Html, tag
from runtime.errors import UserError

_CHOSEN = {True: "✗", False: "→"}  # a choice that is not the label; one where there is no label
_COLORS = {"✓": "good", "✗": "bad", "→": "faint"}
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


def source_rows(entry: Mapping, file: str) -> list[dict] | None:
    """The rows of a data file, if it still is the file that was evaluated; None if not, and for raw text."""
    from evaluation.config import TaskType
    from evaluation.data import read_rows
    from evaluation.store import hash_file

    config = SimpleNamespace(**{"module": None, "options": {}} | dict(entry["config"]))
    config.type, path = TaskType(config.type), Path(config.path, file)
    if config.type is TaskType.LANGUAGE_MODEL:
        return None
    try:
        if hash_file(path) != entry["files"][file]["sha256"]:
            return None
        return read_rows(path, config)
    except (OSError, UserError):
        return None


def shown(item: Mapping, why: str, file: str, row: Mapping | None, score: float | None) -> Html:
    """One item: where it comes from, the end of its text, what was answered and what is right."""
    verdict = None
    if score is not None:
        verdict = tag("span", "right" if score >= 1 else "wrong" if score <= 0 else f"{100 * score:.0f}% right",
                      class_="good" if score >= 1 else "bad" if score <= 0 else "cut")
    cut = [tag("span", f" · {word}", class_="cut") for fact, word in (("truncated", "truncated"), ("overlong", "long"))
           if item.get(fact)]
    length = f" · {item['input_length']} tokens" if "input_length" in item else ""
    head = tag("div", tag("b", why[:1].upper() + why[1:]), " ", verdict,
               tag("span", f" · {file}, item {item['index']}{length}", class_="faint"), cut)
    return tag("div", head, _context(row), _answer(item, row or {}), class_="item")


def _context(row: Mapping | None) -> Html | None:
    text = (row or {}).get("inputs_pretokenized")
    if not isinstance(text, str) or not text.strip():
        return None
    return tag("div", ("… " if len(text) > _CONTEXT else "") + text[-_CONTEXT:], class_="text")


def _answer(item: Mapping, row: Mapping) -> Html:
    if item.get("log_probs") and isinstance(item.get("prediction"), int):
        return _choices(item, row)
    if isinstance(item.get("prediction"), str):
        pairs = [("answer", item["prediction"])] + [("right", target) for target in item.get("targets", ())[:4]]
        return tag("div", [(tag("span", name, class_="faint"), _written(text)) for name, text in pairs],
                   class_="pair")
    if "loss" in item:
        return tag("div", f"{item['loss'] / max(1, item['tokens']):.3f} nats per token over {item['tokens']} tokens")
    known = ("index", "truncated", "overlong", "input_length", "beams")
    left = {key: value for key, value in item.items() if key not in known}
    return tag("code", _clipped(str(left)))


def _written(text: str) -> Html:
    return tag("span", _clipped(text)) if text.strip() else tag("span", "nothing", class_="faint")


def _choices(item: Mapping, row: Mapping) -> Html:
    texts = row.get("choices_pretokenized") or []
    probabilities = softmax(item["log_probs"])
    order = [place for place in np.argsort(-probabilities, kind="stable")[:_CHOICES]]
    if isinstance(item.get("label"), int) and item["label"] not in order:
        order[-1] = item["label"]
    lines = []
    for place in sorted(int(place) for place in order):
        sign = "✓" if place == item.get("label") else _CHOSEN[_is_labelled(item)] if place == item["prediction"] else ""
        text = texts[place] if place < len(texts) else f"choice {place}"
        bar = tag("span", tag("i", style=f"width:{100 * probabilities[place]:.1f}%"), class_="bar")
        color = _COLORS.get(sign)
        cells = [tag("span", sign, class_=color), tag("span", _clipped(text), class_="words"),
                 bar, tag("span", f"{100 * probabilities[place]:.0f}%", class_="right number faint")]
        lines.append(tag("div", cells, class_="choice wanted" if place == item.get("label") else "choice"))
    more = len(item["log_probs"]) - len(lines)
    return tag("div", lines, tag("div", f"and {more} more choices", class_="faint") if more > 0 else None)


def _is_labelled(item: Mapping) -> bool:
    return item.get("label") is not None


def _clipped(text: str) -> str:
    return text if len(text) <= _ANSWER else text[:_ANSWER - 1] + "…"
