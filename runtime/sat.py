"""Importing modules of SwissArmyTransformer without what its packages pull in: seconds of start, pages of chatter."""

from __future__ import annotations

import contextlib
import importlib.machinery
import os
import sys
import types
from collections.abc import Iterator

from runtime.errors import UserError

# Packages whose __init__ pulls in transformers, datasets and DeepSpeed (4 s); we need only modules inside them.
_SAT_PACKAGES = ("sat", "sat.model")
_NOT_NEEDED = ("deepspeed",)


@contextlib.contextmanager
def lean_sat() -> Iterator[None]:
    """Import modules of SAT without running `sat/__init__.py`, and without SAT's and DeepSpeed's chatter.

    While it lasts, the packages are empty shells with the right path; afterwards the shells are dropped, so that a
    later `import sat` by somebody else runs the real thing and finds our modules already loaded.
    """
    os.environ.setdefault("SAT_LOGLEVEL", "ERROR")
    shells = [name for name in _SAT_PACKAGES if name not in sys.modules]
    blocked = [name for name in _NOT_NEEDED if name not in sys.modules]
    try:
        for name in shells:
            sys.modules[name] = _shell(name)
        sys.modules.update(dict.fromkeys(blocked))  # None: importing it raises ModuleNotFoundError, which SAT expects
        yield
    finally:
        for name in (*shells, *blocked):
            sys.modules.pop(name, None)


def _shell(name: str) -> types.ModuleType:
    parent = name.rpartition(".")[0]
    path = sys.modules[parent].__path__ if parent else None
    spec = importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None:
        raise UserError("SwissArmyTransformer is not installed; run: pip install -r requirements.txt")
    module = types.ModuleType(name)
    module.__path__ = list(spec.submodule_search_locations)
    module.__spec__ = spec
    return module
