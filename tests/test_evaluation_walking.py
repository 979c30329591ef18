"""Each file once, whatever links lead where, and nothing else of what a glob would match."""

import glob
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.config import MultiChoiceTaskConfig
from evaluation.discovery import data_files, files_below, find_task_files

TREE = ("a.json", "one/b.json", "one/two/c.jsonl", "one/.hidden/d.json", "one/two/.e.json", ".f/g.json", "[x]/h.txt")
PARTS = ["**", "*", "one", "two", ".hidden", ".*", "*.json*", "[ab]*", "?", "[", "[[]x]", "a.json"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    for name in TREE:
        write(folder / name)
    return folder


def write(path, text="{}"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


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
