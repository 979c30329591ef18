"""What a JSON value must look like, said as a value itself, and what is wrong with one that does not.

    int, float, str, bool, None     that, where float is any finite number and int no truth value
    (A, B)                          one of these
    [A]                             a list of A
    {"key": A, "key?": B}           an object with these keys, the second one only perhaps, and any others
    Each(A)                         an object with values of A under any keys
    Any                             whatever it is
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from runtime.errors import shown

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", None: "null"}


class Each(NamedTuple):
    shape: object


def fault(value: Any, shape: object, where: str = "") -> str | None:
    """The first thing that is wrong, as "tasks.mmlu.counts: must be an object, is null"; None: nothing."""
    if shape is Any or (isinstance(shape, tuple) and not isinstance(shape, Each) and any(
            fault(value, each) is None for each in shape)):
        return None
    if isinstance(shape, (dict, Each)):
        if not isinstance(value, dict):
            return _wrong(where, "an object", value)
        return _fault_inside(value, shape, where)
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _wrong(where, "a list", value)
        places = (fault(inner, shape[0], f"{where}[{place}]") for place, inner in enumerate(value))
        return next((each for each in places if each is not None), None)
    if not isinstance(shape, tuple) and _is_plain(value, shape):
        return None
    names = [_name(each) for each in (shape if isinstance(shape, tuple) else (shape,))]
    return _wrong(where, " or ".join(names), value)


def _fault_inside(value: dict, shape: dict | Each, where: str) -> str | None:
    wanted = dict.fromkeys(value, shape.shape) if isinstance(shape, Each) else shape
    for key, inner in wanted.items():
        is_optional = not isinstance(shape, Each) and key.endswith("?")
        name = key[:-1] if is_optional else key
        place = f"{where}.{name[:60]}" if where else name[:60]
        if name in value:
            found = fault(value[name], inner, place)
            if found is not None:
                return found
        elif not is_optional:
            return f"{place}: is missing"
    return None


def _is_plain(value: Any, shape: object) -> bool:
    if shape is None:
        return value is None
    if shape is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)
    return isinstance(value, shape) and (shape is bool or not isinstance(value, bool))


def _is_finite(value: float) -> bool:
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 10**300


def _name(shape: object) -> str:
    return "a list" if isinstance(shape, list) else "an object" if isinstance(shape, (dict, Each)) else _NAMES[shape]


def _wrong(where: str, what: str, value: Any) -> str:
    return f"{where or 'it'}: must be {what}, is {shown(value)}"
