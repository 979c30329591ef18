"""The report on a terminal: losses and choices, errors by linear, and what each kind of linear does alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from rich import box
from rich.table import Table

from tools.quantizing.schemes import PLAIN


def tables(report: dict) -> Iterator[tuple[str, Table]]:
    """Titles and tables. (A title of rich's own would be broken to the width of its table.)"""
    yield "The model", _of_model(report)
    yield "Relative error of weights / of outputs, %", _of_linears(report)
    yield "Increase of the loss with one kind of linear quantised alone, nats per token", _of_kinds(report)


def _of_model(report: dict) -> Table:
    """One row for each scheme: of all texts and all tasks together."""
    table = _table("", "bits", "nats/token", "increase", "95% interval", "flips", "of", "%", "95%",
                   "accuracy")
    losses, choices = ({record["scheme"]: record for record in report[part]} for part in ("loss", "choices"))
    for scheme in report["schemes"]:
        name = scheme["scheme"]
        loss, choice = losses[name], choices[name]  # the last record of a scheme is that of everything together
        is_plain = name == PLAIN
        accuracy = "" if choice["accuracy"] is None else f"{choice['accuracy']:.3f}"
        table.add_row(
            name, f"{scheme['bits_per_weight']:.2f}", f"{loss['loss']:.4f}",
            *(["", "", "", str(choice["n"]), "", ""] if is_plain else [
                f"{loss['increase']:+.4f}", _limits(loss["interval"], "+.4f"), str(choice["flips"]), str(choice["n"]),
                f"{100 * choice['share']:.1f}", _limits([100 * end for end in choice["interval"]], ".1f")]), accuracy)
    return table


def _of_linears(report: dict) -> Table:
    names = list(dict.fromkeys(record["scheme"] for record in report["linears"]))
    table = _table("layer", "linear", *names)
    table.columns[1].justify = "left"
    cells = {(record["layer"], record["linear"], record["scheme"]): record for record in report["linears"]}
    rows = dict.fromkeys((layer, linear) for layer, linear, _ in cells)
    for layer, linear in rows:
        table.add_row(str(layer), linear, *[_errors([cells[layer, linear, name]]) for name in names])
    table.add_section()
    everywhere = [[record for record in report["linears"] if record["scheme"] == name] for name in names]
    table.add_row("", "mean", *map(_errors, everywhere))
    return table


def _of_kinds(report: dict) -> Table:
    names = list(dict.fromkeys(record["scheme"] for record in report["sensitivity"]))
    table = _table("linear", *names)
    cells = {(record["linear"], record["scheme"]): record for record in report["sensitivity"]}
    for linear in dict.fromkeys(linear for linear, _ in cells):
        table.add_row(linear, *[f"{cells[linear, name]['increase']:+.4f}" for name in names])
    return table


def _errors(records: Sequence[dict]) -> str:
    return " / ".join(f"{100 * fmean(record[key] for record in records):.2f}" for key in
                      ("weight_error", "output_error"))


def _limits(ends: Sequence[float | None], form: str) -> str:
    return "" if ends[0] is None else f"{ends[0]:{form}} … {ends[1]:{form}}"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
