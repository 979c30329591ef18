"""Errors that a user can mend, and how messages show values and texts of others."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

LONGEST = 5000  # characters of one fault: what it quotes may be a whole file
_BETWEEN = "\nerror: "
# line ends but those between faults, terminals' codes, and what turns the direction of writing
_CONTROLS = r"\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_UNSHOWN = re.compile(rf"\n(?!error: )|[{_CONTROLS}]")
_STEERING = re.compile(r"\x1b(?!\[[\d;]*m)|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]")
_NOT_OF_A_LINE = re.compile(rf"[\n{_CONTROLS}]")


def printable(text: str) -> str:
    """For a line that quotes text of others (a file's name, say): control characters and line ends are shown as Python
    writes them."""
    return _NOT_OF_A_LINE.sub(_as_python_writes, text)


def unsteering(text: str) -> str:
    """For several lines on a terminal: control characters but line ends, tabs and colours are shown as Python writes
    them."""
    return _STEERING.sub(_as_python_writes, text)


def _as_python_writes(found: re.Match) -> str:
    return repr(found[0])[1:-1]


class UserError(ValueError):
    """One clear line: the file, key or value at fault, what was allowed, and how to mend it.

    The command lines print it after ``error:`` and exit with code 2, without a traceback. Several faults are joined by
    ``\\nerror: ``; any other control character, of a file's name say, is shown as Python writes it.
    """

    def __init__(self, message: str = ""):
        faults = _UNSHOWN.sub(_as_python_writes, message).split(_BETWEEN)
        super().__init__(_BETWEEN.join(map(_shortened, faults)))


class Faults(list):
    """Faults of which a user hears together, a line each."""

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """A UserError of the block is one of them, and the work goes on behind it."""
        try:
            yield
        except UserError as error:
            self.append(str(error))

    def tell(self) -> None:
        """Raises UserError with all of them, if there are any."""
        if self:
            raise UserError(_BETWEEN.join(self))


def _shortened(fault: str) -> str:
    """Without its middle where it is too long: the fault may be named before or behind what is quoted."""
    half = LONGEST // 2
    return fault if len(fault) <= LONGEST else f"{fault[:half]}...{fault[-half:]}"


def shown(value: Any, limit: int = 60) -> str:
    """A value for a message: short whatever it holds, and never on more than one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping" if value else "an empty mapping"
    if isinstance(value, (list, tuple, set)):
        return "a list" if value else "an empty list"
    if isinstance(value, int) and abs(value) > 10**limit:
        return "a very large number"
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


class NonFinite(UserError):
    """NaN or infinity among the model's logits.

    rows: of the batch, those that have it. generated: by row, the ids that it had generated before.
    """

    def __init__(self, rows: list[int], generated: list[list[int]] | None = None, why: str = ""):
        super().__init__(why or "the model's logits hold NaN or infinity: its weights are damaged, or numbers overflow "
                                "in this precision (--bf16 and --fp32 have more room)")
        self.rows, self.generated = rows, generated or [[] for _ in rows]


def attempt(work: Callable[[], object], *foreseen: type[Exception]) -> tuple[object, str | None]:
    """The result, or the line of what went wrong."""
    try:
        return work(), None
    except foreseen as error:
        return None, str(error)
