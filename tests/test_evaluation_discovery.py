"""From paths to task files, and from tasks to data files: each once, whatever links lead where."""

import glob
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.config import MultiChoiceTaskConfig
from evaluation.discovery import data_files, files_below, find_task_files, load_tasks, missing
from evaluation.plan import look
from runtime.errors import UserError

ROW = '{"inputs": [1], "choices": [[1], [2]], "label": 0}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with some task files, and the current one."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.yaml", "a.yml", "inner/c.yaml", "inner/deep/d.yaml", "notes.txt", ".hidden/e.yaml"):
        write(tmp_path / "tasks" / name, f"name: {name.replace('/', '-').lstrip('.')}\ntype: mul\npath: quiz\n")
    return tmp_path


def write(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def found(*paths):
    return [str(path) for path in find_task_files(paths)]


def test_a_file_a_folder_and_a_glob(folder):
    assert found("tasks/b.yaml") == ["tasks/b.yaml"]
    assert found("tasks") == ["tasks/a.yml", "tasks/b.yaml", "tasks/inner/c.yaml", "tasks/inner/deep/d.yaml"]
    assert found("tasks/*.y*ml") == ["tasks/a.yml", "tasks/b.yaml"]
    assert found("tasks/**/[cd].yaml") == ["tasks/inner/c.yaml", "tasks/inner/deep/d.yaml"]
    assert found("tasks/in*") == ["tasks/inner/c.yaml", "tasks/inner/deep/d.yaml"]  # a folder that a glob matches


def test_the_order_is_the_users_and_nothing_comes_twice(folder):
    assert found("tasks/inner/c.yaml", "tasks/inner", "./tasks/b.yaml", "tasks/b.yaml") == [
        "tasks/inner/c.yaml", "tasks/inner/deep/d.yaml", "tasks/b.yaml"]


def test_a_name_with_the_marks_of_a_glob(folder):
    write(folder / "[x].yaml", "")
    assert found("[x].yaml") == ["[x].yaml"]


@pytest.mark.parametrize("path, message", [
    ("tasks/none.yaml", "tasks/none.yaml: there is no such file or folder; name task files, folders of them, or globs"),
    ("taks", "taks: there is no such file or folder; did you mean tasks?"),
    ("./taks/", "./taks/: there is no such file or folder; did you mean tasks?"),
    ("tasks/*.json", "tasks/*.json: the glob matches no task file"),
    ("tasks/notes.txt", "tasks/notes.txt: is no task file; these end in .yaml or .yml"),
    ("empty", "empty: the folder holds no task file"),
])
def test_paths_that_name_no_task(folder, path, message):
    (folder / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        find_task_files([path])
    assert message in str(caught.value)


def test_the_faults_of_all_files_are_told_at_once(folder):
    write(folder / "tasks/x.yaml", "name: x\ntype: mul\npath: x\nmetrics: [Acc]\n")
    write(folder / "tasks/y.yaml", "name: b.yaml\ntype: mul\npath: y\n")
    with pytest.raises(UserError) as caught:
        load_tasks(["tasks"], "data")
    first, second = str(caught.value).split("\nerror: ")
    assert first.startswith("tasks/x.yaml: metrics: unknown metric 'Acc'")
    assert second == "tasks/y.yaml: name: 'b.yaml' is the name of the task in tasks/b.yaml too"


def test_all_faults_of_a_file_are_told_at_once(folder):
    write(folder / "tasks/x.yaml", "name: x\ntype: mul\nmetric: [EM]\nmetrics: [Acc]\nmax_seq_length: 1k\n")
    with pytest.raises(UserError) as caught:
        load_tasks(["tasks/x.yaml"], "data")
    assert [fault.split(": ")[1][:16] for fault in str(caught.value).split("\nerror: ")] == [
        "unknown key 'met", "max_seq_length", "path is missing;", "metrics"]


def test_all_faults_of_metrics_and_of_keys_together_are_told(folder):
    write(folder / "tasks/x.yaml", "name: x\ntype: gen\npath: x\nmetrics: [Acc, PPL]\n")
    write(folder / "tasks/y.yaml", "name: y\ntype: gen\npath: y\nunidirectional: true\nmin_gen_length: 200\n")
    with pytest.raises(UserError) as caught:
        load_tasks(["tasks/x.yaml", "tasks/y.yaml"], "data")
    assert [fault.split(": ", 1)[1][:12] for fault in str(caught.value).split("\nerror: ")] == [
        "metrics: unk", "metrics: PPL", "unidirection", "min_gen_leng"]


def test_a_file_without_a_type_hides_no_other_fault(folder):
    write(folder / "tasks/x.yaml", "name: x\nmetric: [EM]\nmax_seq_length: 1k\nnum_beams: 0\n")
    write(folder / "tasks/y.yaml", "name: y\ntype: choice\npath: [a]\n")
    with pytest.raises(UserError) as caught:
        load_tasks(["tasks/x.yaml", "tasks/y.yaml"], "data")
    assert [fault.split(": ", 1)[1][:16] for fault in str(caught.value).split("\nerror: ")] == [
        "type is missing;", "unknown key 'met", "max_seq_length: ", "num_beams: must ", "path is missing;",
        "type: 'choice' i", "path: must be te"]


def test_tasks_in_order(folder):
    assert [task.name for task in load_tasks(["tasks/inner", "tasks/a.yml"], "data")] == [
        "inner-c.yaml", "inner-deep-d.yaml", "a.yml"]


# Data


def test_data_files_by_group(tmp_path):
    for name in ("one/dev.jsonl", "two/dev.jsonl", "two/test.json", "two/.hidden.jsonl", "two/notes.txt"):
        write(tmp_path / name, ROW)
    (tmp_path / "two" / "folder.jsonl").mkdir()
    config = MultiChoiceTaskConfig(name="quiz", path=str(tmp_path))
    assert data_files(config) == {
        "all": [tmp_path / "one/dev.jsonl", tmp_path / "two/dev.jsonl", tmp_path / "two/test.json"]}
    config = MultiChoiceTaskConfig(name="quiz", path=str(tmp_path),
                                   file_pattern={"dev": "**/dev.jsonl", "train": "**/train.jsonl"})
    assert data_files(config) == {"dev": [tmp_path / "one/dev.jsonl", tmp_path / "two/dev.jsonl"], "train": []}


def test_why_a_task_is_missing(tmp_path):
    def reason(**changes):
        return missing(MultiChoiceTaskConfig(name="quiz", path=str(tmp_path / "data"), source="quiz.yaml", **changes))

    assert "quiz.yaml: path: there is no folder " in reason() and "DATA_PATH" in reason()
    assert reason().endswith("make it with: bash scripts/prepare_data.sh")
    beside = missing(MultiChoiceTaskConfig(name="quiz", path="my/data", source=Path("my/quiz.yaml")))
    assert beside.endswith("(a path that begins with ./ is beside the task file)")
    write(tmp_path / "data", ROW)
    assert f"path: {tmp_path / 'data'} is a file; name its folder" in reason()
    (tmp_path / "data").unlink()
    write(tmp_path / "data" / "dev.jsonl", ROW)
    assert reason() is None
    assert reason(file_pattern={"dev": "dev*", "test": "test*"}) == (
        f"quiz.yaml: file_pattern: group test: test* matches no file in {tmp_path / 'data'}")
    for nothing in ("", "\n \n", "[ ]\n"):
        write(tmp_path / "data" / "test.json", nothing)
        assert reason() == f"quiz.yaml: {tmp_path / 'data' / 'test.json'} is empty"


@pytest.mark.parametrize("path, remedy", [
    ("~/data", "~ and names such as $HOME are not replaced here; write the folder out, from / on"),
    ("$HOME/data", "~ and names such as $HOME are not replaced here; write the folder out, from / on"),
    ("CLUE\\ocnli", "folders are separated by /: data/CLUE/ocnli"),
])
def test_paths_of_a_shell_and_of_windows(path, remedy):
    reason = missing(MultiChoiceTaskConfig(name="quiz", path=f"data/{path}", source=Path("quiz.yaml")))
    assert reason == f"quiz.yaml: path: there is no folder data/{path}; {remedy}"


def test_what_a_folder_holds_in_place_of_rows(tmp_path):
    (tmp_path / "rows.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    reason = missing(MultiChoiceTaskConfig(name="quiz", path=str(tmp_path), source=Path("quiz.yaml")))
    assert reason.endswith("; rows.jsonl.gz is compressed by gzip; unpack it first: gunzip")


# What is most likely a mistake


def notes(tmp_path, **files):
    for name, rows in files.items():
        write(tmp_path / f"{name}.jsonl", "".join(json.dumps({"inputs_pretokenized": "a", "label": 0} | row) + "\n"
                                                  for row in rows))
    config = MultiChoiceTaskConfig(name="quiz", path=str(tmp_path), source=Path("quiz.yaml"))
    return [note.replace(f"{tmp_path}/", "") for note in look([config], False)["quiz"].notes]


def test_equal_and_empty_choices_are_counted(tmp_path):
    good, equal, empty = ({"choices_pretokenized": choices} for choices in (["b", "c"], ["b", "c", "b"], ["b", ""]))
    ids = {"choices": [[1, 2], [1, 2]], "choices_pretokenized": ["b", "c"]}  # ids win
    assert notes(tmp_path, one=[good, equal, ids, empty], two=[good]) == [
        "one.jsonl:2: equal choices, of which the first is taken (in 2 rows of this file)",
        "one.jsonl:4: an empty choice, which is scored as the end of the text (in 1 row of this file)"]


def test_files_with_the_same_contents(tmp_path):
    row, other = ({"choices_pretokenized": choices} for choices in (["b", "c"], ["b", "d"]))
    assert notes(tmp_path, one=[row], three=[other], two=[row]) == [
        "one.jsonl has the same contents as two.jsonl; all of them are scored"]


# Walking

TREE = ("a.json", "one/b.json", "one/two/c.jsonl", "one/.hidden/d.json", "one/two/.e.json", ".f/g.json", "[x]/h.txt")
PARTS = ["**", "*", "one", "two", ".hidden", ".*", "*.json*", "[ab]*", "?", "[", "[[]x]", "a.json"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for name in TREE:
        write(folder / name)
    return folder


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=4))
def test_without_links_it_is_python_s_glob(tree, parts):
    pattern = "/".join(parts)
    names = glob.glob(pattern, root_dir=tree, recursive=True)
    assert files_below(tree, pattern) == sorted({os.path.normpath(name) for name in names
                                                 if os.path.isfile(os.path.join(tree, name))})


@pytest.mark.parametrize("links", [
    {"self": "."},
    {"one/up": ".."},
    {"one/two/top": "../.."},
    {"0": "one", "zz": "one/two"},  # a folder under other names, before and behind its own
    {"0.json": "one/b.json", "one/z.jsonl": "two/c.jsonl"},
    {f"loop{number}": "." for number in range(30)},  # 2^30 ways through them
    {"dangling.json": "nowhere", "circle.json": "circle.json"},
])
def test_every_file_once_under_its_own_name(tmp_path, links):
    for name in TREE:
        write(tmp_path / name)
    names = files_below(tmp_path, "**/*.json*")
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    assert files_below(tmp_path, "**/*.json*") == names == ["a.json", "one/b.json", "one/two/c.jsonl"]


def test_what_only_a_link_leads_to(tmp_path):
    write(tmp_path / "elsewhere/rows.jsonl")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/linked").symlink_to("../elsewhere")
    assert files_below(tmp_path / "data", "**/*") == ["linked/rows.jsonl"]
    assert files_below(tmp_path / "data", "linked/rows.jsonl") == ["linked/rows.jsonl"]


def test_task_files_behind_links_in_circles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "tasks/inner/a.yaml")
    for number in range(30):
        (tmp_path / f"tasks/loop{number}").symlink_to(".")
    for path in ("tasks", "tasks/**/*.yaml", "t*", "tasks/*/a.yaml"):
        assert [str(file) for file in find_task_files([path])] == ["tasks/inner/a.yaml"]


def test_the_default_takes_no_copies_of_editors(tmp_path):
    for name in ("t.jsonl", "t.jsonl~", "t.jsonl.bak", "#t.jsonl#", "t.jsonl.gz", "u.json", "t.json.swp"):
        write(tmp_path / name)
    config = MultiChoiceTaskConfig(name="a", path=str(tmp_path))
    assert [path.name for path in data_files(config)["all"]] == ["t.jsonl", "u.json"]
    asked = MultiChoiceTaskConfig(name="a", path=str(tmp_path), file_pattern="*.bak")  # a pattern of one's own
    assert [path.name for path in data_files(asked)["all"]] == ["t.jsonl.bak"]
