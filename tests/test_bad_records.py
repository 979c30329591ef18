"""What fuzzing found in the files that runs leave behind (test_fuzz_records.py), each as its smallest input."""

import json

import pytest

from evaluation.compare import compare
from generation.prompt_file import PromptLine
from generation.records import Results, file_names
from runtime.errors import UserError
from tests.recorded_runs import MadeTask, choice_item, write_run
from tools.converting.manifest import FileFacts, Manifest, facts_from_json, read_manifest, write_manifest


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / name, [MadeTask("quiz", "mul", {"dev.jsonl": [choice_item(0, 0), choice_item(1, 1)]})])
            for name in ("one", "other")]


def changed(path, change):
    value = json.loads(path.read_text(encoding="utf-8"))
    change(value["tasks"]["quiz"])
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("change, message", [
    (lambda task: task.pop("sha256"), "tasks.quiz.sha256: is missing"),
    (lambda task: task["files"]["dev.jsonl"].update(n="2"), "tasks.quiz.files.dev.jsonl.n: must be a whole number, is"),
    (lambda task: task["files"]["dev.jsonl"].update(n=0), "tasks.quiz.files.dev.jsonl: has no items"),
    (lambda task: task["groups"]["all"]["Accuracy"].update(average=float("nan")), "average: must be a number or null"),
    (lambda task: task["groups"]["all"]["Accuracy"].update(interval=[1]), "has an interval without two ends"),
    (lambda task: task["config"].update(type="x"), "tasks.quiz.config.type: is no type of a task"),
    (lambda task: task["files"].update({"../../secret": task["files"]["dev.jsonl"]}),
     "'../../secret' is no path below the data"),
])
def test_results_of_a_run(runs, change, message):
    changed(runs[1] / "results.json", change)
    with pytest.raises(UserError) as caught:
        compare(*runs)
    assert message in str(caught.value) and "results.json: damaged, " in str(caught.value)


@pytest.mark.parametrize("line, message", [
    ("[" * 100_000, "not valid JSON"), ('{"index": true}', "index: must be a whole number, is true"),
    ('{"index": 0, "targets": 1}', "targets: must be a list, is 1"),
])
def test_samples_of_a_run(runs, line, message):
    (runs[1] / "samples" / "quiz" / "dev.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        compare(*runs)


LINE = {"index": 0, "prompt": "a", "text": "b", "blanks": ["b"], "beams": [{"text": "b"}], "finish_reason": "stop"}


@pytest.mark.parametrize("change", [{"index": "0"}, {"index": 0.5}, {"text": None}, {"beams": 1}])
def test_answers_that_are_resumed(tmp_path, change):
    (tmp_path / "results.jsonl").write_text(json.dumps(LINE | change) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="results.jsonl:1: not a line of results"), \
            Results(tmp_path, [PromptLine(0, 1, "a")], resume=True) as results:
        results.open({})


@pytest.mark.parametrize("settings", ["[]", '{"facts": []}', "[" * 100_000])
def test_settings_that_are_resumed(tmp_path, settings):
    (tmp_path / "results.jsonl").write_text(json.dumps(LINE) + "\n", encoding="utf-8")
    (tmp_path / "settings.json").write_text(settings, encoding="utf-8")
    with pytest.raises(UserError, match="settings.json:.*cannot be resumed"), \
            Results(tmp_path, [PromptLine(0, 1, "a")], resume=True) as results:
        results.open({"seed": 1})


def test_many_equal_ids_get_their_names_at_once():
    """Counting from the first one each time would take minutes."""
    names = file_names([PromptLine(index, index, "a", "same") for index in range(100_000)])
    assert len(set(names)) == 100_000 and names[:2] == ["same.txt", "same-2.txt"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_names_files_outside(tmp_path, name):
    write_manifest(tmp_path / "manifest.json", Manifest({name: FileFacts(1, "sha256:0")}))
    with pytest.raises(UserError, match="which is no file of its folder"):
        read_manifest(tmp_path / "manifest.json")


@pytest.mark.parametrize("tensors", [{"a": "-5 2 00"}, {"a": "5 -2 00"}, {"a": "5 10 00", "b": "5 10 00"}])
def test_regions_that_no_file_has(tensors):
    with pytest.raises(ValueError):
        facts_from_json({"bytes": 100, "hash": "sha256:0", "structure": "0", "tensors": tensors})
