"""The report's plots: inline SVG from matplotlib whose colours and font are those of the page they stand in."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Sequence

import numpy as np

from evaluation.analysis import Calibration, LengthBin, smoothed
from runtime.errors import printable

# Colours that no plot uses otherwise stand for the page's variables, so that the page decides between light and dark.
INK, FAINT, GRID, MAIN, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", MAIN: "main", SECOND: "second"}
_STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.family": "sans-serif",
    "font.size": 8.0, "axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "text.color": INK, "xtick.color": FAINT, "ytick.color": FAINT, "axes.grid": False, "grid.color": GRID,
    "grid.linewidth": 0.5, "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False,
    "legend.fontsize": 7.5, "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
}  # fmt: skip
# Names that matplotlib gives to groups: the same in every plot, where a page must have an id once.
_GROUP_NAME = r' id="(?:figure|axes|patch|matplotlib\.axis|[xy]tick|line2d|text|legend|\w+Collection)_\d+"'
WIDTH, HEIGHT = 4.6, 2.7  # inches; the page shows an inch as 100 pixels
# Inches around the axes for what stands there, and for a character of a label: matplotlib's own layout takes twice as
# long as all the rest, and measures a font that is not the page's.
LEFT, NAME, RIGHT, TOP, BOTTOM, CHARACTER = 0.1, 0.21, 0.14, 0.24, 0.43, 0.062


def spread(rows: Sequence[tuple], unit: str, mark: float | None = None) -> str:
    """Figures with intervals, one below the other. rows: (label, figure, low, high, is_average); figure and low may be
    None: what is not finite has no place.
    mark: a figure to compare with, such as that of guessing."""
    with Drawing(height=0.55 + (0.2 if len(rows) <= 30 else 0.165) * len(rows)) as drawing:
        axes = drawing.axes()
        for place, (_, figure, low, high, is_average) in enumerate(rows):
            color, size = (INK, 5.5) if is_average else (MAIN, 5)
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=color, linewidth=1.6 if is_average else 2.2,
                          alpha=0.9 if is_average else 0.45, solid_capstyle="round")
            if figure is not None:
                axes.plot([figure], [place], marker="D" if is_average else "o", color=color, markersize=size,
                          markeredgewidth=0)
        if mark is not None:
            axes.axvline(mark, color=SECOND, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
        drawing.margins(top=0.06)
        axes.set_yticks(range(len(rows)), [_shortened(row[0], 34) for row in rows])
        for label, row in zip(axes.get_yticklabels(), rows, strict=True):
            label.set_color(INK if row[4] else FAINT)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(unit)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        room(axes, [value for row in rows for value in row[1:4]] + [mark])
    return drawing.svg


def reliability(found: Calibration) -> str:
    """Accuracy over confidence, and below it how many items have that confidence."""
    with Drawing() as drawing:
        above, below = drawing.figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
        drawing.margins(top=0.06)
        above.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle=(0, (3, 2)))
        above.vlines(found.confidence, found.accuracy, found.confidence, color=SECOND, linewidth=1.6, alpha=0.6)
        above.plot(found.confidence, found.accuracy, color=MAIN, linewidth=1, alpha=0.5)
        above.scatter(found.confidence, found.accuracy, s=10 + 60 * found.count / found.count.max(), color=MAIN,
                      linewidth=0, zorder=3)
        above.set(xlim=(0, 1), ylim=(-0.03, 1.03), ylabel="share right", yticks=[0, 0.5, 1])
        above.grid()
        below.bar(found.middle, found.count, width=0.085, color=MAIN, alpha=0.7, linewidth=0)
        below.set(xlabel="confidence in the answer given", ylabel="items", ylim=(0, None))
        below.locator_params(axis="y", nbins=2, integer=True)
    return drawing.svg


def lengths(bins: Sequence[LengthBin], unit: str, mark: float | None = None) -> str:
    """The figure of items with short to long contexts."""
    with Drawing() as drawing:
        axes = drawing.axes()
        for place, each in enumerate(bins):
            if each.interval[0] is not None:
                axes.plot([place, place], each.interval, color=MAIN, linewidth=5, alpha=0.25, solid_capstyle="butt")
        axes.plot(range(len(bins)), [each.figure for each in bins], color=MAIN, marker="o", markersize=4.5, linewidth=1,
                  markeredgewidth=0)
        if mark is not None:
            axes.axhline(mark, color=SECOND, linewidth=1, linestyle=(0, (3, 2)), zorder=0)
        names = [f"{each.low}–{each.high}" if each.low < each.high else str(each.low) for each in bins]
        drawing.margins(top=0.06, bottom=0.55)
        axes.set_xticks(range(len(bins)), [f"{name}\nn = {each.count}" for name, each in zip(names, bins, strict=True)],
                        fontsize=7)
        axes.set(xlabel="tokens of the context", ylabel=unit, xlim=(-0.5, len(bins) - 0.5))
        axes.grid(axis="y")
        room(axes, [value for each in bins for value in (each.figure, *each.interval)] + [mark], is_upright=True)
    return drawing.svg


def places(right: np.ndarray, predicted: np.ndarray) -> str:
    """How often each place holds the right answer, and how often it is chosen."""
    with Drawing() as drawing:
        axes, where = drawing.axes(), np.arange(len(right))
        axes.bar(where - 0.2, 100 * right, 0.36, color=FAINT, alpha=0.55, linewidth=0, label="right answer")
        axes.bar(where + 0.2, 100 * predicted, 0.36, color=MAIN, linewidth=0, label="chosen")
        axes.set_xticks(where, [str(place) for place in where])
        axes.set(xlabel="place of the choice", ylabel="% of the items", ylim=(0, None))
        axes.grid(axis="y")
        legend(axes)
    return drawing.svg


def windows(series: Sequence[tuple[str, np.ndarray]]) -> str:
    """Loss per token along the windows of a text. series: (file, (n,) nats per token)."""
    with Drawing() as drawing:
        axes, most = drawing.axes(), 76 // len(series) - 8  # columns of a name: the legend is one line
        for number, (name, values) in enumerate(series):
            color = (MAIN, SECOND, INK, FAINT)[number % 4]
            is_long = len(values) > 40
            axes.plot(values, color=color, linewidth=0.6 if is_long else 1, alpha=0.4 if is_long else 1,
                      marker="" if is_long else "o", markersize=3, label=None if is_long else _shortened(name, most))
            if is_long:
                axes.plot(smoothed(values, max(5, len(values) // 30)), color=color, linewidth=1.6,
                          label=_shortened(name, most))
        axes.set(xlabel="window", ylabel="nats per token")
        axes.locator_params(axis="x", integer=True)
        axes.grid(axis="y")
        if len(series) > 1:
            legend(axes)
    return drawing.svg


def answer_lengths(predicted: np.ndarray, wanted: np.ndarray) -> str:
    """How long answers and references are."""
    with Drawing() as drawing:
        axes = drawing.axes()
        last = max(4, int(np.quantile(np.concatenate([predicted, wanted]), 0.98)))
        edges = np.unique(np.linspace(-0.5, last + 0.5, min(last + 2, 31)).round(1))
        axes.hist(np.minimum(predicted, last), edges, color=MAIN, alpha=0.75, linewidth=0, label="answers")
        axes.hist(np.minimum(wanted, last), edges, histtype="step", color=INK, linewidth=1, label="references")
        axes.set(xlabel=f"characters (those above {last} are counted at {last})", ylabel="items")
        axes.locator_params(axis="y", integer=True)
        axes.grid(axis="y")
        legend(axes)
    return drawing.svg


class Drawing:
    """A figure in the house's style; `svg` after the block."""

    def __init__(self, width: float = WIDTH, height: float = HEIGHT):
        import matplotlib
        from matplotlib.figure import Figure

        self._context = matplotlib.rc_context(_STYLE)
        self._context.__enter__()
        self.figure, self.size = Figure((width, height)), (width, height)
        self.margins()
        self.svg = ""

    def __enter__(self):
        return self

    def axes(self):
        return self.figure.subplots()

    def margins(self, top: float = TOP, bottom: float = BOTTOM) -> None:
        """Inches that the axes leave free above and below; to the left it is what their labels take."""
        width, height = self.size
        self.figure.subplots_adjust(None, bottom / height, 1 - RIGHT / width, 1 - top / height)

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.figure.subplots_adjust(left=max(map(_beside, self.figure.axes), default=0) / self.size[0])
                stream = io.StringIO()
                with warnings.catch_warnings():  # the browser has the glyphs that matplotlib's font lacks
                    warnings.filterwarnings("ignore", "Glyph .* missing")
                    self.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
                self.svg = _inline(stream.getvalue())
        finally:
            self._context.__exit__(None, None, None)


def _inline(text: str) -> str:
    """An SVG file as an element of a page: its header, comments and group names are left out, control characters are
    shown."""
    text = text[text.index("<svg"):]
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(_GROUP_NAME, "", text)
    box = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', text)
    width = round(float(box.group(1)) / 72 * 100)
    text = re.sub(r"<svg [^>]*>", f'<svg {box.group()} style="max-width:{width}px" aria-hidden="true">', text, count=1)
    for color, name in _VARIABLES.items():
        text = text.replace(color, f"var(--{name})")
    return "\n".join(printable(line.lstrip()) for line in text.strip().split("\n"))


def room(axes, values: Sequence[float | None], is_upright: bool = False) -> None:
    """Limits around the values; a percentage is not shown beyond 0 and 100 by much."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    if not known:
        return
    margin = 0.06 * (max(known) - min(known)) or 0.05 * abs(max(known)) or 1.0
    (axes.set_ylim if is_upright else axes.set_xlim)(min(known) - margin, max(known) + margin)


def legend(axes) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.1, handlelength=1.2)


def _beside(axes) -> float:
    """Inches that the labels of the upright axis take."""
    labels = axes.yaxis.get_major_formatter().format_ticks(axes.get_yticks())
    return LEFT + CHARACTER * max(map(_columns, labels), default=0) + NAME * bool(axes.get_ylabel())


def _shortened(text: str, most: int) -> str:
    """The text, or its end, of `most` columns: what tells prompts apart stands at the end of their paths."""
    text = " ".join(text.split())
    if _columns(text) <= most:
        return text
    while _columns(text) > most - 1:
        text = text[1:]
    return "…" + text


def _columns(text: str) -> float:
    """Of a text whose Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1.25 if character.isupper() else 1
               for character in text)
