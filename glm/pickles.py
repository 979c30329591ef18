"""A look at a pickle before anything reads it: how large its tuples are once written out.

A few bytes can stand for a tuple of tuples of tuples ... with more elements than there are atoms. Nothing is larger in
memory for it, but whoever uses one as a key counts through all of them, and does not come back.
"""

from __future__ import annotations

import pickletools
from typing import IO

LARGEST = 1_000_000  # elements of a tuple, with those inside; a tensor's description has about twenty
_MARK = object()


def check_tuples(file: IO[bytes]) -> None:
    """Walks through one pickle without making anything of it. Raises ValueError or IndexError for a tuple that is too
    large, and for what is no pickle."""
    stack: list = []  # of each object its number of elements if it is a tuple, else 1
    memo: dict[int, int] = {}
    for code, argument, _ in pickletools.genops(file):
        name = code.name
        if name in ("PUT", "BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(memo.get(argument, 1))
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "MARK":
            stack.append(_MARK)
        else:
            taken = _taken(stack, code)
            made = 1 + sum(taken) if "TUPLE" in name or name == "FROZENSET" else 1
            if made > LARGEST:
                raise ValueError("a tuple that is too large")
            stack += [made] * len(code.stack_after)


def _taken(stack: list, code) -> list[int]:
    """What the operation takes from the stack: so many, or all down to the last mark."""
    taken = []
    if pickletools.markobject in code.stack_before:
        while (one := stack.pop()) is not _MARK:
            taken.append(one)
    for _ in range(sum(kind not in (pickletools.markobject, pickletools.stackslice) for kind in code.stack_before)):
        one = stack.pop()
        taken.append(1 if one is _MARK else one)
    return taken
