"""What is written lands in the folder that it was meant for: nothing is written through a link that waits there."""

import os

import pytest

from evaluation.output import write_samples
from evaluation.store import Journal
from runtime.errors import UserError
from runtime.files import AppendOnlyFile, Lock, replacing, safe_name
from tuning.corpus_run import check_same_data


@pytest.fixture
def foreign(tmp_path):
    """A file of somebody else's, which must stay as it is."""
    path = tmp_path / "foreign"
    path.write_text("precious\n")
    yield path
    assert path.read_text() == "precious\n"


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


class TestReplacing:
    def test_a_link_at_the_temporary_name_is_removed(self, out, foreign):
        (out / ".a.json.tmp").symlink_to(foreign)
        with replacing(out / "a.json") as temporary:
            temporary.write_text("new")
        assert (out / "a.json").read_text() == "new" and [path.name for path in out.iterdir()] == ["a.json"]

    def test_a_link_to_a_name_that_is_free_makes_no_file_there(self, out, tmp_path):
        (out / ".a.tmp").symlink_to(tmp_path / "elsewhere")
        with replacing(out / "a") as temporary:
            temporary.write_text("new")
        assert not (tmp_path / "elsewhere").exists()

    def test_a_second_name_of_a_file_is_not_written_through(self, out, foreign):
        os.link(foreign, out / ".a.tmp")
        with replacing(out / "a") as temporary:
            temporary.write_text("new")

    def test_a_link_at_the_name_itself_is_replaced(self, out, foreign):
        (out / "a").symlink_to(foreign)
        with replacing(out / "a") as temporary:
            temporary.write_text("new")
        assert not (out / "a").is_symlink() and (out / "a").read_text() == "new"

    def test_what_a_killed_process_left_is_gone(self, out):
        (out / ".a.tmp").write_text("a long rest of before")
        with replacing(out / "a") as temporary:
            assert temporary.read_text() == ""
            temporary.write_text("new")
        assert (out / "a").read_text() == "new"

    def test_rights_are_those_of_the_umask(self, out):
        before = os.umask(0o027)
        try:
            with replacing(out / "a") as temporary:
                temporary.write_text("new")
        finally:
            os.umask(before)
        assert (out / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["results.jsonl", "log.jsonl"])
def test_a_file_that_grows_does_not_grow_through_a_link(out, foreign, name):
    (out / name).symlink_to(foreign)
    with pytest.raises(OSError, match="is a link, through which nothing is written"):
        AppendOnlyFile(out / name)


def test_a_journal_that_is_a_link_is_one_line(out, foreign):
    (out / "journal.jsonl").symlink_to(foreign)
    with pytest.raises(UserError, match=r"journal\.jsonl: is a link, through which nothing is written; remove it"):
        Journal(out / "journal.jsonl")


def test_a_lock_that_is_a_link_is_one_line(out, tmp_path):
    (out / ".lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"--output .*\.lock is a link, through which nothing is written; remove it"):
        Lock(out, "--output")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("text, name", [
    ("../../etc/passwd", "__.._etc_passwd"), (".hidden", "_hidden"), ("a\tb\0", "a_b_"), ("", "_"), ("..", "_"),
    ("天气", "天气"), ("x" * 300, "x" * 200), ("天" * 100, "天" * 66), ("C:\\x", "C:_x")])
def test_no_name_leads_out_of_the_folder(text, name):
    assert safe_name(text) == name


def test_several_processes_may_write_the_same_file(out, monkeypatch):
    """A second one that begins before the first has ended neither empties nor removes what the first is writing."""
    with replacing(out / "a", by_several=True) as one:
        one.write_text("of one")
        monkeypatch.setattr("os.getpid", lambda: 1)
        with replacing(out / "a", by_several=True) as other:
            other.write_text("of the other")
        assert (out / "a").read_text() == "of the other"
    assert (out / "a").read_text() == "of one" and [path.name for path in out.iterdir()] == ["a"]


def test_samples_do_not_go_through_a_link(out, foreign):
    (out / "samples").mkdir()
    (out / "samples" / ".d.jsonl.tmp").symlink_to(foreign)
    write_samples(out / "samples" / "d.jsonl", [{"index": 0}])
    assert (out / "samples" / "d.jsonl").read_text() == '{"index": 0}\n'


@pytest.mark.parametrize("name", ["model_config.json", "log.jsonl"])
def test_training_does_not_begin_in_a_folder_of_others(out, name):
    """Its files would replace a checkpoint's, or anybody's log."""
    (out / "vocabulary").write_text("v")
    (out / name).write_text("precious")
    with pytest.raises(UserError, match=rf"--output .* holds {name}, but no training run \(data.json\)"):
        check_same_data(out, out, out / "vocabulary", {})
    assert (out / name).read_text() == "precious" and not (out / "data.json").exists()
    (out / name).unlink()
    check_same_data(out, out, out / "vocabulary", {})
    (out / name).write_text("of this run")
    check_same_data(out, out, out / "vocabulary", {})
