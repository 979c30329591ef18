"""The closing table: readable at 100 columns, plain text, nothing left out."""

import re

import pytest

from evaluation.table import closing_table, figure, folded, limits

BOOTSTRAP = "bootstrap 95%, 1000 resamples"


def values(average, n=527, expected=None, truncated=0, interval=(40.0, 50.0), method="Wilson 95%"):
    counts = {"expected": expected or n, "scored": n, "truncated": truncated}
    return {"max": average + 2, "median": average + 1, "average": average, "interval": list(interval),
            "interval_method": method, "n": counts}


def done(groups):
    return {"status": "done", "groups": groups}


RESULTS = {"settings": {}, "tasks": {
    "glue_cola": done({"in_domain": {"Accuracy": values(67.7), "F1_mul": values(66.1, method=BOOTSTRAP)},
                       "out_of_domain": {"Accuracy": values(61.0, 500, 516, 13)}}),
    "A-task-with-quite-a-long-name-for-a-table": done({"all": {"EM": values(0.0, interval=(0.0, 0.7))}}),
    "superglue_axb": {"status": "missing", "groups": {}},
    "WikiText-2": done({"test": {"PPL": values(12035344.6, 91, interval=(1.1e7, 1.3e7), method=BOOTSTRAP)}}),
    "tiny": done({"all": {"PPL": values(3.5, 1, interval=(None, None), method="none: one item")}}),
}}  # fmt: skip


def line_with(text, table):
    (found,) = [line for line in table.split("\n") if text in line]
    return found.split()


def test_every_figure_is_there():
    table = closing_table(RESULTS)
    assert line_with("in_domain  ", table) == [
        "in_domain", "Accuracy", "527", "69.70", "68.70", "67.70", "[40.00,", "50.00]", "W"]
    assert line_with("F1_mul", table)[-1] == "B"
    assert line_with("out_of_domain", table)[1:4] == ["Accuracy", "500/516", "13"]
    assert line_with("WikiText-2", table)[-5:] == ["1.20e7", "1.20e7", "[1.10e7,", "1.30e7]", "B"]
    assert line_with("tiny", table)[-1] == "-"
    assert "B: bootstrap 95%, 1000 resamples; W: Wilson 95%" in table
    assert "n: items scored; cut" in table


def test_a_missing_task_is_shown_as_missing():
    table = closing_table(RESULTS)
    assert line_with("superglue_axb  ", table) == ["superglue_axb", "missing"]
    assert "missing, without any figure: superglue_axb" in table


@pytest.mark.parametrize("width", [None, 100, 80])
def test_it_fits_and_is_plain_where_there_is_no_terminal(width):
    table = closing_table(RESULTS, width)
    assert max(map(len, table.split("\n"))) <= (width or 100)
    assert table.isascii() and "\x1b" not in table and "…" not in table
    assert table.endswith("\n") and not table.endswith("\n\n")
    names = "".join(line[:line.index("EM")].strip() if "EM" in line else line.strip() for line in table.split("\n"))
    assert "A-task-with-quite-a-long-name-for-a-table" in names  # folded, never cut


@pytest.mark.parametrize("name, lines", [
    ("quickstart-words-chinese", ["quickstart-words-", "chinese"]),
    ("quickstart-words (test)", ["quickstart-words ", "(test)"]),
    ("college_computer_science/test", ["college_computer_", "science/test"]),
    ("a" * 45, ["a" * 20, "a" * 20, "a" * 5]),
    ("  " + "a" * 20, ["  " + "a" * 18, "aa"]),
    ("short", ["short"]),
])
def test_long_names_are_broken_between_their_words(name, lines):
    assert folded(name, 20).split("\n") == lines


def test_figures_of_kinds_of_items_are_below_the_figure_of_all():
    metrics = {"SS": values(50.0), "SS (gender)": values(40.0, 7), "ICAT (x)": values(30.0)}
    table = closing_table({"tasks": {"StereoSet": done({"all": metrics})}})
    assert line_with("StereoSet", table)[:3] == ["StereoSet", "SS", "527"]
    assert line_with("gender", table)[:3] == ["gender", "SS", "7"]
    assert line_with("ICAT (x)", table)[:2] == ["ICAT", "(x)"]  # there is no ICAT of all


def test_a_terminal_gets_colour():
    assert "\x1b[" in closing_table(RESULTS, 100, color=True)


def test_a_limited_run_says_so():
    table = closing_table(RESULTS | {"settings": {"limit": 30}})
    assert "only the first 30 rows of every file" in table and "n: items scored / there are; cut" in table
    whole = {"tiny": RESULTS["tasks"]["tiny"]}
    assert "rows of every file" not in closing_table({"settings": {"limit": 30}, "tasks": whole})


@pytest.mark.parametrize(("value", "shown"), [
    (67.7, "67.70"), (0, "0.00"), (9999.994, "9999.99"), (12345.67, "12345.7"), (12035344.605, "1.20e7"),
    (None, "-"), (float("nan"), "-"), (-3.5, "-3.50"),
])  # fmt: skip
def test_figures_are_short(value, shown):
    assert figure(value) == shown


def test_limits_that_are_not_there():
    assert limits(None) == limits([None, None]) == "-"


def test_a_run_of_nothing_but_missing_tasks():
    assert "missing" in closing_table({"tasks": {"one": {"status": "missing"}}})


def test_names_cannot_steer_the_terminal():
    name = "a\nb\x1b[31m"
    table = closing_table({"settings": {}, "tasks": {
        name: done({"all": {name: values(1.0)}}), f"{name}2": done({name: {"EM": values(1.0)}, "other": {}}),
        f"{name}3": {"status": "missing"}}}, color=True)
    plain = re.sub(r"\x1b\[[\d;]*m", "", table)
    assert plain.count(r"a\nb\x1b[31m") == 6 and "\x1b[31m" not in table


def test_short_names_leave_the_heading_whole_and_what_is_not_plain_is_explained():
    table = closing_table({"tasks": {"tiny": RESULTS["tasks"]["tiny"]}})
    assert table.split("\n")[0].split()[:3] == ["task", "metric", "n"]
    assert "-: one item alone has no interval" in table and "PPL: perplexity per word" in table


def test_a_limit_of_one_row_is_one_row():
    one = {"tasks": {"x": done({"all": {"EM": values(0.0, 1, 9)}})}}
    assert "only the first row of every file was taken" in closing_table(one | {"settings": {"limit": 1}})
    drawn = closing_table(one | {"settings": {"limit": 1, "sample_seed": 4}})
    assert "only one row of every file, drawn with seed 4, was taken: figures are estimates" in drawn
