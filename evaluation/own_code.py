"""Calls of code that a user wrote, in a class of a task's own: whatever goes wrong in it is one line that says where.

The line has the exception and the last line of the user's file that was reached, or what a method should have returned.
"""

from __future__ import annotations

import contextlib
import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.recorded import ITEM
from evaluation.requests import GenerateRequest, Request, ScoreRequest
from evaluation.schema import fault
from generation.params import BeamParams, SamplingParams
from runtime.errors import UserError
from runtime.files import REPOSITORY

OURS = ("runtime", "kernels", "quantization", "glm", "planning", "generation", "evaluation", "commands")  # not tasks/


@contextlib.contextmanager
def calling(config, where: str) -> Iterator[None]:
    """The block calls methods that the class of the task `config` may have as its own. where: begins the message.

    Raises UserError for any exception that comes out of a user's file, or out of anywhere for a class of one's own.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        place = _place(error, is_any=config.module is not None)
        if place is None:  # a fault of this toolkit
            raise
        raise UserError(f"{where}: {type(error).__name__}: {error} ({place})") from error


def _place(error: BaseException, is_any: bool) -> str | None:
    """The last line in a file that is neither ours nor a library's; is_any: if there is none, the last one at all."""
    frames = traceback.extract_tb(error.__traceback__)
    others = [*(str(REPOSITORY / package) for package in OURS), *sysconfig.get_paths().values()]
    own = [frame for frame in frames if not any(Path(frame.filename).is_relative_to(folder) for folder in others)]
    if not own and not is_any:
        return None
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}, in {frame.name}"


def returned(value: Any, is_right: bool, method: Callable, what: str, where: str) -> Any:
    """The value, if it is what a method must return. Raises UserError naming the method and where it is written."""
    if is_right:
        return value
    found = "nothing" if value is None else f"a value of the type {type(value).__name__}"
    code = inspect.unwrap(getattr(method, "__func__", method)).__code__
    raise UserError(f"{where}: {method.__qualname__} must return {what}; it returned {found} "
                    f"({code.co_filename}:{code.co_firstlineno})")


def fault_of_request(request: Request, num_tokens: int) -> str | None:
    """What no model can be asked, or None. num_tokens: of the vocabulary."""
    if isinstance(request, ScoreRequest):
        lists = {"context": request.context, **{f"continuations[{place}]": ids
                                                for place, ids in enumerate(request.continuations)}}
        if not request.continuations or type(request.lead) is not int or type(request.first_position) is not int:
            return "must have continuations, and an id and a position to begin with"
    else:
        lists = {"context": request.context}
        if not isinstance(request.params, SamplingParams | BeamParams):
            return "params: must be SamplingParams or BeamParams"
        if type(request.limit) is not int or request.limit < 1:
            return "limit: must be at least 1"
        for name in ("end_tokens", "invalid_ids"):
            if not _are_ids(getattr(request, name), num_tokens):
                return f"{name}: must be a tuple of token ids"
        if not (isinstance(request.forbidden_starts, tuple)
                and all(_are_ids(ids, num_tokens) for ids in request.forbidden_starts)):
            return "forbidden_starts: must be a tuple of tuples of token ids"
    for name, ids in lists.items():
        if not _are_ids(ids, num_tokens) or not ids:
            return f"{name}: must be a tuple of at least one token id, each less than {num_tokens}"
    return None


def _are_ids(ids: Any, num_tokens: int) -> bool:
    return (isinstance(ids, tuple) and set(map(type, ids)) <= {int}
            and (not ids or 0 <= min(ids) <= max(ids) < num_tokens))


def is_request(value: Any) -> bool:
    return isinstance(value, ScoreRequest | GenerateRequest)


def is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(each, kind) for each in value)


def is_mapping_to(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, Mapping) and all(isinstance(key, str) and fits(each) for key, each in value.items())


def check_item(item: dict, method: Callable, where: str) -> None:
    """A line of samples/ must be as reports and comparisons read it."""
    wrong = fault(item, ITEM)
    returned(item, wrong is None, method, f"an item as docs/results.md describes it ({wrong})", where)
