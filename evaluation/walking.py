"""Files below a folder that a glob matches, each once: links may lead in circles, or to what has been seen already."""

from __future__ import annotations

import os
from collections import deque
from fnmatch import fnmatchcase
from pathlib import PurePath

ANY_FOLDERS = "**"


def files_below(folder: str | os.PathLike, pattern: str) -> list[str]:
    """Names relative to the folder, sorted. A pattern is as for glob.glob, hidden names and `**` included.

    Of several names of one file that which goes through no link is taken, else the first. A folder is walked once for
    all that the pattern may still match in it, so that links cannot make the walk long.
    """
    parts = [part for part in PurePath(pattern).parts if part != "."]
    found: list[tuple[bool, str, str]] = []  # through a link, name, real path
    waiting = deque([("", _past_folders(parts, {0}), False)])
    seen = set()
    while waiting:
        inside, states, through_link = waiting.popleft()
        here = os.path.join(folder, inside)
        if (real := (os.path.realpath(here), frozenset(states))) in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            name, is_link = os.path.join(inside, entry.name), through_link or entry.is_symlink()
            if os.path.isdir(entry.path):
                if after := _after(parts, states, entry.name):  # links last: a folder is known by its own name
                    (waiting.append if is_link else waiting.appendleft)((name, after, is_link))
            elif len(parts) - 1 in states and _fits(entry.name, parts[-1]) and os.path.isfile(entry.path):
                found.append((is_link, name, os.path.realpath(entry.path)))
    name_of: dict[str, str] = {}
    for _, name, real_path in sorted(found):
        name_of.setdefault(real_path, name)
    return sorted(name_of.values())


def _after(parts: list[str], states: set[int], name: str) -> set[int]:
    """How many parts of the pattern may be matched when this folder's name has been, too."""
    after = {state if parts[state] == ANY_FOLDERS else state + 1
             for state in states if state < len(parts) and _fits(name, parts[state])}
    return _past_folders(parts, after)


def _fits(name: str, part: str) -> bool:
    is_hidden = name.startswith(".") and not part.startswith(".")
    return not is_hidden and (part == ANY_FOLDERS or fnmatchcase(name, part))


def _past_folders(parts: list[str], states: set[int]) -> set[int]:
    """With those behind a `**`, which may stand for no folder at all."""
    for state in sorted(states):
        while state < len(parts) and parts[state] == ANY_FOLDERS:
            state += 1
            states = states | {state}
    return states
