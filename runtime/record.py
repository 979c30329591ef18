"""What a run writes beside its results: with which software, and with which settings, it was made.

A later version of the toolkit, with an option more or one less, may resume the run. So a setting at its default is not
recorded, and one that is not recorded is at its default.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import MISSING, fields
from importlib import metadata

PACKAGES = ("torch", "SwissArmyTransformer", "sentencepiece", "numpy")


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python, of the packages that results depend on, and of `more`; without those not installed."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *more):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def unusual(settings: object) -> dict[str, object]:
    """The fields of a dataclass that are not at their default, and those that have none."""
    values = {field.name: (getattr(settings, field.name), field.default) for field in fields(settings)}
    return {name: value for name, (value, default) in values.items() if value != default}


def usual(kind: type) -> dict[str, object]:
    """The fields of a dataclass that have a default, with it."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}
