"""What may be asked of a generation: two small frozen dataclasses, checked when they are made.

A field says what it is for; command line and session make their options of that (options.py). Knows no torch, so that a
command line can refuse a wrong value before anything heavy is imported.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import UserError

LARGEST_PENALTY = 20.0  # ((5 + length) / 6) ** penalty stays a number for every length
LONGEST_NGRAM = 65536  # tokens before a context that stand for nothing are made of it


def _option(default: Any, what: str, none: str = "", name: str = "") -> Any:
    """A field. what: for --help. none: what no value means. name: on the command line, where it is not the field's."""
    return field(default=default, metadata={"what": what, "none": none, "name": name})


def _seed() -> Any:
    return _option(None, "makes sampling repeatable", "a fresh one")


def _out_seq_length() -> Any:
    return _option(None, "prompt and answer together have at most so many tokens", "what the model takes")


def _max_gen_length() -> Any:
    return _option(None, "a blank gets at most so many tokens", "no limit")


def _min_gen_length() -> Any:
    return _option(0, "an answer has at least so many tokens")


@dataclass(frozen=True)
class SamplingParams:
    """Options of sampling one token after another (the original's BaseStrategy).

    temperature: divides the logits, > 0. top_k: keep the k most likely tokens, 0 = all, 1 = greedy.
    top_p: keep the smallest set of tokens whose probability exceeds it, 0 (or 1) = all.
    seed: None draws a fresh one. out_seq_length: most tokens of prompt, sop and answer together, None = what the
    model allows. max_gen_length: most tokens of one blank, None = no limit of its own.
    min_gen_length: an answer does not end before this many tokens.
    """

    temperature: float = _option(1.0, "divides the logits")
    top_k: int = _option(0, "keep the k most likely tokens; 0: all, 1: greedy")
    top_p: float = _option(0.0, "keep the likeliest tokens that together exceed p; 0: all")
    seed: int | None = _seed()
    out_seq_length: int | None = _out_seq_length()
    max_gen_length: int | None = _max_gen_length()
    min_gen_length: int = _min_gen_length()

    def __post_init__(self):
        _number("temperature", self.temperature)
        if self.temperature <= 0:
            raise UserError(f"temperature {self.temperature}: must be greater than 0 (top_k 1 is greedy)")
        _whole("top_k", self.top_k, 0)
        _number("top_p", self.top_p)
        if not 0 <= self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}: must lie between 0 and 1 (0 switches it off)")
        _check_common(self)

    @property
    def num_beams(self) -> int:
        """Rows that one prompt takes up while decoding."""
        return 1


@dataclass(frozen=True)
class BeamParams:
    """Options of beam search (the original's BeamSearchStrategy).

    length_penalty: finished beams are ranked by score / ((5 + length) / 6) ** length_penalty.
    no_repeat_ngram_size: no n-gram is generated twice, 0 = off. stochastic: candidates are drawn from the softmax of
    their scores (with `seed`) instead of being the best. The other fields are those of SamplingParams.
    """

    num_beams: int = _option(4, "number of beams")
    length_penalty: float = _option(1.0, "larger favours longer answers")
    no_repeat_ngram_size: int = _option(0, "generate no n-gram of this size twice; 0: off")
    min_gen_length: int = _min_gen_length()
    out_seq_length: int | None = _out_seq_length()
    max_gen_length: int | None = _max_gen_length()
    stochastic: bool = _option(False, "draw candidates instead of taking the best", name="stochastic_beams")
    seed: int | None = _seed()

    def __post_init__(self):
        _whole("num_beams", self.num_beams, 1)
        _number("length_penalty", self.length_penalty)
        if abs(self.length_penalty) > LARGEST_PENALTY:
            raise UserError(f"length_penalty {self.length_penalty}: must lie between -{LARGEST_PENALTY:g} and "
                            f"{LARGEST_PENALTY:g}")
        _whole("no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        if self.no_repeat_ngram_size > LONGEST_NGRAM:
            raise UserError(f"no_repeat_ngram_size {self.no_repeat_ngram_size}: must be at most {LONGEST_NGRAM}")
        if not isinstance(self.stochastic, bool):
            raise UserError(f"stochastic {self.stochastic!r}: must be true or false")
        _check_common(self)


def _check_common(params: SamplingParams | BeamParams):
    _whole("min_gen_length", params.min_gen_length, 0)
    for name in ("out_seq_length", "max_gen_length"):
        if getattr(params, name) is not None:
            _whole(name, getattr(params, name), 1)
    if params.seed is not None:
        _whole("seed", params.seed, 0)
    if fault := least_above_most(params.min_gen_length, params.max_gen_length, params.out_seq_length):
        raise UserError(fault)


def least_above_most(least: int, most: int | None, total: int | None = None) -> str | None:
    """Why an answer cannot have `least` tokens, if it cannot: `most` are allowed, or `total` with prompt and sop."""
    if most is not None and least > most:
        return f"min_gen_length: must be at most max_gen_length ({most}), is {least}"
    if total is not None and least > max(total - 2, 0):
        return f"min_gen_length: must be at most out_seq_length - 2 ({max(total - 2, 0)}), is {least}"
    return None


def _whole(name: str, value: object, least: int):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"{name} {value!r}: must be a whole number of at least {least}")


def _number(name: str, value: object):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{name} {value!r}: must be a finite number")
