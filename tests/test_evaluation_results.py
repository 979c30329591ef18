"""results.json and samples/: how figures come together, and that docs/results.md says what is written."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import commands.evaluate as command
import glm.loading  # noqa: F401 (SAT's logger keeps the standard error that it finds: pytest's of one test must not be it)
from evaluation.config import GenerationTaskConfig, MultiChoiceTaskConfig, as_record
from evaluation.metrics import METRICS
from evaluation.output import sample_names, write_json, write_samples
from evaluation.requests import GenerateRequest, ScoreRequest
from evaluation.results import Clock, FileScores, missing_record, rounded, task_record
from evaluation.table import task_lines
from generation.params import SamplingParams
from runtime.errors import UserError
from tests.tiny_tasks import arguments, results, samples, write_tasks

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "results.md"
CONFIG = MultiChoiceTaskConfig(name="colours", path="data/colours", source=Path("tasks/colours.yaml"))


def scores(right: int, rows: int, expected: int | None = None, truncated=(), metrics=("Accuracy",)) -> FileScores:
    items = [{"index": index, "prediction": 0, "label": int(index >= right)} for index in range(rows)]
    return FileScores("ab", expected or rows, rows, truncated, items, {name: METRICS[name] for name in metrics})


# Figures


def test_average_goes_by_rows_and_max_and_median_by_files():
    files = {"a": scores(3, 4), "b": scores(1, 2), "c": scores(0, 10, truncated=[3, 4])}
    record = task_record(CONFIG, "cd", {"all": ["a", "b", "c"]}, files)
    group = record["groups"]["all"]["Accuracy"]
    assert (group["max"], group["median"], group["average"]) == (75.0, 50.0, 25.0)
    assert group["n"] == record["counts"] == {"expected": 16, "scored": 16, "truncated": 2, "overlong": 0}
    assert group["interval"][0] < 25 < group["interval"][1]
    assert record["files"]["c"]["truncated_items"] == [3, 4]
    low, high = record["files"]["b"]["intervals"]["Accuracy"]
    assert low == pytest.approx(9.4531, abs=1e-3) and high == pytest.approx(90.5469, abs=1e-3)  # Wilson, 1 of 2


def test_groups_may_share_files_and_metrics_may_be_of_some_files_only():
    files = {"a": scores(1, 2), "b": scores(2, 2, expected=9, metrics=("Accuracy", "F1_mul"))}
    groups = {"first": ["a"], "second": ["b"], "Overall": ["a", "b"]}
    record = task_record(CONFIG, "cd", groups, files)
    assert {path: file["group"] for path, file in record["files"].items()} == {"a": "first", "b": "second"}
    overall = record["groups"]["Overall"]
    assert overall["Accuracy"]["average"] == 75 and overall["Accuracy"]["n"]["expected"] == 11
    assert overall["F1_mul"]["n"] == {"expected": 9, "scored": 2, "truncated": 0, "overlong": 0}
    lines = task_lines(CONFIG, {"first": ["a"], "second": ["b"]}, record, 1.25)
    assert lines == [
        "    Evaluating group first:",
        "        Finish a, Accuracy = 50.000",
        "    Evaluating group second:",
        "        Finish b, Accuracy = 100.000, F1_mul = 100.000",
        "Evaluation results of task colours:",
        "    Group first Accuracy: max = 50.000, median = 50.000, average = 50.000",
        "      Group second: ",
        "        Metric Accuracy: max = 100.000, median = 100.000, average = 100.000",
        "        Metric F1_mul: max = 100.000, median = 100.000, average = 100.000",
        "      Group Overall: ",
        "        Metric Accuracy: max = 100.000, median = 75.000, average = 75.000",
        "        Metric F1_mul: max = 100.000, median = 100.000, average = 100.000",
        "Finish task colours in 1.2s."]


def test_figures_have_six_digits_and_what_is_no_number_is_null():
    value = {"a": 100 / 3, "b": [12035344.605, 1e-9 / 3], "c": float("nan"), "d": True, "e": 123456789, "f": None}
    assert rounded(value) == {"a": 33.3333, "b": [12035300.0, 3.33333e-10], "c": None, "d": True, "e": 123456789,
                              "f": None}


def test_settings_of_a_task_are_plain_values():
    config = GenerationTaskConfig(name="x", path="p", file_pattern={"dev": "*.jsonl"}, source=Path("x.yaml"))
    values = as_record(config)
    assert values["type"] == "gen" and values["file_pattern"] == {"dev": "*.jsonl"} and values["max_gen_length"] == 128
    assert "source" not in values and "options" not in values
    assert json.loads(json.dumps(values)) == values


# Files


def test_every_task_has_a_sample_folder_of_its_own_inside_samples():
    names = sample_names(dict.fromkeys(["a b", "../up", ".hidden", "x/y", "x_y", "中文"], ("d.jsonl",)))
    assert list(names.values()) == [f"{folder}/d.jsonl" for folder in (
        "a b", "__up", "_hidden", "x_y", "x_y-2", "中文")]


def test_samples_are_named_after_their_files_and_no_two_the_same():
    names = sample_names({"x": ["a/b.jsonl", "c.txt", "d", "d.jsonl", "d.jsonl.jsonl"]})
    assert list(names.values()) == [
        f"x/{name}" for name in ("a/b.jsonl", "c.txt.jsonl", "d.jsonl", "d.jsonl.jsonl", "d.jsonl.jsonl.jsonl")]


def test_samples_keep_all_digits(tmp_path):
    path = tmp_path / "deep" / "er.jsonl"
    items = [{"index": 0, "log_probs": [-0.12345678901234567], "text": "门\n"}, {"index": 1}]
    write_samples(path, items)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == items


@pytest.mark.parametrize("value", [float("nan"), {1, 2}])
def test_items_that_json_cannot_hold_are_named(tmp_path, value):
    with pytest.raises(UserError, match=r"x.jsonl: the task's items hold a value that JSON cannot: "):
        write_samples(tmp_path / "x.jsonl", [{"index": 0, "value": value}])


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_stays(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="results.json: No space left on device; mend it, and the same command goes on"):
        write_json(path, {"new": 1})
    monkeypatch.undo()
    assert json.loads(path.read_text()) == {"old": 1} and [each.name for each in tmp_path.iterdir()] == ["results.json"]


# The document


def documented(section: str) -> list[list[str]]:
    """The rows of the table in a section of docs/results.md, code marks taken off."""
    text = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().strip("`") for cell in row] for row in rows[2:]]


def fields(value: object, path: str = "") -> set[str]:
    """Every field of results.json as the document names it."""
    names = {"tasks": "TASK", "tasks.TASK.groups": "GROUP", "tasks.TASK.groups.GROUP": "METRIC",
             "tasks.TASK.files": "FILE", "tasks.TASK.files.FILE.metrics": "METRIC",
             "tasks.TASK.files.FILE.intervals": "METRIC"}
    whole = {"settings.model", "versions", "tasks.TASK.config"}
    if not isinstance(value, dict) or path in whole:
        return {path}
    return {field for key, each in value.items()
            for field in fields(each, ".".join(filter(None, (path, names.get(path, key)))))}


TYPES = {"int": int, "str": str, "bool": bool, "float": float, "object": dict, "[int]": list, "[low, high]": list,
         "int or null": (int, type(None)), "str or null": (str, type(None)),
         "number or null": (int, float, type(None))}


def values_of(value: object, path: list[str]) -> list[object]:
    if not path:
        return [value]
    keys = value if path[0].isupper() else [path[0]] if path[0] in value else []
    return [found for key in keys for found in values_of(value[key], path[1:])]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write_tasks(tmp_path_factory.mktemp("run"), rows=3)
    (folder / "tasks" / "none.yaml").write_text("name: none\ntype: mul\npath: nowhere\n")
    assert command.main([*arguments(folder), "--allow-missing"]) == 0
    return folder


def test_the_document_lists_every_field_of_results_json(run):
    found = results(run)
    rows = documented("results.json")
    assert sorted(fields(found)) == sorted(row[0] for row in rows)
    assert found["schema"] == 1
    for path, kind, _ in rows:
        for value in values_of(found, path.split(".")):
            assert isinstance(value, TYPES[kind]), f"{path}: {value!r}"
            if kind == "[low, high]":
                low, high = value
                assert low is None or low <= high
    assert re.fullmatch(r"[0-9a-f]{64}", found["checkpoint"]["sha256"])


def test_the_document_lists_every_field_of_the_samples(run):
    wanted: dict[str, set[str]] = {}
    for task, field, _ in documented("samples"):
        wanted.setdefault(task, set()).add(field)
    kinds = {"choices": "mul", "writing": "gen", "text": "lm"}
    for path, items in samples(run).items():
        assert set(items[0]) == wanted["all"] | wanted[kinds[path.split("/")[0]]], path


def test_the_document_names_every_file_that_is_left_behind(run):
    text = DOCUMENT.read_text(encoding="utf-8")
    for path in (run / "out").iterdir():
        assert f"`{path.name}" in text or path.name == ".lock", path
    timings = json.loads((run / "out" / "timings.json").read_text())
    for name in (set(timings) | set(timings["tasks"]["text"])) - {"schema", "tasks"}:
        assert f"`{name}`" in text.split("## timings.json")[1]


def test_the_tokens_of_a_run_are_those_that_its_samples_count(run):
    """Beside a text stand its mask, and before an answer sop, too."""
    timings = json.loads((run / "out" / "timings.json").read_text())["tasks"]
    items = {name: [item for path, each in samples(run).items() if path.startswith(name) for item in each]
             for name in ("text", "writing")}
    assert timings["text"]["tokens"] == sum(item["input_length"] + 1 for item in items["text"])
    assert timings["writing"]["tokens"] == sum(item["input_length"] + 2 + len(item["beams"][0])
                                               for item in items["writing"])


def test_rates_are_of_what_this_run_computed_and_of_its_seconds():
    scored = ScoreRequest((1, 2, 3), ((4, 5), (6,)), 9, 3, 0)  # 9 4 and 9 are fed behind the context
    written = GenerateRequest((1, 2), SamplingParams(top_k=1), 8, (0,))
    work = SimpleNamespace(config=SimpleNamespace(name="x"), requests=[scored, written, written], max_tokens=64,
                           batches=[[0], [1], [2]])
    clock = Clock()
    clock.task(work, {0, 2}, 4.0, [{}, {"beams": [[5] * 7]}, {"beams": [[5] * 3, [6] * 5]}])
    assert clock._tasks["x"] == {"seconds": 4.0, "items": 3, "computed": 2, "items_per_second": 0.5, "tokens": 11,
                                 "tokens_per_second": 2.75, "max_batch_tokens": 64}
    clock.task(work, set(), 4.0, [{}] * 3)
    assert clock._tasks["x"]["tokens"] == 0 and clock._tasks["x"]["tokens_per_second"] is None


def test_missing_tasks_are_listed(run):
    record = results(run)["tasks"]["none"]
    assert record == missing_record(CONFIG, record["sha256"], record["reason"]) | {
        "file": str(run / "tasks" / "none.yaml"), "config": record["config"]}
