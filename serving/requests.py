"""What clients may ask for, as frozen values: every field checked before a place in the queue is taken."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from generation.blanks import MASK_PATTERN
from generation.params import BeamParams, SamplingParams
from glm.prompt_form import MASKS
from serving.errors import bad, unknown_model
from serving.fields import LARGEST, Fields

MOST_PROMPTS, MOST_CHOICES, MOST_STOPS, MOST_ALTERNATIVES, MOST_BEAMS = 128, 16, 32, 20, 16
SEED_BITS = 53
LONGEST = 1 << 30  # tokens that a client may ask for; what does not fit is cut


@dataclass(frozen=True)
class Defaults:
    """What the server says where a request does not."""

    model: str
    max_tokens: int
    vocabulary: int  # ids below may be sent in prompts
    temperature: float = 1.0
    top_p: float = 1.0
    adapters: tuple[str, ...] = ()  # names of the model with an adapter on it


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen, and how many."""

    max_tokens: int  # what does not fit into the model is cut
    min_tokens: int
    temperature: float  # 0: greedy
    top_p: float
    top_k: int
    seed: int
    repetition_penalty: float = 1.0
    beams: BeamParams | None = None

    def params(self) -> SamplingParams | BeamParams:
        if self.beams is not None:
            return self.beams
        most = max(self.max_tokens, 1)
        if self.temperature == 0:
            return SamplingParams(top_k=1, min_gen_length=self.min_tokens, max_gen_length=most, seed=self.seed,
                                  repetition_penalty=self.repetition_penalty)
        return SamplingParams(self.temperature, self.top_k, 0.0 if self.top_p == 1 else self.top_p,
                              min_gen_length=self.min_tokens, max_gen_length=most, seed=self.seed,
                              repetition_penalty=self.repetition_penalty)


@dataclass(frozen=True)
class Streaming:
    is_on: bool
    includes_usage: bool = False


@dataclass(frozen=True)
class Completion:
    """POST /v1/completions."""

    prompts: tuple[str | tuple[int, ...], ...]
    decoding: Decoding
    choices: int  # of each prompt
    streaming: Streaming
    stops: tuple[str, ...]
    echo: bool
    alternatives: int | None  # log-probabilities with so many alternatives; None: without
    suffix: str | None
    mask: str | None  # the kind to fill; None: [MASK] with a suffix, else [gMASK]
    unidirectional: bool


@dataclass(frozen=True)
class Fill:
    """POST /v1/fill."""

    texts: tuple[str, ...]
    is_list: bool
    decoding: Decoding
    streaming: Streaming


@dataclass(frozen=True)
class Chat:
    """POST /v1/chat/completions."""

    messages: tuple[Mapping[str, str], ...]
    decoding: Decoding
    choices: int
    streaming: Streaming
    stops: tuple[str, ...]
    alternatives: int | None


def completion(values: dict[str, Any], defaults: Defaults) -> tuple[Completion, list[str]]:
    """The request, and names of fields that mean nothing. Raises ApiError."""
    fields = Fields(values)
    _check_model(fields, defaults)
    prompts = _prompts(fields, defaults)
    suffix, mask = fields.text("suffix"), fields.one_of("mask", MASKS, None)
    echo, unidirectional = fields.switch("echo"), fields.switch("unidirectional")
    alternatives = fields.whole("logprobs", None, 0, MOST_ALTERNATIVES)
    choices = _choices(fields, len(prompts))
    decoding = _decoding(fields, defaults, least=0)
    found = Completion(prompts, decoding, choices, _streaming(fields), _stops(fields), echo, alternatives, suffix, mask,
                       unidirectional)
    ignored = fields.finish()
    _check_completion(found)
    return found, ignored


def _check_completion(found: Completion) -> None:
    """Fields that contradict one another."""
    if found.decoding.max_tokens == 0 and not found.echo:
        raise bad("max_tokens", "max_tokens 0 generates nothing; it is allowed together with echo only")
    if found.suffix is not None:
        if MASK_PATTERN.search(found.suffix):
            raise bad("suffix", "suffix must hold no mask; /v1/fill fills texts with several")
        if any(not isinstance(prompt, str) for prompt in found.prompts):
            raise bad("suffix", "suffix needs the prompt as text, not as ids")
        if found.unidirectional or (found.echo and found.alternatives is not None):
            raise bad("suffix", "suffix needs a model that sees both sides: neither unidirectional nor echo with "
                                "logprobs")
    if found.unidirectional and found.mask not in (None, "[gMASK]"):
        raise bad("mask", "unidirectional writes on behind [gMASK]; leave mask out")


def fill(values: dict[str, Any], defaults: Defaults) -> tuple[Fill, list[str]]:
    fields = Fields(values)
    _check_model(fields, defaults)
    text = fields.get("text")
    texts = text if isinstance(text, list) else [text]
    if not texts or len(texts) > MOST_PROMPTS or not all(isinstance(one, str) for one in texts):
        raise bad("text", f"text must be a text, or a list of 1 to {MOST_PROMPTS} texts")
    beams, penalty = fields.whole("num_beams", None, 2, MOST_BEAMS), fields.number("length_penalty", 1.0, -20, 20)
    ngram = fields.whole("no_repeat_ngram_size", 0, 0, 1000)
    decoding = _decoding(fields, defaults, least=1)
    if beams is not None:
        params = BeamParams(beams, penalty, ngram, decoding.min_tokens, max_gen_length=decoding.max_tokens,
                            seed=decoding.seed)
        decoding = replace(decoding, beams=params)
    found = Fill(tuple(texts), isinstance(text, list), decoding, _streaming(fields))
    return found, fields.finish()


def chat(values: dict[str, Any], defaults: Defaults) -> tuple[Chat, list[str]]:
    fields = Fields(values)
    _check_model(fields, defaults)
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad("messages", "messages must be a list of objects with role and content, and not empty")
    read = tuple(_message(number, message) for number, message in enumerate(messages))
    most = fields.whole("max_completion_tokens", None, 1, LONGEST)
    wants, alternatives = fields.switch("logprobs"), fields.whole("top_logprobs", None, 0, MOST_ALTERNATIVES)
    if alternatives is not None and not wants:
        raise bad("top_logprobs", "top_logprobs needs logprobs: true")
    decoding = _decoding(fields, defaults, least=1, most=most)
    found = Chat(read, decoding, _choices(fields, 1), _streaming(fields), _stops(fields),
                 (alternatives or 0) if wants else None)
    return found, fields.finish()


def _message(number: int, message: Any) -> dict[str, str]:
    where = f"messages[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise bad("messages", f"{where} must be an object with a role and a content")
    content = message.get("content")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
                   for part in content):
            raise bad("messages", f"{where}.content must be a text, or a list of {{\"type\": \"text\"}} parts")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise bad("messages", f"{where}.content must be a text")
    return {"role": message["role"], "content": content}


def _check_model(fields: Fields, defaults: Defaults) -> None:
    name = fields.text("model", defaults.model)
    if name not in (defaults.model, *defaults.adapters):
        raise unknown_model(name, (defaults.model, *defaults.adapters))


def _prompts(fields: Fields, defaults: Defaults) -> tuple[str | tuple[int, ...], ...]:
    value = fields.get("prompt")
    wrong = bad("prompt", f"prompt must be a text, a list of 1 to {MOST_PROMPTS} texts, a list of ids, or a list of "
                          "lists of ids; lists are not mixed and not empty")
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not value:
        raise wrong
    if all(isinstance(one, str) for one in value) and len(value) <= MOST_PROMPTS:
        return tuple(value)
    lists = value if isinstance(value[0], list) else [value]
    if len(lists) > MOST_PROMPTS or not all(isinstance(ids, list) and ids for ids in lists):
        raise wrong
    for ids in lists:
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int):
                raise wrong
            if not 0 <= token < defaults.vocabulary:
                raise bad("prompt", f"{token} is no token id of this model: ids are 0 to {defaults.vocabulary - 1}")
    return tuple(map(tuple, lists))


def _choices(fields: Fields, prompts: int) -> int:
    choices = fields.whole("n", 1, 1, MOST_CHOICES)
    if choices * prompts > MOST_PROMPTS:
        raise bad("n", f"{prompts} prompts times n = {choices} are more than {MOST_PROMPTS} answers")
    best_of = fields.get("best_of")
    if best_of is not None and (isinstance(best_of, bool) or best_of != choices):
        raise bad("best_of", "best_of is not supported; leave it out, or give it the value of n",
                  "unsupported_parameter")
    return choices


def _decoding(fields: Fields, defaults: Defaults, least: int, most: int | None = None) -> Decoding:
    max_tokens = fields.whole("max_tokens", None, least, LONGEST)
    max_tokens = max_tokens if max_tokens is not None else most if most is not None else defaults.max_tokens
    min_tokens = fields.whole("min_tokens", 0, 0, LONGEST)
    if min_tokens > max_tokens:
        raise bad("min_tokens", f"min_tokens {min_tokens} is more than max_tokens ({max_tokens})")
    temperature = fields.number("temperature", defaults.temperature, 0, 2)
    top_p = fields.number("top_p", defaults.top_p, 0, 1, above=True)
    top_k, seed = fields.whole("top_k", 0, 0, LONGEST), fields.whole("seed", None, 0, LARGEST)
    return Decoding(max_tokens, min_tokens, temperature, top_p, top_k,
                    secrets.randbits(SEED_BITS) if seed is None else seed,
                    fields.number("repetition_penalty", 1.0, 0.1, 10))


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(one, str) and one for one in stops):
        raise bad("stop", f"stop must be a text or a list of at most {MOST_STOPS} texts, none of them empty")
    return tuple(stops)


def _streaming(fields: Fields) -> Streaming:
    is_on, options = fields.switch("stream"), fields.get("stream_options")
    if options is None:
        return Streaming(is_on)
    if not isinstance(options, dict) or not is_on:
        raise bad("stream_options", "stream_options must be an object, and goes with stream: true")
    inner = Fields(options)
    return Streaming(True, inner.switch("include_usage"))
