"""A training's curves, in the looks of the evaluator's report: inline SVG."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.analysis import smoothed
from evaluation.plots import FAINT, MAIN, SECOND, Drawing, room

_MANY = 60  # points from which a curve is drawn smoothed, too
_MOST = 2000  # points of a curve that are drawn
Interval = tuple[float | None, float | None]


def curve(steps: Sequence[int], values: Sequence[float], unit: str, marks: Sequence[int] = ()) -> str:
    """marks: steps at which an epoch ends."""
    every = -(-len(steps) // _MOST)
    x, y = np.asarray(steps)[::every], np.asarray(values, dtype=float)[::every]
    with Drawing() as drawing:
        axes = drawing.axes()
        is_long = len(y) > _MANY
        axes.plot(x, y, color=MAIN, linewidth=0.7 if is_long else 1.2, alpha=0.35 if is_long else 1)
        if is_long:
            axes.plot(x, smoothed(y, max(5, len(y) // 40)), color=MAIN, linewidth=1.6)
        for mark in marks if len(marks) <= _MANY else ():
            axes.axvline(mark, color=FAINT, linewidth=0.5, linestyle=(0, (1, 3)), zorder=0)
        axes.set(xlabel="step", ylabel=unit)
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y")
        room(axes, y, is_upright=True)
    return drawing.svg


def validations_of(places: Sequence[int], values: Sequence[float], intervals: Sequence[Interval], name: str,
                   unit: str, best: int | None = None) -> str:
    """A figure of validation with its intervals. places: epochs or steps, as unit says. best: the one that was kept."""
    with Drawing() as drawing:
        axes = drawing.axes()
        for place, (low, high) in zip(places, intervals, strict=True):
            if low is not None and high is not None:
                axes.plot([place, place], [low, high], color=MAIN, linewidth=5, alpha=0.25, solid_capstyle="butt")
        axes.plot(places, values, color=MAIN, marker="o", markersize=4.5, linewidth=1, markeredgewidth=0)
        if best is not None:
            axes.axvline(best, color=SECOND, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
        axes.set(xlabel=unit, ylabel=name)
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y")
        room(axes, [*values, *(end for interval in intervals for end in interval)], is_upright=True)
    return drawing.svg
