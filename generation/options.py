"""The options of generation as a user names them: on the command line, and with /set in a session."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from generation.params import BeamParams, SamplingParams
from runtime.errors import UserError
from runtime.show import nearest

STRATEGIES = ("BaseStrategy", "BeamSearchStrategy")


# Where a user's defaults are not those of the parameters: the original's scripts say so.
PRESET = {"top_p": 0.7, "no_repeat_ngram_size": 3}


def _name(parameter: dataclasses.Field) -> str:
    return parameter.metadata["name"] or parameter.name


def _parameters() -> dict[str, dataclasses.Field]:
    """By its name on the command line, every field of both strategies' parameters."""
    return {_name(each): each for kind in (SamplingParams, BeamParams) for each in dataclasses.fields(kind)}


def parameter_names(kind: type[SamplingParams] | type[BeamParams]) -> tuple[str, ...]:
    """What the fields of a strategy's parameters are called on the command line."""
    return tuple(_name(each) for each in dataclasses.fields(kind))


_Parameters = dataclasses.make_dataclass(
    "_Parameters", [(name, each.type, PRESET.get(name, each.default)) for name, each in _parameters().items()],
    frozen=True)


@dataclass(frozen=True)
class Options(_Parameters):
    """Both strategies' options side by side, and which of the two is used. Raises UserError for values not allowed.

    The meanings are those of SamplingParams and BeamParams; None: no limit, or a fresh seed.
    """

    strategy: str = STRATEGIES[0]
    print_all_beams: bool = False

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy {self.strategy!r}: must be {' or '.join(STRATEGIES)}")
        self.sampling()
        self.beams()

    def params(self) -> SamplingParams | BeamParams:
        return self.sampling() if self.strategy == STRATEGIES[0] else self.beams()

    def sampling(self) -> SamplingParams:
        return self._made(SamplingParams)

    def beams(self) -> BeamParams:
        return self._made(BeamParams)

    def _made(self, kind: type):
        return kind(**{each.name: getattr(self, _name(each)) for each in dataclasses.fields(kind)})

    def with_text(self, name: str, text: str) -> Options:
        """A copy with the option `name` (hyphens or underscores) read from `text`."""
        fields = {field.name: field.type for field in dataclasses.fields(self)}
        known = name.strip("-").replace("-", "_")
        if known not in fields:
            close = nearest(known, fields)
            hint = f"did you mean {close}?" if close else f"there are: {', '.join(fields)}"
            raise UserError(f"unknown option {name!r}; {hint}")
        return dataclasses.replace(self, **{known: _read(known, text, fields[known])})


@dataclass(frozen=True)
class Flag:
    """An option on the command line. kind: int, float or bool. what: for --help, with the default."""

    name: str
    kind: type
    default: object
    what: str


def flags() -> list[Flag]:
    """Of everything that says how to decode, in the order of the parameters."""
    found = []
    for name, each in _parameters().items():
        default = PRESET.get(name, each.default)
        shown = "" if default is False else f" (default: {each.metadata['none'] if default is None else default})"
        kind = next(kind for kind in (bool, int, float) if each.type.startswith(kind.__name__))
        found.append(Flag(name, kind, default, f"{_of(each.name)}{each.metadata['what']}{shown}"))
    return found


def _of(name: str) -> str:
    """The strategy that a parameter is of, if it is not of both."""
    has = [any(each.name == name for each in dataclasses.fields(kind)) for kind in (SamplingParams, BeamParams)]
    return "" if all(has) else f"{STRATEGIES[has.index(True)]}: "


def _read(name: str, text: str, kind: str) -> object:
    text = text.strip()
    if kind == "str":
        return text
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
