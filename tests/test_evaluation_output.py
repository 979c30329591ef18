"""Files of samples: names that cannot be are refused before anything is scored; what no run has written stays."""

import json
from pathlib import Path

import pytest

import commands.evaluate as command
from evaluation.output import check_names, claim, remove, sample_names
from generation.prompt_file import PromptLine
from generation.records import Results, file_names
from runtime.errors import UserError
from tests.tiny_tasks import MODEL, write_rows


class TestNames:
    def test_files_of_tasks_and_folders(self):
        assert sample_names({"a/b": ["x.jsonl", "y/x.jsonl"], "c": []}) == {
            ("a/b", "x.jsonl"): "a_b/x.jsonl", ("a/b", "y/x.jsonl"): "a_b/y/x.jsonl"}
        check_names(Path("out"), {"a": ["x", "y", "z/x"], "b": ["x", "x.json", "z"]})

    @pytest.mark.parametrize("files", [
        ["p", "p.jsonl/q"], ["p.jsonl/q", "p"], ["P", "p.jsonl/q"],  # a file and a folder
        ["test", "Test"], ["a/x", "A/x"], ["caf\u00e9", "cafe\u0301"],
    ])
    def test_two_that_would_be_one(self, files):
        with pytest.raises(UserError, match=rf"task t: {files[1]} and task t: {files[0]}: their samples would be one"):
            check_names(Path("out"), {"t": files})

    @pytest.mark.parametrize("letters", ["x" * 245, "x" * 252, "é" * 123])
    def test_long_names(self, letters):
        """Room is needed for .jsonl, and for the name that the file has while it is written."""
        with pytest.raises(UserError, match="would be too long; shorten the data's"):
            check_names(Path("out"), {"t": [letters]})
        check_names(Path("out"), {"t": [letters[:len(letters) * 244 // len(letters.encode())]]})

    def test_long_paths(self):
        with pytest.raises(UserError, match="would be too long"):
            check_names(Path("/out"), {"t": ["/".join(["x" * 200] * 21)]})

    def test_all_faults_at_once(self):
        with pytest.raises(UserError) as caught:
            check_names(Path("out"), {"t": ["a", "A", "x" * 250], "u": ["b", "b.jsonl/c"]})
        assert str(caught.value).count("\nerror: ") == 2

    def test_tasks_whose_names_differ_in_capitals_have_folders_of_their_own(self):
        names = sample_names(dict.fromkeys(["Words", "words", "WORDS", "words-2"], ("x",)))
        assert len({name.casefold() for name in names.values()}) == 4

    def test_ids_that_differ_in_capitals_have_files_of_their_own(self):
        ids = ["A", "a", "a-2", "a"]
        names = file_names([PromptLine(number, number + 1, "text", name) for number, name in enumerate(ids)])
        assert names[0] == "A.txt" and len({name.casefold() for name in names}) == 4

    def test_the_check_says_it_before_a_model_is_loaded(self, tmp_path, capsys, monkeypatch):
        row = {"inputs_pretokenized": "a", "choices_pretokenized": ["b", "c"], "label": 0}
        for file in ("p", "p.jsonl/q"):
            write_rows(tmp_path / "data" / file, [row])
        (tmp_path / "t.yaml").write_text("name: t\ntype: mul\npath: data\nfile_pattern: '**/*'\n")
        monkeypatch.setattr(command, "loaded", lambda *_: pytest.fail("a model was loaded"))
        argv = [*MODEL, "--data-path", str(tmp_path), "--output", str(tmp_path / "out"), str(tmp_path / "t.yaml")]
        for more in ([], ["--check"]):
            assert command.main([*argv, *more]) == 2
            assert "their samples would be one file, or a file and a folder" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def opened(output, *files, overwrite=False, data="data"):
    """The folder becomes that of a run over these files of the task t."""
    facts = {"checkpoint": "a", "data of task t": data}
    claim(output, facts, {}, list(sample_names({"t": files}).values()), overwrite)


@pytest.fixture
def output(tmp_path):
    """Samples that a run has written, beside notes that nobody has recorded."""
    folder = tmp_path / "out"
    folder.mkdir()
    opened(folder, "a", "b/c")
    for name in ("t/a.jsonl", "t/b/c.jsonl", "t/notes.jsonl", "notes.jsonl"):
        path = folder / "samples" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    return folder


def left(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl") if path.is_file()
                  and path.name != "journal.jsonl")


class TestRemoving:
    def test_the_same_run_again_removes_nothing(self, output):
        opened(output, "a", "b/c")
        assert left(output) == ["samples/notes.jsonl", "samples/t/a.jsonl", "samples/t/b/c.jsonl",
                                "samples/t/notes.jsonl"]

    def test_another_run_removes_what_the_earlier_one_wrote(self, output):
        opened(output, "a", "d", overwrite=True, data="other")
        assert left(output) == ["samples/notes.jsonl", "samples/t/a.jsonl", "samples/t/notes.jsonl"]

    def test_what_was_there_before_the_first_run_stays(self, output):
        (output / "settings.json").unlink()
        opened(output, "d", overwrite=True)
        assert len(left(output)) == 4

    @pytest.mark.parametrize("link", ["samples", "samples/t", "samples/t/b"])
    def test_a_folder_that_is_a_link_is_refused_and_nothing_behind_it_removed(self, output, tmp_path, link):
        elsewhere = tmp_path / "elsewhere"
        (output / link).rename(elsewhere)
        (output / link).symlink_to(elsewhere)
        before = left(elsewhere)
        with pytest.raises(UserError, match=f"{link} is a link, through which nothing is written; remove it"):
            opened(output, "a", "b/c", overwrite=True, data="other")
        (output / link).unlink()
        opened(output, "d", overwrite=True, data="other")
        assert left(elsewhere) == before

    @pytest.mark.parametrize("record", [
        ["../../precious.jsonl", "/precious.jsonl", "../settings.json", "", ".", "a\0.jsonl", 1, None, ["t/a.jsonl"]],
        {"t/a.jsonl": 1}, "t/a.jsonl", None, 5,
    ])
    def test_a_record_leads_to_nothing_outside_the_samples(self, output, record):
        (output.parent / "precious.jsonl").write_text("{}")
        before = left(output.parent)
        settings = json.loads((output / "settings.json").read_text())
        (output / "settings.json").write_text(json.dumps(settings | {"samples": record}))
        opened(output, "e", overwrite=True, data="other")
        assert left(output.parent) == before

    def test_never_through_a_link(self, output, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "x.jsonl").touch()
        (output / "samples" / "link").symlink_to(tmp_path / "elsewhere")
        remove(output, ["link/x.jsonl", "t/a.jsonl"])
        assert (tmp_path / "elsewhere" / "x.jsonl").exists() and not (output / "samples" / "t" / "a.jsonl").exists()


class TestGeneration:
    LINES = (PromptLine(0, 1, "text", "notes"),)

    @pytest.mark.parametrize("name", ["notes.txt", "settings.json"])
    def test_files_that_no_run_has_written_are_not_replaced_unasked(self, tmp_path, name):
        (tmp_path / name).write_text("precious")
        for resume in (False, True):
            with pytest.raises(UserError, match=f"{name} is there already, and not of a run"):
                Results(tmp_path, self.LINES, resume=resume)
        assert (tmp_path / name).read_text() == "precious"
        with Results(tmp_path, self.LINES, overwrite=True):
            pass
