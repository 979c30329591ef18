"""A look at a pickle before anything reads it: what it would have made, and by which calls.

torch.load with weights_only=True runs no foreign code, but a few bytes can still cost hours or all memory: a tuple of
tuples of tuples ... with more elements than there are atoms, as a key that is hashed; thousands of keys with one hash;
a text "encoded" by a codec that takes the square of its length; a tensor made of lists within lists. What a file of
tensors needs is little, and anything else is refused by its name.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Sequence
from typing import IO

LARGEST = 1_000_000  # elements of a tuple, with those inside; a tensor's description has about twenty
CODECS = ("latin1", "latin-1", "iso-8859-1", "utf-8", "utf8", "ascii")
LONGEST_NUMBER = 72  # bits of a key: beyond, any number of them can have the same hash
_MARK = object()
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
_TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_PLAIN = ("NONE", "NEWTRUE", "NEWFALSE", "FLOAT", "BINFLOAT")
_OTHER_CALLS = ("INST", "OBJ", "NEWOBJ_EX")


class Refused(pickle.UnpicklingError):
    """A pickle asks for more than a file of tensors needs; the message names it."""


class _Value:
    """What an operation leaves on the stack. kind: "text", "bytes", "number", "plain", "tuple", "list", "name" (of what
    can be called), "call" (what came of one) or "other"; content: what is known of it; size: of a tuple, written out.
    """

    __slots__ = ("content", "kind", "size")

    def __init__(self, kind: str = "other", content: object = None, size: int = 1):
        self.kind, self.content, self.size = kind, content, size


_OTHER = _Value()


def check_pickle(file: IO[bytes]) -> None:
    """Walks through one pickle without making anything of it. Raises Refused for what it should not ask for, and
    ValueError or one of LookupError, AttributeError, TypeError for what is no pickle."""
    stack: list = []
    memo: dict[int, _Value] = {}
    for code, argument, _ in pickletools.genops(file):
        name = code.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument, _OTHER))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(_MARK)
        else:
            made = _made(name, argument, _taken(stack, code))
            stack += [made] * len(code.stack_after)


def _taken(stack: list, code) -> list[_Value]:
    """What the operation takes from the stack, the lowest first: so many, or all down to the last mark."""
    taken = []
    if pickletools.markobject in code.stack_before:
        while (one := stack.pop()) is not _MARK:
            taken.append(one)
    for _ in range(sum(kind not in (pickletools.markobject, pickletools.stackslice) for kind in code.stack_before)):
        one = stack.pop()
        taken.append(_OTHER if one is _MARK else one)
    return taken[::-1]


def _made(name: str, argument: object, taken: list[_Value]) -> _Value:
    if name in _NUMBERS:
        return _Value("number", argument)
    if name in _TEXTS:
        return _Value("text", argument)
    if name in _BYTES:
        return _Value("bytes")
    if name in _PLAIN:
        return _Value("plain")
    if name == "GLOBAL":
        return _Value("name", argument.replace(" ", "."))
    if "TUPLE" in name or name == "FROZENSET":
        return _tuple(taken, "tuple" if "TUPLE" in name else "other")
    if name == "EMPTY_LIST":
        return _Value("list", [])
    if name in ("APPEND", "APPENDS"):
        if taken[0].kind == "list":
            taken[0].content.extend(taken[1:])
        return taken[0]
    if name in ("SETITEM", "SETITEMS", "DICT"):
        _check_keys(taken[0 if name == "DICT" else 1::2])
        return _Value("dict") if name == "DICT" else taken[0]
    if name == "ADDITEMS":
        _check_keys(taken[1:])
        return taken[0]
    if name in ("REDUCE", "NEWOBJ"):
        function, arguments = taken
        _check_call(function, arguments)
        return _Value("call", function.content)
    if name == "BUILD":
        if taken[0].kind != "call" or taken[0].content != _WITH_STATE:
            raise Refused(f"a state for {taken[0].content or 'something'}")
        return taken[0]
    if name in _OTHER_CALLS:
        raise Refused(f"a call by {name}")
    return _Value("dict") if name == "EMPTY_DICT" else _Value()


def _tuple(taken: list[_Value], kind: str) -> _Value:
    if kind == "other":
        _check_keys(taken)
    size = 1 + sum(value.size for value in taken)
    if size > LARGEST:
        raise ValueError("a tuple that is too large")
    return _Value(kind, taken, size)


def _check_keys(keys: Sequence[_Value]) -> None:
    for key in keys:
        is_number = key.kind == "number" and key.content.bit_length() < LONGEST_NUMBER
        if not (is_number or key.kind in ("text", "bytes", "plain")):
            raise Refused("a key that is neither text nor number")


def _check_call(function: _Value, arguments: _Value) -> None:
    if function.kind != "name":
        raise Refused("a call of what has no name")
    name = function.content
    if name not in _CALLS or arguments.kind != "tuple" or not _CALLS[name](arguments.content):
        raise Refused(f"a call of {name}")


def _encoded(values: Sequence[_Value]) -> bool:
    """Text, or bytes, and by which codec it becomes bytes."""
    kinds = [value.content if value.kind == "call" else value.kind for value in values]
    return kinds in ([], ["text"], ["bytes"], ["_codecs.encode"]) or (
        kinds == ["text", "text"] and values[1].content.lower().replace("_", "-") in CODECS)


def _members(values: Sequence[_Value]) -> bool:
    if values and not (len(values) == 1 and values[0].kind == "list"):
        return False
    _check_keys(values[0].content if values else ())
    return True


def _with_attributes(values: Sequence[_Value]) -> bool:
    """A tensor of a subclass, or with attributes: made by another of the calls, then changed."""
    function, _, arguments, _ = values
    _check_call(function, arguments)
    return True


def _anything(values: Sequence[_Value]) -> bool:
    return True


def _is_like(*kinds: str) -> Callable[[Sequence[_Value]], bool]:
    return lambda values: [value.kind for value in values] == list(kinds)


_WITH_STATE = "collections.OrderedDict"  # a state dict's versions
_CALLS: dict[str, Callable[[Sequence[_Value]], bool]] = {
    "collections.OrderedDict": _is_like(),
    "collections.Counter": _is_like("dict"),
    "_codecs.encode": _encoded,
    "builtins.bytearray": _encoded,
    "__builtin__.bytearray": _encoded,  # as protocol 2 writes it
    "builtins.set": _members,
    "__builtin__.set": _members,
    "builtins.complex": _is_like("plain", "plain"),
    "__builtin__.complex": _is_like("plain", "plain"),
    "torch.Size": _is_like("tuple"),
    "torch.device": _anything,
    "torch.serialization._get_layout": _anything,
    "torch.nn.parameter.Parameter": _anything,
    "torch._utils._rebuild_tensor": _anything,
    "torch._utils._rebuild_tensor_v2": _anything,
    "torch._utils._rebuild_tensor_v3": _anything,
    "torch._utils._rebuild_parameter": _anything,
    "torch._utils._rebuild_parameter_with_state": _anything,
    "torch._tensor._rebuild_from_type_v2": _with_attributes,
}
