"""The report as a picture: errors of outputs layer by layer, and what they do to the loss and to choices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.files import replacing
from tools.quantizing.schemes import PLAIN

STYLE = {
    "font.size": 8.0, "axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.5,
    "axes.axisbelow": True, "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#666666")  # told apart by everyone


def draw(report: dict, path: Path) -> None:
    """A PNG file."""
    import matplotlib
    from matplotlib.figure import Figure

    names = [record["scheme"] for record in report["schemes"] if record["scheme"] != PLAIN]
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    linears = list(dict.fromkeys(record["linear"] for record in report["linears"]))
    with matplotlib.rc_context(STYLE):
        figure = Figure((9.2, 5.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        above, below = figure.subfigures(2, 1, height_ratios=[1, 1.1])
        panels = above.subplots(1, len(linears), sharey=True)
        for panel, linear in zip(panels, linears, strict=True):
            _errors(panel, [record for record in report["linears"] if record["linear"] == linear], colours)
            panel.set(title=linear, xlabel="layer")
        panels[0].set_ylabel("error of outputs, %")
        panels[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
        loss, flips, kinds = below.subplots(1, 3)
        _bars(loss, _last(report["loss"], names), "increase", 1, colours)
        loss.set_title("increase of the loss, nats per token")
        choices = _last(report["choices"], names)
        _bars(flips, choices, "share", 100, colours)
        flips.set_title(f"choices that flip, % of {choices[0]['n']}")
        _kinds(kinds, report["sensitivity"], linears, colours)
        kinds.set_title("increase of the loss, one kind alone")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def _errors(axes, records: Sequence[dict], colours: dict[str, str]) -> None:
    for name, colour in colours.items():
        points = [(record["layer"], 100 * record["output_error"]) for record in records if record["scheme"] == name]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.locator_params(axis="x", integer=True)


def _bars(axes, records: Sequence[dict], key: str, scale: float, colours: dict[str, str]) -> None:
    """A bar for each scheme, and its interval."""
    for place, record in enumerate(records):
        axes.bar(place, scale * record[key], color=colours[record["scheme"]], width=0.65)
        if record["interval"][0] is not None:
            axes.plot([place, place], [scale * end for end in record["interval"]], color="black", linewidth=1)
    axes.set_xticks(range(len(records)), [record["scheme"].replace(" ", "\n") for record in records])
    axes.grid(visible=False, axis="x")


def _kinds(axes, records: Sequence[dict], linears: Sequence[str], colours: dict[str, str]) -> None:
    names = list(dict.fromkeys(record["scheme"] for record in records))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        values = [record["increase"] for linear in linears for record in records
                  if record["linear"] == linear and record["scheme"] == name]
        places = [place + (number + 0.5) * width - 0.4 for place in range(len(linears))]
        axes.bar(places, values, color=colours[name], width=width)
    axes.set_xticks(range(len(linears)), [linear.rpartition(".")[2].replace("_", "_\n", 1) for linear in linears],
                    fontsize=7)
    axes.grid(visible=False, axis="x")


def _last(records: Sequence[dict], names: Sequence[str]) -> list[dict]:
    """The last record of each scheme, that of everything together."""
    by_scheme = {record["scheme"]: record for record in records}
    return [by_scheme[name] for name in names]
