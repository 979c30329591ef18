"""What report.html says of the run that made it, and how it is read on a narrow screen."""

import html
import json
import re
from xml.etree import ElementTree

import pytest

from evaluation.compare import compare
from evaluation.compare_table import comparison_table
from evaluation.page import FOLDER
from evaluation.plots import WIDTH, Drawing, _columns, _shortened, answer_lengths, spread
from evaluation.recorded import RecordedRun
from evaluation.report import report, write_report
from tests.recorded_runs import MadeTask, choice_items, window_item, write_run

TASKS = [MadeTask("choices", "mul", {"dev.jsonl": choice_items([1, 0])}),
         MadeTask("text", "lm", {"one.txt": [window_item(0, 250.0)]})]


def test_date_and_command_stand_at_its_head_and_come_from_the_timings(tmp_path):
    folder = write_run(tmp_path / "run", TASKS)
    without = report(RecordedRun(folder))
    command = "python -m evaluation 'my tasks' --limit 3"
    (folder / "timings.json").write_text(json.dumps({"started": "2026-11-28T06:07:08+0000", "command": command}))
    head = html.unescape(write_report(folder).read_text(encoding="utf-8").split("<table")[0])
    assert "2026-11-28 06:07" in head and "python -m evaluation 'my tasks' --limit 3" in head
    assert "date" not in without.split("<table")[0].split("</style>")[1]


def test_what_a_reader_must_know_stands_below_the_table(tmp_path):
    page = report(RecordedRun(write_run(tmp_path / "run", TASKS)))
    assert "PPL: perplexity per word" in page and "-: one item alone has no interval" in page
    assert "none: one item" not in page


def test_a_narrow_screen_keeps_the_figures_and_shows_that_there_is_more():
    style = (FOLDER / "page.html").read_text(encoding="utf-8")
    (narrow,) = re.findall(r"@media \(max-width: (\d+)px\) \{\s+\.wide \{ display: none; \}", style)
    assert int(narrow) > 800
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto;[^}]*var\(--shadow\)", style)


def test_lengths_of_references_are_an_outline_so_that_no_third_colour_comes_up():
    drawn = answer_lengths([3, 4, 4], [4, 5, 5])
    assert set(re.findall(r"fill: var\(--(\w+)\); opacity", drawn)) == {"main"}


def test_samples_that_an_earlier_version_has_named_are_found(tmp_path):
    folder = write_run(tmp_path / "run", TASKS)
    now = folder / "samples" / "choices" / "dev.jsonl"
    items = RecordedRun(folder).items("choices", "dev.jsonl")
    now.rename(now.with_name("dev.jsonl.jsonl"))
    assert RecordedRun(folder).items("choices", "dev.jsonl") == items


def test_a_comparison_says_that_an_item_counts_once_under_several_prompts(tmp_path):
    runs = [write_run(tmp_path / name, TASKS[:1]) for name in ("a", "b")]
    assert "with several prompts an item counts once there and in p" in comparison_table(compare(*runs).record)


def test_a_name_with_control_characters_is_text_of_the_page():
    drawn = spread([("a\x1b]0;\x07\x9b", 1.0, 0.5, 1.5, False)], "unit\x07")
    assert r"a\x1b]0;\x07\x9b" in drawn and r"unit\x07" in drawn
    ElementTree.fromstring(drawn.replace("xlink:href", "href"))  # which no control character may be in


@pytest.mark.parametrize("values", [[1, 2], [0.00132, 0.00135], [2.00001, 2.00002], [1e7, 3e7], [150_000, 250_000]])
def test_no_label_of_an_axis_is_cut_off(values):
    with Drawing() as drawing:
        axes = drawing.axes()
        axes.plot(values)
        axes.set(xlabel="step", ylabel="figure")
    box = drawing.figure.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= WIDTH


def test_a_long_name_is_its_end_and_chinese_takes_the_place_of_two():
    assert _shortened("a/b/" + "c" * 34, 34) == "…" + "c" * 33 and _shortened("c" * 34, 34) == "c" * 34
    assert _columns(_shortened("阅读理解" * 20, 34)) == 33
