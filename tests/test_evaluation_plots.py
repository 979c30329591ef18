"""The report's plots, as pieces of a page. What they show is looked at in tests/test_evaluation_report.py."""

from xml.etree import ElementTree

from evaluation import plots


def test_a_name_with_control_characters_is_text_of_the_page():
    drawn = plots.spread([("a\x1b]0;\x07\x9b", 1.0, 0.5, 1.5, False)], "unit\x07")
    assert r"a\x1b]0;\x07\x9b" in drawn and r"unit\x07" in drawn
    ElementTree.fromstring(drawn.replace("xlink:href", "href"))  # which no control character may be in
