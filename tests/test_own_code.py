"""Mistakes in a class of one's own: one line with task, file, row and the line of the class, whichever method it is."""

import json

import pytest

import commands.evaluate as command
from evaluation.recorded import RecordedRun
from runtime.errors import UserError
from tests.tiny_tasks import arguments, write_rows

BEGIN = """\
from dataclasses import replace
from evaluation.metrics import METRICS, Metric
from evaluation.tasks import GenerationTask, MultiChoiceTask
from runtime.errors import UserError

def figure(sums):
    return [][0]

class Own({base}):
"""
ROW = {"inputs_pretokenized": "They walked to", "choices_pretokenized": ["and", "today"], "label": 0,
       "targets_pretokenized": ["and"]}


@pytest.fixture
def run(tmp_path, capsys):
    """body of the class, type of the task -> its fault, without the folder's name; None: scored."""

    def run(body, kind="mul", more=""):
        write_rows(tmp_path / "data" / "quiz" / "rows.jsonl", [ROW, ROW | {"inputs_pretokenized": "She saw"}])
        (tmp_path / "tasks").mkdir(exist_ok=True)
        (tmp_path / "tasks" / "quiz.yaml").write_text(
            f"name: quiz\ntype: {kind}\npath: quiz\nmodule: own.Own\nmax_seq_length: 64\n"
            f"{'max_gen_length: 2' if kind == 'gen' else ''}\n{more}", encoding="utf-8")
        base = "GenerationTask" if kind == "gen" else "MultiChoiceTask"
        (tmp_path / "tasks" / "own.py").write_text(
            BEGIN.format(base=base) + "    " + body.replace("\n", "\n    ") + "\n", encoding="utf-8")
        code = command.main(arguments(tmp_path))
        said = capsys.readouterr().err
        if code == 0:
            return None
        assert code == 2 and "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        return line.replace(f"{tmp_path}/", "")

    return run


@pytest.mark.parametrize("kind, body, message", [
    ("mul", "def __init__(self, *a):\n    1 / 0", "task quiz: ZeroDivisionError: division by zero (tasks/own.py:11, in "
                                                 "__init__)"),
    ("mul", "@classmethod\ndef check(cls, config, path):\n    return {}['a']",
     "task quiz: data/quiz/rows.jsonl: KeyError: 'a' (tasks/own.py:12, in check)"),
    ("mul", "@classmethod\ndef check(cls, config, path):\n    pass",
     "task quiz: data/quiz/rows.jsonl: Own.check must return the number of the file's rows; it returned nothing"),
    ("mul", "@classmethod\ndef fault(cls, row):\n    return row['x']",
     "task quiz: data/quiz/rows.jsonl:1: KeyError: 'x' (tasks/own.py:12, in fault)"),
    ("mul", "@classmethod\ndef fault(cls, row):\n    return 3",
     "task quiz: data/quiz/rows.jsonl:1: Own.fault must return text or None; it returned a value of the type int"),
    ("mul", "def examples(self, path, limit=None):\n    raise RuntimeError('no')",
     "task quiz: data/quiz/rows.jsonl: RuntimeError: no (tasks/own.py:11, in examples)"),
    ("mul", "def examples(self, path, limit=None):\n    return [1]",
     "task quiz: data/quiz/rows.jsonl: Own.examples must return a list of evaluation.data.Example; it returned"),
    ("mul", "def request(self, example):\n    assert example.index < 1, 'second'\n    return super().request(example)",
     "data/quiz/rows.jsonl: item 1: task quiz: AssertionError: second (tasks/own.py:11, in request)"),
    ("mul", "def request(self, example):\n    pass",
     "data/quiz/rows.jsonl: item 0: request: Own.request must return a ScoreRequest or a GenerateRequest; it returned "
     "nothing (tasks/own.py:10)"),
    ("mul", "def request(self, example):\n    return replace(super().request(example), context=(10**6,))",
     "item 0: Own.request must return a request that a model can answer (context: must be a tuple of at least one"),
    ("mul", "def request(self, example):\n    return replace(super().request(example), continuations=((), ()))",
     "a request that a model can answer (continuations[0]: must be a tuple of at least one token id"),
    ("gen", "def params(self):\n    return None", "a model can answer (params: must be SamplingParams or Beam"),
    ("gen", "def invalid_ids(self):\n    return 'abc'", "(invalid_ids: must be a tuple of token ids)"),
    ("gen", "def predicted_ids(self, beams):\n    return None",
     "task quiz: data/quiz/rows.jsonl: item 0: Own.predicted_ids must return a list of token ids; it returned nothing"),
    ("mul", "def item(self, example, request, answer):\n    return 1 / 0",
     "task quiz: data/quiz/rows.jsonl: item 0: ZeroDivisionError: division by zero (tasks/own.py:11, in item)"),
    ("mul", "def item(self, example, request, answer):\n    raise SystemExit(0)", "item 0: SystemExit: 0 ("),
    ("mul", "def item(self, example, request, answer):\n    super().item(example, request, answer)",
     "task quiz: data/quiz/rows.jsonl: item 0: Own.item must return a dictionary, the line of samples/; it returned "
     "nothing (tasks/own.py:10)"),
    ("mul", "def item(self, example, request, answer):\n    return {'prediction': [1]}",
     "item 0: Own.item must return an item as docs/results.md describes it (index: is missing)"),
    ("mul", "def items(self, examples, requests, answers):\n    return None", "Own.items must return a list of dict"),
    ("mul", "def metrics(self, items):\n    return {'A': 3}", "Own.metrics must return a mapping of names to eval"),
    ("mul", "def groups(self, files):\n    return {}", "Own.groups must return groups that hold every file (rows.j"),
    ("mul", "extra_metrics = {'A': Metric('A', lambda item: (1.0,), figure)}\ndefault_metrics = ('A',)",
     "task quiz: figures: IndexError: list index out of range (tasks/own.py:7, in figure)"),
    ("mul", "default_metrics = 'Accuracy'", "own.Own: default_metrics: must be a tuple such as ('Accuracy',), is"),
    ("mul", "extra_metrics = {'A': 3}", "module: own.Own: extra_metrics: must map names to evaluation.metrics.Metric"),
    ("mul", "@classmethod\ndef fault(cls, row):\n    raise UserError('as I say it')", "error: as I say it"),
])
def test_a_mistake_in_any_method(run, kind, body, message):
    assert message in run(body, kind)


def test_a_class_without_a_mistake(run, tmp_path):
    assert run("def item(self, *each):\n    return super().item(*each) | {'own': [1, {'a': None}]}") is None


def test_metrics_of_a_class_that_fail_later(run, tmp_path):
    """As in a comparison, when the file has been changed."""
    assert run("pass") is None
    entry = tmp_path / "out" / "results.json"
    results = json.loads(entry.read_text(encoding="utf-8"))
    (tmp_path / "tasks" / "later.py").write_text("from evaluation.tasks import MultiChoiceTask\n"
                                                 "class Own(MultiChoiceTask):\n    def metrics(self, items):\n"
                                                 "        return 1 / 0\n", encoding="utf-8")
    results["tasks"]["quiz"]["config"]["module"] = "later.Own"
    entry.write_text(json.dumps(results), encoding="utf-8")
    recorded = RecordedRun(tmp_path / "out", own_code=True)
    with pytest.raises(UserError, match=r"task quiz: metrics: ZeroDivisionError: .* \(.*later.py:4, in metrics\)"):
        recorded.metrics("quiz", recorded.items("quiz", "rows.jsonl"))
