"""docs/evaluate-your-own-tasks.md: its files make tasks that run, its tables and messages are those of the code."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from commands import compare
from commands.evaluate import main, parser
from evaluation.config import CONFIGS, FOUND_OUT, TaskType
from evaluation.metrics import METRICS
from evaluation.task_file import load_task
from evaluation.tasks import GenerationTask, Task
from tools import prepare_data

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "evaluate-your-own-tasks.md").read_text(encoding="utf-8")
HAS_MODEL = (ROOT / "checkpoints" / "glm-small" / "latest").exists()

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.S | re.M)
TABLE = re.compile(r"^\| (.+?) \|$", re.M)


def named_files():
    """{path: content} of all blocks before which, in the last line of text, a file is named last."""
    found = {}
    for block in BLOCK.finditer(TEXT):
        line = TEXT[:block.start()].rstrip("\n").rpartition("\n\n")[2].replace("\n", " ")
        name = [name for name in re.findall(r"`(my_tasks/[\w./]+)`", line)]
        if name and block[1] != "bash":
            assert name[-1] not in found
            found[name[-1]] = block[2]
    return found


FILES = named_files()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The example's files, in the current folder."""
    for name, content in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(heading):
    """The cells of the rows of the first table that has this heading."""
    start = TEXT.index(f"| {heading} |")
    table = TEXT[start:TEXT.index("\n\n", start)].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def test_the_folder_shown_is_the_example():
    shown = set(re.findall(r"[\w]+\.(?:yaml|py)", TEXT[:TEXT.index("## A first task")]))
    assert shown == {Path(name).name for name in FILES if name.endswith((".yaml", ".py"))}


def test_the_examples_are_found_ready(folder, capsys):
    assert main(["my_tasks", "--check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ready  fruit: 2 files, 4 rows",
        "ready  per-length: 2 files, 4 rows",
        "ready  story: 1 file, 2 rows",
        "ready  text: 1 file, 1 row",
    ]


@pytest.mark.skipif(not HAS_MODEL, reason="the embedded model is not in this clone")
def test_the_examples_run(folder):
    command = [sys.executable, "-m", "evaluation", "my_tasks", "--output", "results", "--device", "cpu", "--fp32"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    tasks = json.loads((folder / "results" / "results.json").read_text(encoding="utf-8"))["tasks"]
    assert {name: [*task["groups"]] for name, task in tasks.items()} == {
        "fruit": ["test"], "per-length": ["all"], "story": ["all"], "text": ["all"]}
    assert [*tasks["fruit"]["groups"]["test"]] == ["Accuracy", "measures.margin"]
    assert [*tasks["per-length"]["groups"]["all"]] == ["Accuracy", "measures.yes_f1"]
    assert "Finish plain/test.jsonl, Accuracy = " in done.stdout
    fields = {name: set(re.findall(r"`(\w+)`", text)) for name, text in rows("type | fields of an item")}
    for name, kind in (("fruit", "mul"), ("story", "gen"), ("text", "lm")):
        path = next((folder / "results" / "samples" / name).rglob("*.jsonl"))
        item = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        assert set(item) == fields[kind] | {"index", "truncated", "overlong", "input_length"}


def test_items_are_judged_per_length(folder):
    """The class of the example, on log-probabilities of which the longer choice's is lower, but not per character."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("per_length_of_the_docs", folder / "my_tasks" / "per_length.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Tokens:
        def command(self, name):
            return 1

    class Asked:
        input_length, truncated, overlong = 3, False, False

    task = module.PerLength(load_task("my_tasks/per_length.yaml", "data"), Tokens())
    example = type("Example", (), {"index": 0, "label": 1, "choices": [[5], [6, 7]], "num_examples": None,
                                   "row": {"choices_pretokenized": ["no", "certainly"]}})
    item = task.item(example, Asked, {"log_probs": [-2.0, -3.0]})
    assert (item["prediction"], item["scores"]) == (1, [-1.0, -3.0 / 9])


# The tables


def test_every_key_is_listed_with_its_default():
    listed = {cells[0].strip("`"): cells[2] for cells in rows("key | value | default | meaning")}
    known = {}
    for kind in CONFIGS.values():
        for field in dataclasses.fields(kind):
            known.setdefault(field.name, field)
    assert [*listed] == [name for name in known if name not in FOUND_OUT]
    for name, default in listed.items():
        field = known[name]
        if name in ("name", "type", "path"):
            assert default == "needed"
        elif name in ("module", "options", "fewshot_file", "stop"):
            assert default == "none"
        elif name == "metrics":
            assert default == "`[Accuracy]`; gen `[EM, F1]`; lm `[PPL]`; other none"
        else:
            shown = default.strip("`").replace("true", "True").replace("false", "False").strip('"')
            assert shown.replace("\\n", "\n") == str(field.default)


def test_default_metrics_are_as_said():
    def default(kind):
        (field,) = (field for field in dataclasses.fields(CONFIGS[kind]) if field.name == "metrics")
        return field.default_factory()

    assert default(TaskType.MULTICHOICE) == ["Accuracy"]
    assert default(TaskType.GENERATION) == ["EM", "F1"]
    assert default(TaskType.LANGUAGE_MODEL) == ["PPL"]
    assert default(TaskType.OTHER) == []


def test_keys_belong_to_the_types_that_are_named():
    for cells in rows("key | value | default | meaning"):
        name, meaning = cells[0].strip("`"), cells[3]
        owners = {kind.value for kind, config in CONFIGS.items()
                  if name in {field.name for field in dataclasses.fields(config)}}
        if name != "use_multitask_encoding":
            kinds = re.match(r"((?:(?:mul|gen|lm)(?:, )?)+)[,:]", meaning)
            assert owners == (set(kinds[1].split(", ")) if kinds else {"mul", "gen", "lm", "other"}), name


def test_every_metric_is_listed_with_its_types():
    listed = {name: cells[1] for cells in rows("name | types | figure") for name in re.findall(r"`(\w+)`", cells[0])}
    assert listed == {name: ", ".join(kind for kind in metric.types if kind != "other")
                      for name, metric in METRICS.items()}


def test_every_method_that_is_listed_is_there():
    for method, _ in rows("method | what it does"):
        for name in re.findall(r"`(\w+)\(", method):
            assert hasattr(Task, name) or hasattr(GenerationTask, name), name


def test_flags_exist():
    parsers = parser(), compare.parser(), prepare_data.make_parser()
    known = {flag for each in parsers for action in each._actions for flag in action.option_strings}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", TEXT)) <= known


# The messages: what is done to the files above, in the order of the lines shown

MISTAKES = [
    ("fruit.yaml", "metrics:", "metric:"),
    ("fruit.yaml", "type: mul", "type: mul\nnum_beams: 2"),
    ("fruit.yaml", "[Accuracy,", "[Acuracy,"),
    ("fruit.yaml", "[Accuracy,", "[EM,"),
    ("fruit.yaml", "type: mul", "type: mul\nmax_seq_length: 1k"),
    ("story.yaml", "use-task-mask: true", "unidirectional: true"),
    ("per_length.yaml", "unit: character", "unit: word"),
    ("fruit.yaml", "/test.jsonl", "/tests.jsonl"),
    ("data/fruit/plain/test.jsonl", '"label": 0', '"label": 2'),
]


def test_the_messages_are_what_is_told(folder, capsys):
    (shown,) = [block[2].splitlines() for block in BLOCK.finditer(TEXT) if block[2].startswith("error:")]
    told = []
    for name, before, after in MISTAKES:
        path = folder / "my_tasks" / name
        original = path.read_text(encoding="utf-8")
        assert before in original
        path.write_text(original.replace(before, after), encoding="utf-8")
        task = "my_tasks/fruit.yaml" if name.endswith("jsonl") else f"my_tasks/{name}"
        assert main([task, "--check"]) == 2
        told += capsys.readouterr().err.splitlines()
        path.write_text(original, encoding="utf-8")
    assert main(["my_tasks/task", "--check"]) == 2
    assert told + capsys.readouterr().err.splitlines() == shown


def test_all_faults_are_told_at_once(folder, capsys):
    shutil.copy("my_tasks/fruit.yaml", "my_tasks/again.yaml")
    (folder / "my_tasks" / "none.yaml").write_text("name: none\ntype: mull\npath: ./data\n", encoding="utf-8")
    assert main(["my_tasks", "--check"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: my_tasks/fruit.yaml: name: 'fruit' is the name of the task in my_tasks/again.yaml too",
        "error: my_tasks/none.yaml: type: 'mull' is none, did you mean 'mul'?; allowed: mul, gen, lm, other",
    ]
