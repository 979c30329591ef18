"""Which software computed a result: every run writes it beside its figures."""

import platform
from collections.abc import Sequence
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
