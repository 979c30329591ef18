"""What may be asked of a generation: one strategy's parameters, and a user's options, which hold both strategies'.

A field says what it is for; command line, session and settings follow from it. Knows no torch, so that a command line
can refuse a wrong value before anything heavy is imported.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from runtime.arguments import flag_name, option
from runtime.errors import UserError, shown
from runtime.show import nearest

STRATEGIES = ("BaseStrategy", "BeamSearchStrategy")
RANKINGS = ("glm", "transformers", "seq2seq")
LARGEST_PENALTY = 20.0  # ((5 + length) / 6) ** penalty stays a number for every length
LONGEST_NGRAM = 65536  # beam search puts as many tokens that stand for nothing before a context


def _seed():
    return option(None, "makes sampling repeatable", none="a fresh one")


def _out_seq_length():
    return option(None, "prompt and answer together have at most so many tokens", none="what the model takes")


def _max_gen_length():
    return option(None, "a blank gets at most so many tokens", none="no limit")


def _min_gen_length():
    return option(0, "an answer has at least so many tokens")


@dataclass(frozen=True)
class SamplingParams:
    """Options of sampling one token after another (the original's BaseStrategy).

    They are applied in the order repetition_penalty, temperature, top_k, top_p. out_seq_length counts sop, too. Raises
    UserError for values that are not allowed.
    """

    temperature: float = option(1.0, "BaseStrategy: divides the logits")  # > 0
    top_k: int = option(0, "BaseStrategy: keep the k most likely tokens; 0: all, 1: greedy")
    top_p: float = option(0.0, "BaseStrategy: keep the likeliest tokens that together exceed p; 0: all")  # 1: all, too
    repetition_penalty: float = option(
        1.0, "BaseStrategy: makes tokens of prompt and answer less likely again, above 1; 1: off")
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
        _number("repetition_penalty", self.repetition_penalty)
        if not 1 / LARGEST_PENALTY <= self.repetition_penalty <= LARGEST_PENALTY:
            raise UserError(f"repetition_penalty {self.repetition_penalty}: must lie between {1 / LARGEST_PENALTY:g} "
                            f"and {LARGEST_PENALTY:g} (1 switches it off)")
        _check_common(self)

    @property
    def num_beams(self) -> int:
        """Rows that one prompt takes up while decoding."""
        return 1


@dataclass(frozen=True)
class BeamParams:
    """Options of beam search (the original's BeamSearchStrategy).

    Beams that have ended are ranked by their score, divided by ((5 + length) / 6) ** length_penalty (`glm`, the
    original's) or by length ** length_penalty without the end token (`transformers`, with which other families were
    published; `seq2seq`, GLM's fine-tuning's, is alike but leaves the context out of the length). Only a stochastic
    search draws, from the softmax of the candidates' scores, and looks at `seed`. Raises
    UserError for values that are not allowed.
    """

    num_beams: int = option(4, "BeamSearchStrategy: number of beams")
    length_penalty: float = option(1.0, "BeamSearchStrategy: larger favours longer answers")
    no_repeat_ngram_size: int = option(0, "BeamSearchStrategy: generate no n-gram of this size twice; 0: off")
    min_gen_length: int = _min_gen_length()
    out_seq_length: int | None = _out_seq_length()
    max_gen_length: int | None = _max_gen_length()
    early_stopping: bool = option(False, "BeamSearchStrategy: end once as many beams have ended as there are")
    ranking: str | None = option(None, "BeamSearchStrategy: rule by which ended beams are ranked",
                                 none="that of the model's family", choices=RANKINGS, flag="beam_ranking")
    stochastic: bool = option(False, "BeamSearchStrategy: draw candidates instead of taking the best",
                              flag="stochastic_beams")
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
        for name in ("stochastic", "early_stopping"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"{name} {getattr(self, name)!r}: must be true or false")
        if self.ranking not in (None, *RANKINGS):
            raise UserError(f"ranking {self.ranking!r}: must be {' or '.join(RANKINGS)}")
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


@dataclass(frozen=True)
class Options:
    """What a user chooses: a strategy, the parameters of both, and how a session shows its answers.

    The defaults are those of the original's scripts. A parameter is named as on the command line, with underscores; one
    that both strategies have is set in both.
    """

    sampling: SamplingParams = SamplingParams(top_p=0.7)
    beams: BeamParams = BeamParams(no_repeat_ngram_size=3)
    strategy: str = STRATEGIES[0]
    print_all_beams: bool = False  # not the best alone
    stop: tuple[str, ...] = ()  # texts, of which the first to come ends an answer

    def __post_init__(self):
        object.__setattr__(self, "stop", checked_stops(self.stop))
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy {self.strategy!r}: must be {' or '.join(STRATEGIES)}")

    @property
    def params(self) -> SamplingParams | BeamParams:
        """Of the chosen strategy."""
        return self.sampling if self.strategy == STRATEGIES[0] else self.beams

    def values(self) -> dict[str, object]:
        """Every option by its name."""
        own = {name: getattr(self, name) for name in OWN}
        return values_of(self.sampling) | values_of(self.beams) | own

    def changed(self, **values: object) -> Options:
        """A copy with these options."""
        parts = {}
        for name in ("sampling", "beams"):
            params = getattr(self, name)
            mine = {field.name: values[flag_name(field)] for field in fields(params) if flag_name(field) in values}
            parts[name] = replace(params, **mine)
        own = {name: value for name, value in values.items() if name in OWN}
        return replace(self, **parts, **own)

    def with_text(self, name: str, text: str) -> Options:
        """A copy with the option `name` (hyphens or underscores) read from `text`."""
        kinds = {flag_name(field): field.type for each in (SamplingParams, BeamParams) for field in fields(each)}
        kinds |= OWN
        known = name.strip("-").replace("-", "_")
        if known not in kinds:
            close = nearest(known, kinds)
            hint = f"did you mean {close}?" if close else f"there are: {', '.join(kinds)}"
            raise UserError(f"unknown option {name!r}; {hint}")
        return self.changed(**{known: _read(known, text.strip(), kinds[known])})


OWN = {"strategy": "str", "print_all_beams": "bool", "stop": "texts"}  # fields of Options that no strategy has


def checked_stops(stops: object) -> tuple[str, ...]:
    """Of a text or a list of texts. Raises UserError for anything else, and for an empty text."""
    texts = (stops,) if isinstance(stops, str) else stops
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"stop {shown(stops)}: must be a text or a list of texts, none of them empty")
    return tuple(texts)


def values_of(params: SamplingParams | BeamParams) -> dict[str, object]:
    """A strategy's parameters by the names that they have on the command line."""
    return {flag_name(field): getattr(params, field.name) for field in fields(params)}


def _read(name: str, text: str, kind: str) -> object:
    if kind == "str":
        return text
    if kind == "texts":
        if text.lower() in ("none", "off", ""):
            return ()
        with contextlib.suppress(UserError, json.JSONDecodeError):
            return checked_stops(json.loads(text))
        return (text,)
    if kind == "bool":
        if text.lower() in ("true", "on", "yes", "1"):
            return True
        if text.lower() in ("false", "off", "no", "0"):
            return False
        raise UserError(f"{name} {text!r}: must be on or off")
    if kind.endswith("| None") and text.lower() in ("none", "off", ""):
        return None
    try:
        return int(text) if kind.startswith("int") else float(text)
    except ValueError:
        what = "a whole number" if kind.startswith("int") else "a number"
        raise UserError(f"{name} {text!r}: must be {what}{' or none' if kind.endswith('None') else ''}") from None


def without_effect(options: Options, given: Iterable[str], longest: int) -> str:
    """One line on those of the `given` options that change nothing, for the user to mend; empty if there are none.

    longest: what the model takes (max_sequence_length).
    """
    found = [f"{name} ({reason})" for name in dict.fromkeys(given) if (reason := _reason(options, name, longest))]
    return f"without effect: {', '.join(found)}" if found else ""


def _reason(options: Options, name: str, longest: int) -> str | None:
    values, is_sampling = options.values(), options.strategy == STRATEGIES[0]
    if name not in values:
        return None
    if name in values_of(options.beams if is_sampling else options.sampling) and name not in values_of(options.params):
        return f"only with {STRATEGIES[is_sampling]}"
    if is_sampling and options.params.top_k == 1 and name in ("temperature", "top_p", "seed"):
        return "top_k 1 is greedy"
    if not is_sampling and name == "seed" and not options.params.stochastic:
        return "only with stochastic_beams"
    if name == "print_all_beams" and options.print_all_beams and options.params.num_beams == 1:
        return f"only with {STRATEGIES[1]} and several beams"
    if name in ("out_seq_length", "max_gen_length") and (values[name] or 0) > longest:
        return f"{values[name]} is more than the model takes, {longest}"
    return None
