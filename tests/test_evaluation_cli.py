"""python -m evaluation: its arguments, its messages, what it prints and where."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import commands.evaluate as command
import glm.loading  # noqa: F401 (SAT's logger keeps the standard error that it finds: pytest's of one test must not be it)
from commands.evaluate import output_folder, parse
from tests.faults import SECONDS, said, size_of, wait_for
from tests.test_scripts import Clone, arguments_of
from tests.tiny_tasks import MODEL, arguments, results, write_rows, write_tasks

ROOT = Path(__file__).resolve().parent.parent
CHECK = ["--check"]


@pytest.fixture
def tasks(tmp_path):
    return write_tasks(tmp_path, rows=4)


def failing(capsys, *argv: str) -> str:
    """The one line that a command fails with."""
    assert command.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1, captured.err
    return captured.err.removeprefix("error: ").rstrip("\n")


# Flags


@pytest.mark.parametrize("argv, message", [
    ([], "no task was named; give task files, folders or globs, for example: tasks/quickstart"),
    (["--limit", "0", "x.yaml"], "--limit 0: must be at least 1 row, or a share between 0 and 1"),
    (["--max-batch-tokens", "-3", "x.yaml"], "--max-batch-tokens -3: must be at least 1"),
    (["--micro_batch_size=0", "x.yaml"], "--micro-batch-size 0: must be at least 1"),
    (["no/such.yaml"], "no/such.yaml: there is no such file or folder; name task files, folders of them, or globs"),
])
def test_mistakes_in_the_arguments(capsys, argv, message):
    assert failing(capsys, *argv) == message


@pytest.mark.parametrize("argv, message", [
    (["--limt", "5", "tasks"], "error: unknown argument '--limt'; did you mean --limit?\n"),
    (["--limit", "five", "tasks"],
     "error: argument --limit: 'five': must be a number of rows, or a share between 0 and 1\n"),
])
def test_unknown_flags(capsys, argv, message):
    with pytest.raises(SystemExit) as end:
        command.main(argv)
    assert end.value.code == 2 and capsys.readouterr().err == message


def test_paths_stand_anywhere_and_task_names_them_too():
    found = parse(["a", "--limit", "3", "b", "--task", "c", "d", "--fp32", "e"])
    assert sorted(found.paths) == ["a", "b", "c", "d", "e"] and found.limit == 3 and found.precision == "fp32"


def test_the_default_output_is_found_again_by_the_same_command_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def folder(*argv):
        return output_folder(parse(argv))

    first = folder("tasks/quickstart", "--load", "checkpoints/small")
    assert re.fullmatch(r"outputs/small/quickstart-[0-9a-f]{8}", str(first))
    assert folder("--load", "checkpoints/small", "tasks/quickstart") == first
    assert folder("tasks/quickstart", "--load", "checkpoints/small", "--overwrite") == first
    for more in (["--limit", "3"], ["--bf16"], ["tasks/other"], ["--max-batch-tokens", "9"], ["--data-path", "x"]):
        assert folder("tasks/quickstart", "--load", "checkpoints/small", *more) != first
    assert folder("tasks/*/x*.yaml").name.startswith("x_-")


def imported(*argv: str) -> tuple[str, set[str]]:
    """Standard output of a command, and the modules that it has imported."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-m", "evaluation", *argv], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, {line.split("|")[-1].strip() for line in done.stderr.splitlines()}


def test_help_waits_for_nothing():
    out, modules = imported("--help")
    assert "python -m evaluation compare RUN_A RUN_B" in out
    assert not modules & {"torch", "numpy", "scipy", "matplotlib", "rich", "yaml"}


def test_checking_tasks_and_data_does_not_wait_for_torch(tasks):
    out, modules = imported(*arguments(tasks), *CHECK)
    assert out.startswith("ready  choices") and "yaml" in modules
    assert not modules & {"torch", "numpy", "scipy", "matplotlib"}


def test_the_script_finds_data_and_model(tmp_path):
    clone = Clone(tmp_path)
    start = ["-m", "evaluation", "--load", str(clone.root / "checkpoints" / "glm-small"), "--data-path"]
    process = clone.run("evaluate.sh", "tasks/quickstart", "my tasks", STUB_COMPLETE="yes")
    assert arguments_of(process) == [*start, str(clone.root / "data"), "tasks/quickstart", "my tasks"]
    given = {"DATA_PATH": "/my data", "STUB_COMPLETE": "yes"}
    assert arguments_of(clone.run("evaluate.sh", "x", **given)) == [*start, "/my data", "x"]
    process = clone.run("evaluate_multiple_node.sh", "tasks", "--help", STUB_COMPLETE="yes")
    assert arguments_of(process) == ["-m", "evaluation", "--help"]
    process = clone.run("evaluate.sh", "compare", "run a", "run b", STUB_COMPLETE="yes")
    assert arguments_of(process) == ["-m", "evaluation", "compare", "run a", "run b"]


def test_compare_has_a_parser_of_its_own(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["compare", "--help"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("usage: python -m evaluation compare")


# Task files and data, before any model is loaded


def test_check_lists_tasks_with_their_files_and_rows(tasks, capsys):
    assert command.main([*arguments(tasks), *CHECK, "--load", "/no/such/checkpoint"]) == 0
    assert capsys.readouterr().out == (
        "ready  choices: 2 files, 8 rows\nready  text: 1 file, 1 row\nready  writing: 1 file, 4 rows\n")
    assert not (tasks / "out").exists()


def test_a_bad_row_is_named_before_the_model_is_looked_for(tasks, capsys):
    path = write_rows(tasks / "data" / "writing" / "dev.jsonl", [{"inputs_pretokenized": "a"}])
    assert failing(capsys, *arguments(tasks), "--load", "/no/such/checkpoint").startswith(
        f"{path}:1: field targets_pretokenized")


def test_every_task_at_fault_has_its_line(tasks, capsys):
    for name in ("choices", "writing"):
        file = tasks / "tasks" / f"{name}.yaml"
        file.write_text(file.read_text().replace("type:", "typ:"))
    assert command.main(arguments(tasks)) == 2
    lines = capsys.readouterr().err.splitlines()
    for name in ("choices", "writing"):
        assert sum(line.startswith(f"error: {tasks / 'tasks' / name}.yaml: ") for line in lines) == 2  # type, and typ


def test_a_task_without_data_is_an_error_unless_allowed(tasks, capsys):
    (tasks / "data" / "writing" / "dev.jsonl").rename(tasks / "elsewhere")
    message = failing(capsys, *arguments(tasks))
    assert message.startswith(f"{tasks / 'tasks' / 'writing.yaml'}: ")
    assert message.endswith("(--allow-missing goes on without it)")
    assert not (tasks / "out").exists()
    assert command.main([*arguments(tasks), *CHECK, "--allow-missing"]) == 0
    assert f"missing  writing: {tasks / 'tasks' / 'writing.yaml'}: " in capsys.readouterr().out

    assert command.main([*arguments(tasks), "--allow-missing"]) == 0
    record = results(tasks)["tasks"]["writing"]
    assert record["status"] == "missing" and not any(record["counts"].values())
    assert record["files"] == record["groups"] == {}
    assert results(tasks)["tasks"]["choices"]["status"] == "done"
    out = capsys.readouterr().out
    assert f"\nMissing task writing: {tasks / 'tasks' / 'writing.yaml'}: " in out
    assert "missing, without any figure: writing" in out


def test_nothing_is_scored_where_all_is_missing(tasks, capsys):
    for path in (tasks / "data").rglob("*.*"):
        path.unlink()
    message = failing(capsys, *arguments(tasks), "--allow-missing")
    assert message.startswith("none of the tasks has data: ") and "choices.yaml" in message


def test_a_missing_checkpoint_is_named(tasks, capsys):
    assert "--load /no/such: no such folder" in failing(capsys, *arguments(tasks), "--load", "/no/such")


def test_an_id_beyond_the_vocabulary_is_named_with_its_line(tasks, capsys):
    rows = [{"inputs": ids, "choices_pretokenized": ["a", "b"], "label": 0} for ids in ([1], [10**6])]
    path = write_rows(tasks / "data" / "choices" / "plain" / "test.jsonl", rows)
    assert failing(capsys, *arguments(tasks)).startswith(f"{path}:2: field inputs: the vocabulary has no id 1000000")


def test_an_lm_task_does_not_score_rows_of_json_as_text(tasks, capsys):
    path = write_rows(tasks / "data" / "text" / "a.jsonl", [{"text": "a"}])
    file = tasks / "tasks" / "text.yaml"
    file.write_text("name: text\ntype: lm\npath: text\n")
    message = failing(capsys, *arguments(tasks), *CHECK)
    assert message.startswith(f"{path}: holds JSON, and an lm task scores raw text") and str(file) in message


def test_a_folder_that_holds_something_else_is_left_alone(tasks, capsys):
    other = write_rows(tasks / "out" / "samples" / "answers.jsonl", [{"prompt": "a"}])
    assert f"--output {tasks / 'out'} holds samples, but no settings.json" in failing(capsys, *arguments(tasks))
    assert other.exists()


def test_a_row_that_leaves_no_room_is_named_with_its_file(tasks, capsys):
    file = tasks / "tasks" / "choices.yaml"
    file.write_text(file.read_text() + "max_seq_length: 4\n")
    path = tasks / "data" / "choices" / "plain" / "test.jsonl"
    assert failing(capsys, *arguments(tasks)).startswith(f"{path}: item 0: max_seq_length 4 leaves no room")


# What is printed


def test_the_report_is_the_original_s(tasks, capsys):
    assert command.main([*MODEL, "--data-path", str(tasks / "data"), "--output", str(tasks / "out"),
                         str(tasks / "tasks" / "choices.yaml")]) == 0
    out = capsys.readouterr().out
    report, _, closing = out.partition("s.\n")
    figures = [file["metrics"] for file in results(tasks)["tasks"]["choices"]["files"].values()]
    plain, said = (f"Accuracy = {each['Accuracy']:.3f}, F1_mul = {each['F1_mul']:.3f}" for each in figures)
    one, other = (each["Accuracy"] for each in figures)
    spread = f"max = {max(one, other):.3f}, median = {(one + other) / 2:.3f}, average = {(one + other) / 2:.3f}"
    assert re.sub(r"in [\d.]+$", "in ", report).split("\n") == [
        "", "",
        "MultiChoiceTaskConfig(name='choices', type=<TaskType.MULTICHOICE: 'mul'>, "
        f"path='{tasks / 'data' / 'choices'}', module=None, metrics=['Accuracy', 'F1_mul'], use_task_mask=False, "
        "use_multitask_encoding=False, unidirectional=False, max_seq_length=512, "
        "file_pattern={'test': '**/test.jsonl'}, micro_batch_size=1)",
        "Evaluating task choices:",
        "    Evaluating group test:",
        f"        Finish plain/test.jsonl, {plain}",
        f"        Finish said/test.jsonl, {said}",
        "Evaluation results of task choices:",
        "      Group test: ",
        f"        Metric Accuracy: {spread}",
        f"        Metric F1_mul: {spread}",
        "Finish task choices in "]
    assert "95% interval" in closing and closing.endswith(
        f"Results: {tasks / 'out'}; to look at: {tasks / 'out' / 'report.html'}\n")


def test_nobody_reads_the_report_and_the_run_goes_on(tasks):
    program = [sys.executable, "-m", "evaluation", *arguments(tasks)]
    process = subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.wait(timeout=SECONDS) == 0, process.stderr.read()
    assert said(process.stderr.read()) == ""
    process.stderr.close()
    assert set(results(tasks)["tasks"]) == {"choices", "writing", "text"}


@pytest.mark.parametrize("number, code", [
    pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_that_the_same_command_goes_on(tmp_path, number, code):
    tasks = write_tasks(tmp_path, rows=300)
    argv = [*arguments(tasks), "--micro-batch-size", "1"]
    process = subprocess.Popen([sys.executable, "-m", "evaluation", *argv], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    journal = tasks / "out" / "journal.jsonl"
    wait_for(lambda: size_of(journal) > 300)
    process.send_signal(number)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == code
    assert said(err) == f"interrupted; the same command goes on from here: {tasks / 'out'}\n"
    kept = journal.read_text()
    assert kept.endswith("\n") and [json.loads(line) for line in kept.splitlines()]
    assert not (tasks / "out" / "results.json").exists()


def test_quickstart_with_the_embedded_model(tmp_path, capsys):
    assert command.main([str(ROOT / "tasks" / "quickstart"), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    found = results(tmp_path)["tasks"]
    assert {task["config"]["type"] for task in found.values()} == {"mul", "gen", "lm"}
    words = found["quickstart-words"]["groups"]["test"]["Accuracy"]
    assert len(found["quickstart-words"]["files"]) == 2 and words["average"] > 50  # by chance: 25
    assert found["quickstart-continue"]["groups"]["all"]["F1_char"]["average"] > 0
    assert "quickstart-words-chinese" in capsys.readouterr().out
