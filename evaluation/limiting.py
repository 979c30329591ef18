"""Which rows of a file --limit takes: the first ones, or a sample that comes out the same whenever it is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """rows: at least so many of every file, and no more than keep together what belongs together. seed: of the sample;
    None: the first rows."""

    rows: int
    seed: int | None = None

    def drawn(self, units: Sequence[Hashable]) -> list[int]:
        """The places that are drawn, in order. units: of every place, what it is drawn together with.

        Whether a unit is drawn depends on the seed and on how many are before it: files of as many rows, the prompts
        of a task, give the same places, and a larger sample holds the smaller one.
        """
        members: dict[Hashable, list[int]] = {}
        for place, unit in enumerate(units):
            members.setdefault(unit, []).append(place)
        numbered = enumerate(members.values())
        found: list[int] = []
        for _, places in sorted(numbered, key=lambda each: hashlib.sha256(f"{self.seed} {each[0]}".encode()).digest()):
            if len(found) >= self.rows:
                break
            found += places
        return sorted(found)
