"""Texts longer than the model takes: cut by default, counted and told of where the task file lets them be."""

from pathlib import Path

import pytest

import commands.evaluate as command
from evaluation.task_file import load_task
from runtime.errors import UserError
from tests.faults import said
from tests.golden_data import SHAPE
from tests.tiny_tasks import MODEL, results, samples, write_rows

ROOT = Path(__file__).resolve().parent.parent
LONGEST = SHAPE["max_sequence_length"]
TEXT = "the old town " * 250  # between 512 and 2000 tokens
KINDS = {"mul": {"inputs_pretokenized": TEXT, "choices_pretokenized": ["and", "today"], "label": 0},
         "gen": {"inputs_pretokenized": TEXT, "targets_pretokenized": ["and"]}}


def write_tasks(folder, more):
    """A task of every kind, with a long text and, but for the lm task, a short one; more: a line of the task files."""
    for kind, row in KINDS.items():
        write_rows(folder / "data" / kind / "rows.jsonl", [row, row | {"inputs_pretokenized": "the house"}])
    (folder / "data" / "lm").mkdir()
    (folder / "data" / "lm" / "text.jsonl").write_text(TEXT, encoding="utf-8")
    (folder / "tasks").mkdir()
    for kind, last in (("mul", ""), ("gen", "max_gen_length: 3"), ("lm", "")):
        (folder / "tasks" / f"{kind}.yaml").write_text(
            f"name: {kind}\ntype: {kind}\npath: {kind}\n{last}\n{more}\n", encoding="utf-8")
    return folder


def evaluated(folder, *more):
    assert command.main([*MODEL, "--data-path", str(folder / "data"), "--output", str(folder / "out"),
                         str(folder / "tasks"), *more]) == 0
    tasks = results(folder)["tasks"]
    return {kind: (task["counts"]["truncated"], task["counts"]["overlong"]) for kind, task in tasks.items()}


def test_without_a_word_in_the_task_file_the_model_s_length_cuts(tmp_path, capsys):
    folder = write_tasks(tmp_path, "")
    assert evaluated(folder) == {"mul": (1, 0), "gen": (1, 0), "lm": (0, 0)}
    for kind in ("mul", "gen"):
        long, short = samples(folder)[f"{kind}/rows.jsonl"]
        assert long["truncated"] and not short["truncated"] and LONGEST - 10 < long["input_length"] < LONGEST
    assert samples(folder)["lm/text.jsonl"][0]["input_length"] == LONGEST - 1
    captured = capsys.readouterr()
    assert "warning" not in captured.err and " long " not in captured.out.split("95% interval")[0]


def test_choices_are_longer_together_than_the_model_takes(tmp_path, capsys):
    """Each of them goes on from the text by itself, so all of them may be longer than a model takes."""
    row = KINDS["mul"] | {"inputs_pretokenized": "the house", "choices_pretokenized": [TEXT[:1200], TEXT[:900]]}
    write_rows(tmp_path / "data" / "mul" / "rows.jsonl", [row, row | {"inputs_pretokenized": TEXT}])
    (tmp_path / "tasks").mkdir()
    task = tmp_path / "tasks" / "mul.yaml"
    task.write_text("name: mul\ntype: mul\npath: mul\n", encoding="utf-8")
    assert evaluated(tmp_path) == {"mul": (1, 0)}
    short, long = samples(tmp_path)["mul/rows.jsonl"]
    most = max(short["choice_lengths"])
    assert sum(short["choice_lengths"]) > LONGEST > most and not short["truncated"]
    assert long["truncated"] and long["input_length"] == LONGEST - 2 - most
    task.write_text("name: mul\ntype: mul\npath: mul\nmax_seq_length: 512\n", encoding="utf-8")
    assert command.main([*MODEL, "--data-path", str(tmp_path / "data"), "--output", str(tmp_path / "said"),
                         str(task)]) == 2
    assert "max_seq_length 512 leaves no room for the text beside" in capsys.readouterr().err


def test_a_longer_max_seq_length_is_kept_and_told_of(tmp_path, capsys):
    folder = write_tasks(tmp_path, "max_seq_length: 2000")
    assert evaluated(folder) == {"mul": (0, 1), "gen": (0, 1), "lm": (0, 1)}
    assert [item["overlong"] for item in samples(folder)["mul/rows.jsonl"]] == [True, False]
    assert results(folder)["tasks"]["mul"]["files"]["rows.jsonl"]["overlong_items"] == [0]
    captured = capsys.readouterr()
    lines = said(captured.err).splitlines()
    assert len(lines) == 3 and lines[0].startswith(
        f"warning: {folder / 'tasks' / 'gen.yaml'}: max_seq_length 2000 is more than the {LONGEST} tokens")
    head, *rows = captured.out[captured.out.index("task  metric"):].splitlines()
    assert head.split()[:5] == ["task", "metric", "n", "cut", "long"]
    assert next(row for row in rows if row.startswith("mul ")).split()[2:4] == ["2", "1"]
    assert f"long: items longer than the {LONGEST} tokens that the model takes" in captured.out
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert f"1 longer than the {LONGEST} tokens that the model takes" in page


def test_the_warning_comes_before_a_model_is_loaded(tmp_path, capsys):
    folder = write_tasks(tmp_path, "max_seq_length: 2000")
    assert command.main([*MODEL, "--data-path", str(folder / "data"), str(folder / "tasks"), "--check"]) == 0
    assert capsys.readouterr().err.count("warning: ") == 3


@pytest.mark.parametrize(("line", "takes", "length"), [
    ("", 512, 512), ("", 4096, 2048), ("max_seq_length: 700", 512, 700), ("max_seq_length: 700", 4096, 700)])
def test_what_is_said_is_kept_and_the_rest_is_the_model_s(tmp_path, line, takes, length):
    path = tmp_path / "task.yaml"
    path.write_text(f"name: x\ntype: mul\npath: x\n{line}\n")
    assert load_task(path, "data", takes).max_seq_length == length


@pytest.mark.parametrize("longest", [64, 512, 2048])
def test_the_task_files_that_come_along_fit_any_model(longest):
    files = sorted((ROOT / "tasks" / "language_modeling").rglob("*.yaml"))
    for file in files:
        config = load_task(file, ROOT, longest)
        assert config.max_seq_length == longest and config.generation_length <= longest // 2
    assert load_task(files[0], ROOT, 2048).generation_length == 1024  # the Pile's, as it stands in the file


def test_an_answer_that_the_model_has_no_room_for_is_refused(tmp_path):
    path = tmp_path / "task.yaml"
    path.write_text("name: x\ntype: gen\npath: x\nmax_gen_length: 600\n")
    with pytest.raises(UserError, match=r"max_gen_length: .* \(509; max_seq_length is 512: all that the model takes\)"):
        load_task(path, "data", 512)
