"""Weight-only quantisation: the quantiser, and the report on what it changes in a model."""

from collections.abc import Iterable

GROUP_SIZES = (128, 64, 32)  # columns that may share a scale, on the command lines


def fitting_group_sizes(columns: Iterable[int]) -> str:
    """Those that divide weights of so many columns, as words."""
    counts = set(columns)
    return " or ".join(str(size) for size in GROUP_SIZES if not any(count % size for count in counts)) or "no groups"
