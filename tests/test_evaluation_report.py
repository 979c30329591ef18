"""report.html: one page that needs nothing else, with every task, whatever texts and odd runs it is made of."""

import hashlib
import html.parser
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics import METRICS
from evaluation.report import write_report
from runtime.errors import UserError
from tests.recorded_runs import MadeTask, choice_item, choice_items, text_item, window_item, write_run

ATTACK = "<script>alert('x')</script> & \"quotes\""


class Page(html.parser.HTMLParser):
    """Elements, their attributes and the text that a reader sees; fails on elements that are not closed in order."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text, self.open, self.ids = [], "", [], []
        self.feed(source)
        assert self.open == [], self.open

    def handle_starttag(self, name, attributes):
        self.handle_startendtag(name, attributes)
        if name not in ("meta", "br", "hr", "img"):
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        self.ids += [value for key, value in attributes if key == "id"]

    def handle_endtag(self, name):
        assert self.open and self.open[-1] == name, (name, self.open)
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text += data

    def count(self, name):
        return sum(element == name for element, _ in self.elements)


def page_of(folder):
    source = write_report(folder).read_text(encoding="utf-8")
    return Page(source), source


def many_choices(count, seed=0, choices=4):
    rng = np.random.default_rng(seed)
    return [choice_item(index, int(rng.integers(choices)), int(rng.integers(choices)), choices, float(rng.random() * 4),
                        input_length=int(rng.integers(5, 300)), truncated=index % 50 == 7) for index in range(count)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tasks = [
        MadeTask("choices", "mul", {"plain/dev.jsonl": many_choices(120), "asked/dev.jsonl": many_choices(120, 1)}),
        MadeTask("答案", "gen", metrics=["EM", "F1", "F1_char"], files={
            "dev.jsonl": [text_item(i, "红" * (i % 9), ["红" * (i % 5 + 1), "蓝"]) for i in range(60)]}),
        MadeTask("text", "lm", {
            "a.txt": [window_item(i, 250.0 + i % 7) for i in range(90)], "b.txt": [window_item(0, 3.0)]}),
    ]
    write_run(folder, tasks, absent=["nothing"], limit=120)
    (folder / "timings.json").write_text(json.dumps({"seconds": 3723.4, "tasks": {"choices": {"seconds": 12.34}}}))
    return page_of(folder)


class TestThePage:
    def test_it_needs_nothing_from_anywhere(self, whole):
        page, source = whole
        for name, attributes in page.elements:
            assert name not in ("script", "link", "img", "iframe", "object"), name
            for key, value in attributes.items():
                assert not key.startswith("on")
                if key in ("src", "href", "xlink:href"):
                    assert value.startswith("#"), value
        outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", source)
        assert "http" not in outside and "//" not in outside and "@import" not in outside
        assert set(re.findall(r"url\((.)", outside)) <= {"#"}

    def test_references_inside_the_page_lead_somewhere(self, whole):
        page, source = whole
        targets = {attributes[key][1:] for _, attributes in page.elements for key in ("href", "xlink:href")
                   if attributes.get(key)} | set(re.findall(r"url\(#([\w-]+)\)", source))
        assert targets <= set(page.ids)

    def test_every_task_appears_in_table_and_sections(self, whole):
        page, _ = whole
        sections = [attributes["id"] for name, attributes in page.elements if name == "section"]
        assert sections == ["task-choices", "task-答案", "task-text", "task-nothing", "provenance"]
        assert "nothing" in page.text and "missing" in page.text and "data/none: no such folder" in page.text

    def test_every_kind_of_plot_is_there(self, whole):
        page, _ = whole
        titles = [attributes["aria-label"] for name, attributes in page.elements if name == "figure"]
        assert titles == [
            "Accuracy by prompt", "Calibration", "Answers by place", "Accuracy by length of the context",
            "EM by prompt", "F1_char by prompt", "EM by length of the context", "Length of the answers",
            "PPL by file", "Loss along the text"]
        assert page.count("svg") == len(titles)
        assert "plain" in page.text and "asked" in page.text

    def test_plots_take_their_colours_from_the_page(self, whole):
        _, source = whole
        drawn = "".join(re.findall(r"<svg.*?</svg>", source, re.DOTALL))
        assert "var(--main)" in drawn and not re.search(r"(fill|stroke): #", drawn)
        assert "prefers-color-scheme: dark" in source

    def test_figures_counts_and_facts(self, whole):
        page, _ = whole
        assert "[" in page.text and "Wilson 95%" in page.text and "bootstrap 95%, 1000 resamples" in page.text
        assert "1 h 02 min" in page.text and "12.3 s" in page.text and "fp32" in page.text
        assert "6 truncated" in page.text and "plain/dev.jsonl (3): 7, 57, 107" in page.text
        assert "Only the first 120 rows of every file were taken" in page.text
        assert hashlib.sha256(b"glm-small").hexdigest() in page.text and "2.13.0" in page.text

    def test_samples_are_there_without_their_texts_too(self, whole):
        page, _ = whole
        assert "The surest mistake" in page.text and "choice 2" in page.text and "红红红" in page.text

    def test_no_figure_is_no_number(self, whole):
        _, source = whole
        assert not re.search(r"\b(nan|NaN|inf)\b", source)


def test_text_stays_text(tmp_path):
    """Names, prompts, choices and answers that look like markup, or like matplotlib's formulas."""
    row = {"inputs_pretokenized": f"{ATTACK} $x_1$ ]]>", "choices_pretokenized": [ATTACK, "$\\frac"], "label": 0}
    data = tmp_path / "data"
    data.mkdir()
    (data / "<b>$x$.jsonl").write_text(json.dumps(row) + "\n")
    tasks = [MadeTask(f"one {ATTACK}".replace("/", "|"), "mul", {"<b>$x$.jsonl": [choice_item(0, 1)]}, path=str(data)),
             MadeTask("two", "gen", {"d": [text_item(0, f"{ATTACK}\x00\x1b", [ATTACK])]})]
    folder = write_run(tmp_path / "run", tasks)
    results = json.loads((folder / "results.json").read_text())
    sha256 = hashlib.sha256((data / "<b>$x$.jsonl").read_bytes()).hexdigest()
    results["tasks"][tasks[0].name]["files"]["<b>$x$.jsonl"]["sha256"] = sha256
    (folder / "results.json").write_text(json.dumps(results))
    page, source = page_of(folder)
    assert page.count("script") == 0 and page.count("b") > 0
    assert page.text.count(ATTACK) >= 4 and "$x_1$ ]]>" in page.text and "$\\frac" in page.text
    assert "\x00" not in source and "\x1b" not in source


def test_texts_of_data_that_have_changed_are_not_shown(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps(
        {"inputs_pretokenized": "another text", "choices_pretokenized": ["a", "b"], "label": 0}) + "\n")
    task = MadeTask("t", "mul", {"d.jsonl": [choice_item(0, 1)]}, path=str(tmp_path))
    page, _ = page_of(write_run(tmp_path / "run", [task]))
    assert "another text" not in page.text and "choice 1" in page.text


@pytest.mark.parametrize("tasks", [
    [MadeTask("t", "mul", {"d": [choice_item(0, 0)]})],
    [MadeTask("t", "mul", {"d": choice_items([1] * 40)})],
    [MadeTask("t", "mul", {"d": choice_items([0] * 40), "e": choice_items([0] * 40)})],
    [MadeTask("t", "mul", {"d": [choice_item(0, 3, 3, 20)]})],
    [MadeTask("t", "gen", {"d": [text_item(0, "", [""])]})],
    [MadeTask("t", "gen", {"d": [text_item(i, "a", ["a"]) for i in range(40)]})],
    [MadeTask("t", "gen", {"d": [text_item(i, "a" * 2000, ["b"]) for i in range(40)]})],
    [MadeTask("t", "lm", {"d": [window_item(0, 12.0)]})],
    [MadeTask("t", "lm", {"d": [window_item(0, 1e9)], "e": [window_item(0, 0.0)]})],
    [MadeTask("t", "mul", {f"{n}/{m}": choice_items([n % 2, m % 2, 1]) for n in range(12) for m in range(5)})],
], ids=["one item", "all right", "all wrong", "many choices", "empty answer", "all alike", "long answers", "one window",
        "loss without bounds", "sixty files"])  # fmt: skip
def test_odd_runs_have_a_report_too(tmp_path, tasks):
    page, source = page_of(write_run(tmp_path, tasks))
    assert "Evaluation of glm-small" in page.text and page.count("svg") >= 1
    assert not re.search(r"\b(nan|NaN|inf)\b", source)


def test_choices_that_nothing_makes_right_are_neither_right_nor_wrong(tmp_path):
    items = [choice_item(index, 1, None) for index in range(40)]
    task = MadeTask("t", "mul", {"d": items})
    metric = METRICS["Accuracy"]
    without_label = {"Accuracy": replace(metric, statistics=lambda item: (float(item["prediction"] == 1), 1.0))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.recorded_runs.METRICS", without_label)
        folder = write_run(tmp_path, [task])
    page, _ = page_of(folder)
    assert "→" in page.text and "✗" not in page.text and "Calibration" not in page.text
    assert "wrong" not in page.text and "The last item" in page.text


def test_a_run_of_missing_tasks_only(tmp_path):
    page, _ = page_of(write_run(tmp_path, [], absent=["one", "two"]))
    assert page.count("svg") == 0 and page.text.count("missing") >= 4


def test_a_task_whose_module_is_gone_keeps_its_figures(tmp_path):
    folder = write_run(tmp_path, [MadeTask("t", "mul", {"d": choice_items([1, 0])})])
    results = json.loads((folder / "results.json").read_text())
    results["tasks"]["t"]["config"]["module"] = "no_such_module.Task"
    (folder / "results.json").write_text(json.dumps(results))
    page, _ = page_of(folder)
    assert "50.00" in page.text and "Calibration" in page.text


def test_the_same_run_gives_the_same_page(tmp_path):
    write_run(tmp_path, [MadeTask("t", "mul", {"d": many_choices(60)})])
    assert write_report(tmp_path).read_bytes() == write_report(tmp_path).read_bytes()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no results.json"):
        write_report(tmp_path)


def test_what_html_cannot_hold_is_replaced(tmp_path):
    name = "a\x00b\x9bc"
    _, source = page_of(write_run(tmp_path / "run", [MadeTask(
        "t", "gen", {"dev.jsonl": [text_item(0, name, ["x"])]})]))
    assert "a\ufffdb\ufffdc" in source and "\x00" not in source


def test_a_metric_says_what_a_guess_would_reach_and_where_its_line_ends(tmp_path, monkeypatch):
    items = {"dev.jsonl": many_choices(8)}
    metric = replace(METRICS["Accuracy"], name="Half", scale=200.0, chance=lambda items: 10.0 * len(items))
    monkeypatch.setitem(METRICS, "Half", metric)
    folder = write_run(tmp_path / "run", [MadeTask("t", "mul", items, metrics=["Half"])])
    marks = [attributes["style"] for name, attributes in page_of(folder)[0].elements if name == "u"]
    assert marks == ["left:40.00%"]  # 80 of 200
    monkeypatch.setitem(METRICS, "Half", replace(metric, scale=None))
    assert page_of(folder)[0].count("u") == 0
