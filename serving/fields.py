"""Reading the JSON object of a request, field by field: strictly typed, nothing asked for is silently left out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from runtime.errors import UserError
from runtime.reading import parse_json
from runtime.show import nearest
from serving.errors import ApiError, bad

DEEPEST = 32  # levels of nesting; a request needs four
LARGEST = 2**53 - 1  # whole numbers that every JSON reader keeps exactly
NO_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "verbosity")
NEUTRAL = {
    "frequency_penalty": (0, None), "presence_penalty": (0, None), "logit_bias": ({}, None), "best_of": (),
    "tools": ([], None), "functions": ([], None), "tool_choice": ("none", None),
    "function_call": ("none", None), "response_format": ({"type": "text"}, None), "modalities": (["text"], None),
    "audio": (None,), "parallel_tool_calls": (True, False, None), "reasoning_effort": (None,), "prediction": (None,),
    "web_search_options": (None,),
}  # fmt: skip
OTHER_NAMES = {"max_new_tokens": "max_tokens", "max_length": "max_tokens"}  # of other programs
_LIKENESS = 0.75  # of two names, from 0 to 1 (difflib)


def parse_body(data: bytes) -> dict[str, Any]:
    """The object that a request's body holds. Raises ApiError for anything that another reader could take otherwise."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise bad(None, f"the body is not valid UTF-8 at byte {error.start}", "invalid_json") from None
    try:
        found = parse_json(text, "the body")
    except UserError as error:
        raise bad(None, str(error), "invalid_json") from None
    if not isinstance(found, dict):
        raise bad(None, "the body must be a JSON object", "invalid_json")
    _check_values(found, None, 1)
    return found


def _check_values(value: Any, name: str | None, level: int) -> None:
    if level > DEEPEST:
        raise bad(name, f"the body is nested deeper than {DEEPEST} levels", "invalid_json")
    if isinstance(value, str):
        if "\0" in value:
            raise bad(name, f"{name or 'the body'} holds a NUL character")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise bad(name, f"{name or 'the body'} holds half of a surrogate pair, which is no character") from None
    elif isinstance(value, bool):
        return
    elif isinstance(value, (int, float)):
        if not math.isfinite(value) if isinstance(value, float) else abs(value) > LARGEST:
            raise bad(name, f"{name or 'the body'} holds a number that is not finite or beyond 2^53")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check_values(key, name, level)
            _check_values(inner, name or key, level + 1)
    elif isinstance(value, list):
        for inner in value:
            _check_values(inner, name, level + 1)


class Fields:
    """The fields of one request, each of which is asked for once; `finish` complains of what is left."""

    def __init__(self, values: dict[str, Any]):
        self._values = values
        self._known: set[str] = set()

    def get(self, name: str) -> Any:
        """The value as it came; None where it is missing or null."""
        self._known.add(name)
        return self._values.get(name)

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise bad(name, f"{name} must be a text, not {kind_of(value)}")
        return default if value is None else value

    def switch(self, name: str) -> bool:
        value = self.get(name)
        if value is not None and not isinstance(value, bool):
            raise bad(name, f"{name} must be true or false, not {kind_of(value)}")
        return bool(value)

    def whole(self, name: str, default: int | None, least: int, most: int) -> int | None:
        value = self.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise bad(name, f"{name} must be a whole number from {least} to {most}, not {shown(value)}")
        return value

    def number(self, name: str, default: float, least: float, most: float, above: bool = False) -> float:
        """above: the least value is itself not allowed."""
        value = self.get(name)
        if value is None:
            return default
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not least <= value <= most or (above and value == least):
            bounds = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
            raise bad(name, f"{name} must be a number {bounds}, not {shown(value)}")
        return float(value)

    def one_of(self, name: str, choices: Sequence[str], default: str | None) -> str | None:
        value = self.get(name)
        if value is None:
            return default
        if value not in choices or not isinstance(value, str):
            raise bad(name, f"{name} must be one of {', '.join(choices)}, not {shown(value)}")
        return value

    def finish(self) -> list[str]:
        """Names that mean nothing here. Raises ApiError for a field of OpenAI's API that would change the answer and is
        not supported, and for a name that is nearly one of ours."""
        ignored = []
        for name, value in self._values.items():
            if name in self._known or name in NO_EFFECT:
                continue
            if name in NEUTRAL:
                if not any(value is neutral or (value == neutral and not isinstance(value, bool))
                           for neutral in NEUTRAL[name]):
                    raise bad(name, f"{name} is not supported; leave it out: {shown(value)} would change the answer",
                              "unsupported_parameter")
                continue
            if near := OTHER_NAMES.get(name) or nearest(name, self._known, _LIKENESS):
                raise bad(name, f"unknown field {name[:60]!r}; did you mean {near}?", "unknown_parameter")
            ignored.append(name)
        return ignored


def kind_of(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number")


def shown(value: Any) -> str:
    """A value in a message, never at length."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_content_type(header: str) -> None:
    """Raises ApiError for a body that a web page may send without asking the server first."""
    kind, _, rest = header.partition(";")
    charset = rest.strip().lower().removeprefix("charset=").strip('"')
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise ApiError(415, "send the request as Content-Type: application/json", "unsupported_media_type")
