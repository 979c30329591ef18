"""What one request waits for: answers in the making. Pure of model, thread and wire.

The engine asks a choice for rows and gives it the events of each; what a choice has to say meanwhile are values that
are handed to whoever waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from generation.blanks import Filled, Filling, Result, joint
from generation.fill import row_of
from generation.groups import Event, Row
from generation.session import Detokenizer
from generation.texts import Names, Text


@dataclass(frozen=True)
class Entry:
    """A token with its log-probability and alternatives, as `logprobs` shows it."""

    token: str
    log_probability: float | None  # None for the first token of a prompt
    alternatives: dict[str, float] | None
    place: int  # in prompt and text together


@dataclass(frozen=True)
class News:
    """What a choice has to say after a step."""

    text: str = ""
    entries: tuple[Entry, ...] = ()
    tokens: int = 0  # generated since the last news
    finish_reason: str | None = None
    blank: int | None = None  # which blank of a filling `text` belongs to
    result: Result | None = None  # of a filling
    spans: tuple[tuple[tuple[int, int], ...], ...] = ()  # of each beam of the result: its blanks' places in its text
    error: str | None = None

    @property
    def is_last(self) -> bool:
        return self.finish_reason is not None or self.error is not None


class Answer:
    """One choice of a completion or of a chat: a single stretch of text behind a context."""

    def __init__(self, row: Row, text: Text, names: Names, streams: bool, looks: bool = False, offset: int = 0):
        """streams: news come as they are made. looks: the text is needed at every token, for stop texts. offset: of
        the text, for the places of entries."""
        self.row, self._text, self._names, self._offset = row, text, names, offset
        self._scores = row.alternatives is not None
        self._streams, self._looks = streams, streams or looks or self._scores
        self._entries: list[Entry] = []
        self._ids: list[int] = []
        self._told = 0

    def take(self, event: Event) -> tuple[Row | None, News | None]:
        """(the next row, which a completion never has; news, if there are any)."""
        if event.is_broken:
            return None, News(error="the model gave numbers that are none for this request")
        self._ids.append(event.token)
        if self._looks:
            place = self._text.add(event.token)
            if self._scores:
                self._entries.append(self._entry(event, place))
        if event.answers is not None or self._text.is_stopped:
            return None, self._last(event)
        return None, self._some() if self._streams else None

    def _some(self) -> News | None:
        text = self._text.new()
        entries = tuple(entry for entry in self._entries if entry.place < self._offset + self._text.shown)
        if not text and not entries:
            return None
        self._entries = self._entries[len(entries):]
        return self._news(text, entries)

    def _last(self, event: Event) -> News:
        if not self._looks:
            for token in self._ids:
                self._text.add(token)
        self._text.finish()
        is_ended = self._text.is_stopped or event.token in self.row.rules.end_tokens
        return self._news(self._text.new(), tuple(self._entries), "stop" if is_ended else "length")

    def _news(self, text: str, entries: tuple[Entry, ...], finish_reason: str | None = None) -> News:
        tokens, self._told = len(self._ids) - self._told, len(self._ids)
        return News(text, entries, tokens, finish_reason)

    def _entry(self, event: Event, place: int) -> Entry:
        chosen = "" if event.token in self.row.rules.end_tokens else self._names.token(event.token)
        return entry_of(self._names, event.token, chosen, *event.score, self._offset + place)


def entry_of(names: Names, token: int, name: str, log_probability: float,
             alternatives: Sequence[tuple[int, float]], place: int) -> Entry:
    """The chosen token is among its alternatives, with the very same number."""
    if not alternatives:
        return Entry(name, log_probability, None, place)
    tokens = [other for other, _ in alternatives]
    values = dict(zip(names.distinct(tokens, token, name), (value for _, value in alternatives), strict=True))
    values[name] = log_probability
    return Entry(name, log_probability, values, place)


class Blanks:
    """The blanks of one text, filled one after another."""

    def __init__(self, filling: Filling, tokenizer, streams: bool):
        self.row = row_of(filling)
        self._filling, self._tokenizer, self._streams = filling, tokenizer, streams
        self._text, self._tokens = Detokenizer(tokenizer), 0

    def take(self, event: Event) -> tuple[Row | None, News | None]:
        if event.is_broken:
            return None, News(error="the model gave numbers that are none for this text")
        number, text = len(self._filling.done), ""
        self._tokens += 1
        if self._streams and event.token is not None and event.token not in self._filling.ends:
            text = self._text.add(event.token)
        if event.answers is None:
            return None, self._news(text, number) if text else None
        if event.token is None:  # under beam search what counts are the tokens of the best beam
            self._tokens = len(event.answers[0][0])
        after = self._filling.take(event.answers, self._tokenizer)
        text += self._text.finish() if self._streams else ""
        self._text = Detokenizer(self._tokenizer)
        if isinstance(after, Result):
            spans = tuple(self._spans(beam.filled) for beam in after.beams)
            return None, replace(self._news(text, number), finish_reason=after.finish_reason, result=after, spans=spans)
        self._filling = after
        return row_of(after), self._news(text, number)

    def _news(self, text: str, number: int) -> News:
        tokens, self._tokens = self._tokens, 0
        return News(text, tokens=tokens, blank=number)

    def _spans(self, blanks: Sequence[Filled]) -> tuple[tuple[int, int], ...]:
        """Begin and end of each blank in the text, without the blanks (U+0020) around it."""
        typed, spans = self._filling.prompt.typed, []
        text = typed[0]
        for blank, behind in zip(blanks, typed[1:], strict=True):
            begin = len(text) + len(joint(text, blank)) + len(blank.text) - len(blank.text.lstrip(" "))
            text += joint(text, blank) + blank.text
            spans.append((begin, max(begin, len(text.rstrip(" ")) if blank.text.endswith(" ") else len(text))))
            text += behind
        return tuple(spans)
