"""Options that were asked for and change nothing: a user is told, and whatever he meant by them he can mend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from generation.options import STRATEGIES, Options, parameter_names
from generation.params import BeamParams, SamplingParams

_OF_CHANCE = ("temperature", "top_p", "seed")


def without_effect(options: Options, given: Iterable[str], longest: int) -> str:
    """One line on those of the `given` options that change nothing; empty if there are none.

    longest: what the model takes (max_sequence_length).
    """
    found = [f"{name} ({reason})" for name in dict.fromkeys(given) if (reason := _reason(options, name, longest))]
    return f"without effect: {', '.join(found)}" if found else ""


def _reason(options: Options, name: str, longest: int) -> str | None:
    if name not in {field.name for field in dataclasses.fields(options)}:
        return None
    is_sampling = options.strategy == STRATEGIES[0]
    kinds = [kind for kind in (SamplingParams, BeamParams) if name in parameter_names(kind)]
    if kinds and type(options.params()) not in kinds:
        return f"only with {STRATEGIES[is_sampling]}"
    if is_sampling and options.top_k == 1 and name in _OF_CHANCE:
        return "top_k 1 is greedy"
    if not is_sampling and name == "seed" and not options.stochastic_beams:
        return "only with stochastic_beams"
    if name == "print_all_beams" and options.print_all_beams and options.params().num_beams == 1:
        return f"only with {STRATEGIES[1]} and several beams"
    if name in ("out_seq_length", "max_gen_length") and (getattr(options, name) or 0) > longest:
        return f"{getattr(options, name)} is more than the model takes, {longest}"
    return None
