"""The journal of answers, the lock of an output folder, and the hashes that answers are kept under."""

import errno
import os
from dataclasses import replace

import pytest

from evaluation.output import differences
from evaluation.requests import ScoreRequest
from evaluation.store import (
    Journal,
    combined,
    hash_code,
    hash_file,
    hash_files,
    hash_json,
    hash_request,
    keys_of,
)
from runtime import files
from runtime.errors import UserError
from runtime.files import Lock

ANSWER = {"log_probs": [-0.1234567890123456, -17.0]}


def test_answers_come_back_with_all_their_digits(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.add([("one", ANSWER), ("two", {"beams": [[1, 2], []], "scores": [None, None]})])
        assert "one" in journal and "three" not in journal
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert journal["one"] == ANSWER
        assert journal["two"]["beams"] == [[1, 2], []]


def test_the_first_answer_under_a_key_holds(tmp_path):
    with Journal(tmp_path / "journal.jsonl") as journal:
        journal.add([("one", {"log_probs": [1.0]}), ("one", {"log_probs": [2.0]})])
        journal.add([("one", {"log_probs": [3.0]})])
        assert journal["one"] == {"log_probs": [1.0]}
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 1


def test_wherever_the_last_line_was_torn_the_whole_ones_count(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add([("one", ANSWER), ("two", ANSWER)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert list(journal.answers) == ["one"]
            journal.add([("two", ANSWER)])
        assert path.read_bytes() == whole


def test_a_damaged_line_is_left_out(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add([("one", ANSWER), ("two", ANSWER)])
    path.write_bytes(path.read_bytes().replace(b'{"key": "one"', b'\xff"key": "one"') + b"[]\n7\n")
    with Journal(path) as journal:
        assert list(journal.answers) == ["two"]


def test_a_digit_that_has_changed_is_damage_too(tmp_path):
    path = tmp_path / "journal.jsonl"
    with Journal(path) as journal:
        journal.add([("one", ANSWER), ("two", ANSWER)])
    path.write_bytes(path.read_bytes().replace(b"-17.0", b"-71.0", 1))
    with Journal(path) as journal:
        assert list(journal.answers) == ["two"]


def test_a_journal_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "journal.jsonl")
    with pytest.raises(UserError, match="journal.jsonl: is no file; remove it"):
        Journal(tmp_path / "journal.jsonl")


def test_a_full_disk_leaves_the_journal_whole(tmp_path, monkeypatch):
    path = tmp_path / "journal.jsonl"
    write = os.write

    def full(file, data):
        if len(data) > 30:
            return write(file, data[:30])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(path) as journal:
        journal.add([("one", ANSWER)])
        before = path.read_bytes()
        monkeypatch.setattr(files.os, "write", full)
        with pytest.raises(UserError, match="journal.jsonl: No space left on device; mend it, and the same"):
            journal.add([("two", ANSWER)])
        assert path.read_bytes() == before and "two" not in journal
        monkeypatch.undo()
        journal.add([("two", ANSWER)])
    with Journal(path) as journal:
        assert list(journal.answers) == ["one", "two"]


def test_a_second_run_on_the_same_folder_is_refused(tmp_path):
    message = "another run is writing there; wait for its end"
    with Lock(tmp_path / "out", "--output"), pytest.raises(UserError, match=message):
        Lock(tmp_path / "out", "--output")
    Lock(tmp_path / "out", "--output").close()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--output .*file/out: Not a directory; name a folder that can be written to"):
        Lock(tmp_path / "file" / "out", "--output")


def test_what_differs_between_two_runs_is_named():
    assert differences({"dtype": "float32", "limit": None}, {"dtype": "bfloat16", "limit": None}) == [
        "dtype: float32, now bfloat16"]
    assert differences({"task a": "0" * 64}, {"limit": 3}) == [
        "task a: 000000000000..., now none", "limit: none, now 3"]


# Hashes


def test_files_are_hashed_by_content(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, content in zip(paths, ("x", "y", "x"), strict=True):
        path.write_text(content)
    one, other, same = hash_files(paths)
    assert one == same == hash_file(paths[0]) != other
    assert combined([("a", one), ("b", other)]) != combined([("a", other), ("b", one)])
    with pytest.raises(UserError, match="cannot read .*none: No such file"):
        hash_files([*paths, tmp_path / "none"])


def test_code_is_hashed_with_its_names(tmp_path):
    (tmp_path / "glm").mkdir()
    file = tmp_path / "glm" / "model.py"
    file.write_text("1")
    found = [hash_code(tmp_path)]
    (tmp_path / "glm" / "notes.txt").write_text("not code")
    assert hash_code(tmp_path) == found[0]
    file.write_text("2")
    found.append(hash_code(tmp_path))
    file.rename(tmp_path / "glm" / "other.py")
    found.append(hash_code(tmp_path))
    assert len(set(found)) == 3


CODE = """
class A:
    def f(self, x=1):
        return [x, None, "text"]
"""


@pytest.mark.parametrize("other, is_same", [
    ("# a comment\n" + CODE, True), ('"""A docstring."""' + CODE, True),
    (CODE.replace("A:", 'A:\n    """What it is."""\n'), True),
    (CODE.replace("x=1):", 'x=1):\n        """Does it."""'), True),
    (CODE.replace("[x, None, ", "[\n            x, None,\n            "), True),
    (CODE.replace("x=1", "x=2"), False), (CODE.replace("x=1", "x=True"), False),
    (CODE.replace('"text"', 'b"text"'), False), (CODE.replace("None", "0"), False),
    (CODE.replace("return ", ""), False),
    (CODE + "if", False),
    (CODE.replace("return", '"x"\n        """text"""\n        return'), False),
])
def test_of_python_the_meaning_is_hashed(tmp_path, other, is_same):
    (tmp_path / "tasks").mkdir()
    found = []
    for source in (CODE, other):
        (tmp_path / "tasks" / "mine.py").write_text(source)
        found.append(hash_code(tmp_path))
    assert (found[0] == found[1]) is is_same


def test_a_key_depends_on_all_that_an_answer_depends_on():
    facts = {"checkpoint": "w", "tokenizer": "t", "code": "c", "dtype": "float32", "device": "cpu", "model": {"n": 1}}
    request = ScoreRequest((1, 2), ((3,), (4, 5)), lead=6, first_position=1, advance=0)
    def key(request=request, **changes) -> str:
        return keys_of(facts | changes, [hash_request(request)])[0]

    keys = {key(), *(key(**{name: "another"}) for name in facts)}
    for change in ({"context": (1, 7)}, {"continuations": ((3,), (4,))}, {"lead": 7}, {"first_position": 2},
                   {"advance": 1}, {"causal": True}):
        keys.add(key(replace(request, **change)))
    assert len(keys) == 1 + len(facts) + 6
    assert key(replace(request, truncated=True, input_length=9)) == key()
    assert hash_json({"a": 1, "b": (2,)}) == hash_json({"b": [2], "a": 1})
