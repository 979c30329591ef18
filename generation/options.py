"""The options of generation as a user names them: on the command line, and with /set in a session."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass

from generation.params import BeamParams, SamplingParams
from glm.errors import UserError

STRATEGIES = ("BaseStrategy", "BeamSearchStrategy")


@dataclass(frozen=True)
class Options:
    """Both strategies' options side by side, and which of the two is used. Raises UserError for values not allowed.

    The meanings are those of SamplingParams and BeamParams; None: no limit, or a fresh seed.
    """

    strategy: str = "BaseStrategy"
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.7
    num_beams: int = 4
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 3
    stochastic_beams: bool = False
    min_gen_length: int = 0
    max_gen_length: int | None = None
    out_seq_length: int | None = None
    seed: int | None = None
    print_all_beams: bool = False

    def __post_init__(self):
        if self.strategy not in STRATEGIES:
            raise UserError(f"strategy {self.strategy!r}: must be {' or '.join(STRATEGIES)}")
        self.sampling()
        self.beams()

    def params(self) -> SamplingParams | BeamParams:
        return self.sampling() if self.strategy == "BaseStrategy" else self.beams()

    def sampling(self) -> SamplingParams:
        return SamplingParams(**self._values(SamplingParams))

    def beams(self) -> BeamParams:
        return BeamParams(**self._values(BeamParams))

    def _values(self, kind: type) -> dict:
        names = {field.name for field in dataclasses.fields(kind)}
        values = {name: value for name, value in dataclasses.asdict(self).items() if name in names}
        return values | ({"stochastic": self.stochastic_beams} if kind is BeamParams else {})

    def with_text(self, name: str, text: str) -> Options:
        """A copy with the option `name` (hyphens or underscores) read from `text`."""
        fields = {field.name: field.type for field in dataclasses.fields(self)}
        known = name.strip("-").replace("-", "_")
        if known not in fields:
            nearest = difflib.get_close_matches(known, fields, 1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are: {', '.join(fields)}"
            raise UserError(f"unknown option {name!r}; {hint}")
        return dataclasses.replace(self, **{known: _read(known, text, fields[known])})


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
