"""What a run was asked for, as it is kept and compared with what a later run is asked for.

A run may be gone on with by a version of the toolkit that has an option more, or one less. So what is at its default is
not kept, and what is not there is at its default.
"""

from __future__ import annotations

from dataclasses import MISSING, fields


def unusual(settings: object) -> dict[str, object]:
    """The fields of a dataclass that are not at their default, and those that have none."""
    values = {field.name: (getattr(settings, field.name), field.default) for field in fields(settings)}
    return {name: value for name, (value, default) in values.items() if value != default}


def usual(kind: type) -> dict[str, object]:
    """The fields of a dataclass that have a default, with it."""
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}
