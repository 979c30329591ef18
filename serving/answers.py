"""Answers as JSON: OpenAI's objects for completions and chats, ours for filled blanks; whole, or chunk by chunk."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from generation.blanks import Result
from serving.choices import Entry, News
from serving.prepare import Prompt, Served
from serving.requests import Chat, Completion, Fill


@dataclass
class Choice:
    """What has come of one choice so far."""

    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    tokens: int = 0
    finish_reason: str | None = None
    result: Result | None = None
    spans: Sequence[Sequence[tuple[int, int]]] = ()

    def take(self, news: News) -> None:
        self.text += news.text
        self.entries += news.entries
        self.tokens += news.tokens
        self.finish_reason = news.finish_reason or self.finish_reason
        self.result, self.spans = news.result or self.result, news.spans or self.spans


def usage(prompt_tokens: int, completion_tokens: int) -> dict:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens}


class Completions:
    """The answer to a completion. prompts: a text and its entries (with echo and logprobs) for each."""

    prefix, kind, chunk_kind = "cmpl", "text_completion", "text_completion"

    def __init__(self, asked: Completion, prompts: Sequence[Prompt], served: Served):
        self.asked, self.prompts, self.served = asked, prompts, served
        self.scored: list[list[Entry]] = [[] for _ in prompts]
        self.head = _head(self.prefix, self.kind, served)

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)

    def choice(self, index: int, text: str, entries: Sequence[Entry], finish_reason: str | None,
               is_first: bool = True) -> dict:
        number = index // self.asked.choices
        if self.asked.echo and is_first:
            text = self.prompts[number].text + text
            entries = [*self.scored[number], *entries]
        return {"index": index, "text": text, "finish_reason": finish_reason,
                "logprobs": None if self.asked.alternatives is None else _completion_logprobs(entries)}

    def whole(self, choices: Sequence[Choice]) -> dict:
        if not choices:  # nothing was to be generated
            choices = [Choice(finish_reason="length")] * (len(self.prompts) * self.asked.choices)
        shown = [self.choice(index, one.text, one.entries, one.finish_reason) for index, one in enumerate(choices)]
        return self.head | {"choices": shown, "usage": usage(self.prompt_tokens, sum(one.tokens for one in choices))}

    def chunk(self, index: int, news: News, is_first: bool) -> list[dict]:
        chunks = []
        is_echo = self.asked.echo and is_first
        if news.text or news.entries or is_echo:
            chunks.append(self.choice(index, news.text, news.entries, None, is_first))
        if news.finish_reason is not None:
            chunks.append(self.choice(index, "", (), news.finish_reason, False) | {"logprobs": None})
        return [self._event([one]) for one in chunks]

    def final(self, completion_tokens: int) -> dict:
        return self.head | {"choices": [], "usage": usage(self.prompt_tokens, completion_tokens)}

    def _event(self, choices: list[dict]) -> dict:
        return self.head | {"choices": choices} | ({"usage": None} if self.asked.streaming.includes_usage else {})


class Chats:
    """The answer to a chat."""

    def __init__(self, asked: Chat, prompt_tokens: int, served: Served):
        self.asked, self.prompt_tokens, self.served = asked, prompt_tokens, served
        self.head = _head("chatcmpl", "chat.completion", served)

    def whole(self, choices: Sequence[Choice]) -> dict:
        shown = [{"index": index, "message": {"role": "assistant", "content": one.text},
                  "finish_reason": one.finish_reason, "logprobs": self._logprobs(one.entries)}
                 for index, one in enumerate(choices)]
        return self.head | {"choices": shown, "usage": usage(self.prompt_tokens, sum(one.tokens for one in choices))}

    def chunk(self, index: int, news: News, is_first: bool) -> list[dict]:
        deltas = [({"role": "assistant", "content": ""}, (), None)] if is_first else []
        if news.text or news.entries:
            deltas.append(({"content": news.text}, news.entries, None))
        if news.finish_reason is not None:
            deltas.append(({}, (), news.finish_reason))
        return [self._event([{"index": index, "delta": delta, "finish_reason": reason,
                              "logprobs": self._logprobs(entries) if entries else None}])
                for delta, entries, reason in deltas]

    def final(self, completion_tokens: int) -> dict:
        return self._event([]) | {"usage": usage(self.prompt_tokens, completion_tokens)}

    def _event(self, choices: list[dict]) -> dict:
        found = self.head | {"object": "chat.completion.chunk", "choices": choices}
        return found | ({"usage": None} if self.asked.streaming.includes_usage else {})

    def _logprobs(self, entries: Sequence[Entry]) -> dict | None:
        if self.asked.alternatives is None:
            return None
        return {"content": [{
            "token": entry.token, "logprob": entry.log_probability, "bytes": list(entry.token.encode()),
            "top_logprobs": [{"token": token, "logprob": value, "bytes": list(token.encode())}
                             for token, value in (entry.alternatives or {}).items()]} for entry in entries]}


class Fills:
    """The answer to texts with blanks. outcome: as serving.prepare.fill_job gives it."""

    def __init__(self, asked: Fill, outcome: Sequence[Result | int], prompt_tokens: int, served: Served):
        self.asked, self.outcome, self.prompt_tokens, self.served = asked, outcome, prompt_tokens, served
        self.head = _head("fill", "fill", served)
        self._index = [index for index, one in enumerate(outcome) if isinstance(one, int)]

    def whole(self, choices: Sequence[Choice]) -> dict:
        shown = [self._failed(index, one) if isinstance(one, Result) else self._result(index, choices[one])
                 for index, one in enumerate(self.outcome)]
        return {name: value for name, value in self.head.items() if name != "system_fingerprint"} | {
            "results": shown, "usage": usage(self.prompt_tokens, sum(one.tokens for one in choices))}

    def chunk(self, index: int, news: News, is_first: bool) -> list[dict]:
        if not news.text:
            return []
        return [{"object": "fill.chunk", "id": self.head["id"], "index": self._index[index], "blank": news.blank,
                 "delta": news.text}]

    def _result(self, index: int, choice: Choice) -> dict:
        beams = choice.result.beams
        shown = [{"text": beam.text, "blanks": [{"text": beam.text[begin:end], "start": begin, "end": end}
                                                for begin, end in spans]}
                 for beam, spans in zip(beams, choice.spans, strict=True)]
        scored = [one | {"score": beam.score} for one, beam in zip(shown, beams, strict=True)]
        return {"index": index, **shown[0], "finish_reason": choice.finish_reason,
                "alternatives": scored if self.asked.decoding.beams is not None else []}

    def _failed(self, index: int, result: Result) -> dict:
        return {"index": index, "text": result.text, "blanks": [], "finish_reason": "error", "alternatives": [],
                "error": result.error}


def _head(prefix: str, kind: str, served: Served) -> dict:
    return {"id": f"{prefix}-{secrets.token_hex(12)}", "object": kind, "created": int(time.time()),
            "model": served.name, "system_fingerprint": served.fingerprint}


def _completion_logprobs(entries: Sequence[Entry]) -> dict:
    return {"tokens": [entry.token for entry in entries],
            "token_logprobs": [entry.log_probability for entry in entries],
            "top_logprobs": None if entries and all(entry.alternatives is None for entry in entries) else
            [entry.alternatives for entry in entries],
            "text_offset": [entry.place for entry in entries]}
