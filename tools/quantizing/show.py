"""The report on quantisation for people: tables for the terminal, and its two files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import get_terminal_size
from statistics import fmean

from runtime.errors import UserError, printable
from runtime.files import replacing
from runtime.show import table
from tools.quantizing.schemes import PLAIN

JSON, PLOT = "report.json", "report.png"
PLAIN_WIDTH = 140  # where there is no terminal
WIDE = 110
MOST_LAYERS = 12  # of a deeper model the table has means over the layers only
STYLE = {
    "font.size": 8.0, "axes.titlesize": 8.5, "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.5,
    "axes.axisbelow": True, "legend.frameon": False, "text.parse_math": False,
}  # fmt: skip
COLOURS = ("#0072b2", "#d55e00", "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#666666")  # told apart by everyone


def write(report: dict, folder: Path) -> list[str]:
    """Writes both files; returns the tables and notes for standard output."""
    try:
        with replacing(folder / JSON) as temporary:
            temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        draw(report, folder / PLOT)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror}") from None
    width = get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH
    return [*tables(report, width), *map(printable, notes(report, folder))]


def notes(report: dict, folder: Path) -> list[str]:
    loss = report["loss"][-1]
    return [
        f"Text: {', '.join(report['settings']['texts'])}; {loss['tokens']} tokens scored. Tasks: "
        f"{', '.join(report['settings']['tasks'])}.",
        "g32: groups of 32 columns share a scale. flips: items whose predicted choice is not fp32's. Losses of single "
        "texts, flips of single tasks and all other figures are in the JSON file.",
        f"Report: {folder / JSON}; plot: {folder / PLOT}",
    ]


def tables(report: dict, width: int) -> Iterator[str]:
    """A terminal of less than WIDE columns gets no intervals, and the errors of outputs alone."""
    errors = ("weight_error", "output_error") if width >= WIDE else ("output_error",)
    yield _of_model(report, has_intervals=width >= WIDE)
    yield _of_linears(report, errors)
    yield _of_kinds(report)


def _of_model(report: dict, has_intervals: bool) -> str:
    """One row for each scheme: of all texts and all tasks together."""
    columns = ("", "bits", "nats/token", "increase", "95% interval", "flips", "of", "%", "95%", "accuracy")
    kept = [place for place, column in enumerate(columns) if has_intervals or not column.startswith("95")]
    rows, losses, choices = [], _last(report["loss"]), _last(report["choices"])
    for scheme in report["schemes"]:
        name = scheme["scheme"]
        loss, choice = losses[name], choices[name]
        cells = [name, f"{scheme['bits_per_weight']:.2f}", f"{loss['loss']:.4f}"]
        cells += ["", "", "", str(choice["n"]), "", ""] if name == PLAIN else [
            f"{loss['increase']:+.4f}", _limits(loss["interval"], "+.4f"), str(choice["flips"]), str(choice["n"]),
            f"{100 * choice['share']:.1f}", _limits([100 * end for end in choice["interval"]], ".1f")]
        cells.append("" if choice["accuracy"] is None else f"{choice['accuracy']:.3f}")
        rows.append([cells[place] for place in kept])
    return table([columns[place] for place in kept], rows, title="The model")


def _of_linears(report: dict, errors: Sequence[str]) -> str:
    cells = {(record["layer"], record["linear"], record["scheme"]): record for record in report["linears"]}
    layers, linears, names = (list(dict.fromkeys(key[place] for key in cells)) for place in range(3))

    def row(title: str, linear: str, layers: Sequence[int], linears: Sequence[str]) -> list[str]:
        found = [[cells[layer, each, name] for layer in layers for each in linears] for name in names]
        return [title, linear, *(" / ".join(f"{100 * fmean(record[error] for record in records):.2f}"
                                            for error in errors) for records in found)]

    rows = [row(str(layer), linear, [layer], [linear])
            for layer in (layers if len(layers) <= MOST_LAYERS else ()) for linear in linears]
    rows += [*(row("mean", linear, layers, [linear]) for linear in linears), row("mean", "", layers, linears)]
    return table(["layer", "linear", *names], rows, 2,
                 f"Relative error of {'weights / of ' if len(errors) > 1 else ''}outputs, %")


def _of_kinds(report: dict) -> str:
    cells = {(record["linear"], record["scheme"]): record for record in report["sensitivity"]}
    linears, names = (list(dict.fromkeys(key[place] for key in cells)) for place in range(2))
    return table(["linear", *names],
                 [[linear, *(f"{cells[linear, name]['increase']:+.4f}" for name in names)] for linear in linears],
                 title="Increase of the loss with one kind of linear quantised alone, nats per token")


def _limits(ends: Sequence[float | None], form: str) -> str:
    return "" if ends[0] is None else f"{ends[0]:{form}} … {ends[1]:{form}}"


def _last(records: Sequence[dict]) -> dict[str, dict]:
    """The last record of each scheme, that of everything together."""
    return {record["scheme"]: record for record in records}


def draw(report: dict, path: Path) -> None:
    """A PNG file: errors of outputs layer by layer, and what they do to the loss and to choices."""
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
            _plot_errors(panel, [record for record in report["linears"] if record["linear"] == linear], colours)
            panel.set(title=linear, xlabel="layer")
        panels[0].set_ylabel("error of outputs, %")
        panels[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2)
        losses, choices = ([_last(report[part])[name] for name in names] for part in ("loss", "choices"))
        loss, flips, kinds = below.subplots(1, 3)
        _bars(loss, losses, "increase", 1, colours)
        loss.set_title("increase of the loss, nats per token")
        _bars(flips, choices, "share", 100, colours)
        flips.set_title(f"choices that flip, % of {choices[0]['n']}")
        _kinds(kinds, report["sensitivity"], linears, colours)
        kinds.set_title("increase of the loss, one kind alone")
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120, metadata={"Software": None})


def _plot_errors(axes, records: Sequence[dict], colours: dict[str, str]) -> None:
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
