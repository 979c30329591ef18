"""The report on a terminal: losses and choices, errors by linear, and what each kind of linear does alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from rich import box
from rich.table import Table

from tools.quantizing.schemes import PLAIN

WIDE = 110
MOST_LAYERS = 12  # of a deeper model the table has means over the layers only


def tables(report: dict, width: int) -> Iterator[tuple[str, Table]]:
    """Titles and tables (a title of rich's own would be broken to the width of its table). A terminal of less than
    WIDE columns gets no intervals, and the errors of outputs alone."""
    errors = ("weight_error", "output_error") if width >= WIDE else ("output_error",)
    yield "The model", _of_model(report, has_intervals=width >= WIDE)
    yield f"Relative error of {'weights / of ' if len(errors) > 1 else ''}outputs, %", _of_linears(report, errors)
    yield "Increase of the loss with one kind of linear quantised alone, nats per token", _of_kinds(report)


def _of_model(report: dict, has_intervals: bool) -> Table:
    """One row for each scheme: of all texts and all tasks together."""
    columns = ("", "bits", "nats/token", "increase", "95% interval", "flips", "of", "%", "95%", "accuracy")
    kept = [place for place, column in enumerate(columns) if has_intervals or not column.startswith("95")]
    table = _table(*[columns[place] for place in kept])
    losses, choices = ({record["scheme"]: record for record in report[part]} for part in ("loss", "choices"))
    for scheme in report["schemes"]:
        name = scheme["scheme"]
        loss, choice = losses[name], choices[name]  # the last record of a scheme is that of everything together
        cells = [name, f"{scheme['bits_per_weight']:.2f}", f"{loss['loss']:.4f}"]
        cells += ["", "", "", str(choice["n"]), "", ""] if name == PLAIN else [
            f"{loss['increase']:+.4f}", _limits(loss["interval"], "+.4f"), str(choice["flips"]), str(choice["n"]),
            f"{100 * choice['share']:.1f}", _limits([100 * end for end in choice["interval"]], ".1f")]
        cells.append("" if choice["accuracy"] is None else f"{choice['accuracy']:.3f}")
        table.add_row(*[cells[place] for place in kept])
    return table


def _of_linears(report: dict, errors: Sequence[str]) -> Table:
    names = list(dict.fromkeys(record["scheme"] for record in report["linears"]))
    table = _table("layer", "linear", *names)
    table.columns[1].justify = "left"
    cells = {(record["layer"], record["linear"], record["scheme"]): record for record in report["linears"]}
    layers, linears = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))

    def add(title: str, linear: str, layers: Sequence[int], linears: Sequence[str]) -> None:
        places = [(layer, each) for layer in layers for each in linears]
        table.add_row(title, linear, *[_errors([cells[(*place, name)] for place in places], errors) for name in names])

    for layer in layers if len(layers) <= MOST_LAYERS else ():
        for linear in linears:
            add(str(layer), linear, [layer], [linear])
    table.add_section()
    for linear in linears:
        add("mean", linear, layers, [linear])
    add("mean", "", layers, linears)
    return table


def _of_kinds(report: dict) -> Table:
    names = list(dict.fromkeys(record["scheme"] for record in report["sensitivity"]))
    table = _table("linear", *names)
    cells = {(record["linear"], record["scheme"]): record for record in report["sensitivity"]}
    for linear in dict.fromkeys(linear for linear, _ in cells):
        table.add_row(linear, *[f"{cells[linear, name]['increase']:+.4f}" for name in names])
    return table


def _errors(records: Sequence[dict], errors: Sequence[str]) -> str:
    return " / ".join(f"{100 * fmean(record[error] for record in records):.2f}" for error in errors)


def _limits(ends: Sequence[float | None], form: str) -> str:
    return "" if ends[0] is None else f"{ends[0]:{form}} … {ends[1]:{form}}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
